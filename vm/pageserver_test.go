package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/vm/stream"
)

// fakeSaved is a small saved guest; page n of block b begins with b and n.
type fakeSaved struct {
	blocks []stream.Block
	zero   func(block int, number uint64) bool
	page   func(ctx context.Context, block int, number uint64) error // before Page
	each   func(ctx context.Context, block int, number uint64) error // before a page of Each
}

const fakeSection = 2

func (s *fakeSaved) Head(context.Context) ([]byte, error) {
	be := binary.BigEndian
	b := append([]byte("QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x0apc-q35-7.2\x01"), 0, 0, 0, fakeSection)
	b = append(b, "\x03ram\x00\x00\x00\x00\x00\x00\x00\x04"...)
	var total uint64
	for _, bl := range s.blocks {
		total += bl.Length
	}
	b = be.AppendUint64(b, total|4)
	for _, bl := range s.blocks {
		b = append(append(b, byte(len(bl.Name))), bl.Name...)
		b = be.AppendUint64(b, bl.Length)
	}
	b = be.AppendUint64(b, 0x10)
	return be.AppendUint32(append(b, 0x7e), fakeSection), nil
}

func (s *fakeSaved) Tail(context.Context) ([]byte, error) {
	return []byte("\x04state\x00\x06\x00\x00\x00\x02{}"), nil
}

func (s *fakeSaved) Blocks() []stream.Block                   { return s.blocks }
func (s *fakeSaved) Hot(context.Context) ([]PageRange, error) { return nil, nil }

func (s *fakeSaved) content(block int, number uint64) []byte {
	p := make([]byte, stream.PageSize)
	if s.zero == nil || !s.zero(block, number) {
		binary.BigEndian.PutUint64(p, uint64(block)<<32|number|1<<63)
	}
	return p
}

func (s *fakeSaved) isZero(block int, number uint64) bool {
	return s.zero != nil && s.zero(block, number)
}

func (s *fakeSaved) Page(ctx context.Context, block int, number uint64, dst []byte) (bool, error) {
	if s.page != nil {
		if err := s.page(ctx, block, number); err != nil {
			return false, err
		}
	}
	if s.isZero(block, number) {
		return true, nil
	}
	copy(dst, s.content(block, number))
	return false, nil
}

func (s *fakeSaved) Each(ctx context.Context, block int, fn func(uint64, []byte) error) error {
	for n := range s.blocks[block].Pages() {
		if s.isZero(block, n) {
			continue
		}
		if s.each != nil {
			if err := s.each(ctx, block, n); err != nil {
				return err
			}
		}
		if err := fn(n, s.content(block, n)); err != nil {
			return err
		}
	}
	return nil
}

// destination plays QEMU as the destination of a post-copy migration.
type destination struct {
	t      *testing.T
	saved  *fakeSaved
	conn   net.Conn
	r      *bufio.Reader
	mu     sync.Mutex
	got    []map[uint64][]byte
	order  []batchPage
	came   *sync.Cond
	status uint32 // of the end
}

type serverTest struct {
	*destination
	server *pageServer
	err    chan error // of run
	stop   context.CancelFunc
}

func serveFake(t *testing.T, saved *fakeSaved, hot ...PageRange) *serverTest {
	t.Helper()
	noLeaks(t)
	head, _ := saved.Head(t.Context())
	tail, _ := saved.Tail(t.Context())
	pc, err := stream.NewPostcopy(head)
	if err != nil {
		t.Fatal(err)
	}
	begin, err := pc.Begin(tail)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := socketPair(t)
	d := &destination{t: t, saved: saved, conn: theirs, r: bufio.NewReader(theirs)}
	d.came = sync.NewCond(&d.mu)
	for range saved.blocks {
		d.got = append(d.got, map[uint64][]byte{})
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := &serverTest{destination: d, server: newPageServer(ours, pc, saved, hot), err: make(chan error, 1), stop: cancel}
	go func() { s.err <- s.server.run(ctx, begin) }()
	t.Cleanup(func() { cancel(); _ = theirs.Close() })
	if _, err := io.ReadFull(d.r, make([]byte, len(begin))); err != nil {
		t.Fatal(err)
	}
	return s
}

func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vft")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// load reads pages until the end and confirms it.
func (d *destination) load() error {
	word := func() (uint64, error) {
		var b [8]byte
		_, err := io.ReadFull(d.r, b[:])
		return binary.BigEndian.Uint64(b[:]), err
	}
	for {
		w, err := word()
		if err != nil {
			return err
		}
		if w == 0x10 {
			break
		}
		name, err := d.r.ReadByte()
		if err != nil {
			return err
		}
		b := make([]byte, name)
		if _, err := io.ReadFull(d.r, b); err != nil {
			return err
		}
		block := -1
		for i, bl := range d.saved.blocks {
			if bl.Name == string(b) {
				block = i
			}
		}
		page := make([]byte, stream.PageSize)
		if w&8 != 0 {
			_, err = io.ReadFull(d.r, page)
		} else {
			_, err = d.r.ReadByte()
		}
		if err != nil {
			return err
		}
		if err := d.place(block, w>>12, page); err != nil {
			return err
		}
	}
	// Footer, END section, end of file.
	rest := make([]byte, 5+5+13+1)
	if _, err := io.ReadFull(d.r, rest); err != nil {
		return err
	}
	if rest[5] != 3 || rest[len(rest)-1] != 0 {
		return fmt.Errorf("end is %q", rest)
	}
	b := binary.BigEndian.AppendUint32([]byte{0, 1, 0, 4}, d.status)
	_, err := d.conn.Write(b)
	return err
}

func (d *destination) place(block int, number uint64, page []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.got[block][number]; ok {
		return fmt.Errorf("page %d of block %d came twice", number, block)
	}
	if !bytes.Equal(page, d.saved.content(block, number)) {
		return fmt.Errorf("page %d of block %d is wrong", number, block)
	}
	d.got[block][number] = page
	d.order = append(d.order, batchPage{block: block, number: number})
	d.came.Broadcast()
	return nil
}

// ask requests a page.
func (d *destination) ask(block int, number uint64) error {
	name := d.saved.blocks[block].Name
	body := binary.BigEndian.AppendUint64(nil, number*stream.PageSize)
	body = binary.BigEndian.AppendUint32(body, stream.PageSize)
	body = append(append(body, byte(len(name))), name...)
	b := binary.BigEndian.AppendUint16([]byte{0, 3}, uint16(len(body)))
	_, err := d.conn.Write(append(b, body...))
	return err
}

// want requests a page, unless it is there, and waits until it came.
func (d *destination) want(block int, number uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.got[block][number]; !ok {
		if err := d.ask(block, number); err != nil {
			return err
		}
	}
	for {
		if _, ok := d.got[block][number]; ok {
			return nil
		}
		d.came.Wait()
	}
}

func (d *destination) complete() error {
	for i, b := range d.saved.blocks {
		for n := range b.Pages() {
			if _, ok := d.got[i][n]; !ok && !d.saved.isZero(i, n) {
				return fmt.Errorf("page %d of block %d did not come", n, i)
			}
		}
	}
	return nil
}

func fakeBlocks() []stream.Block {
	return []stream.Block{{Name: "rom", Length: 3 * stream.PageSize}, {Name: ramBlock, Length: 1000 * stream.PageSize}}
}

// Guests that ask at random get every page once, whatever the background does.
func TestPageServerServes(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		saved := &fakeSaved{blocks: fakeBlocks(), zero: func(_ int, n uint64) bool { return n%7 == 3 }}
		hot := []PageRange{{Block: 1, First: 500, Count: 70}, {Block: 1, First: 510, Count: 10}, {Block: 0, First: 0, Count: 3}}
		s := serveFake(t, saved, hot...)
		loaded := make(chan error, 1)
		go func() { loaded <- s.load() }()
		var cpus sync.WaitGroup
		for range 3 {
			numbers := rnd.Perm(1000)[:200]
			cpus.Go(func() {
				for _, n := range numbers {
					if saved.isZero(1, uint64(n)) {
						continue // may be asked for too late to be answered
					}
					if err := s.want(1, uint64(n)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		cpus.Wait()
		if err := <-loaded; err != nil {
			t.Fatal(err)
		}
		if err := <-s.err; err != nil {
			t.Fatal(err)
		}
		if err := s.complete(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is asked for is answered, with what is next to it, while nothing comes
// in the background; zero pages too.
func TestPageServerAnswersWhileTheBackgroundWaits(t *testing.T) {
	gate := make(chan struct{})
	saved := &fakeSaved{
		blocks: fakeBlocks(), zero: func(_ int, n uint64) bool { return n%2 == 0 },
		each: func(ctx context.Context, _ int, _ uint64) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
	s := serveFake(t, saved)
	loaded := make(chan error, 1)
	go func() { loaded <- s.load() }()
	for _, n := range []uint64{70, 71, 999} {
		if err := s.want(1, n); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(64); n < 96; n++ { // the neighbours of 70
		if err := s.want(1, n); err != nil {
			t.Fatal(err)
		}
	}
	close(gate)
	if err := errors.Join(<-loaded, <-s.err, s.complete()); err != nil {
		t.Fatal(err)
	}
	n, mean, p99, most := s.server.count.latency.figures()
	if n < 2 || mean <= 0 || p99 < mean/2 || most < mean {
		t.Errorf("latency of %d requests: %v, %v, %v", n, mean, p99, most)
	}
}

// Hot pages come before the others.
func TestPageServerSendsHotPagesFirst(t *testing.T) {
	saved := &fakeSaved{blocks: fakeBlocks()}
	s := serveFake(t, saved, PageRange{Block: 1, First: 900, Count: 40})
	if err := errors.Join(s.load(), <-s.err, s.complete()); err != nil {
		t.Fatal(err)
	}
	for i, p := range s.order[:40] {
		if p.block != 1 || p.number < 900 || p.number >= 940 {
			t.Errorf("page %d of block %d came as number %d", p.number, p.block, i)
		}
	}
}

func TestPageServerFails(t *testing.T) {
	boom := errors.New("disk on fire")
	for name, c := range map[string]struct {
		saved *fakeSaved
		hot   []PageRange
		do    func(s *serverTest) error
		want  string
		page  *PageError
	}{
		"demanded page": {
			saved: &fakeSaved{
				page: func(context.Context, int, uint64) error { return boom },
				each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() },
			},
			do: func(s *serverTest) error { return s.ask(1, 17) }, want: `page 17 of block "pc.ram"`, page: &PageError{Block: ramBlock, Number: 17},
		},
		"background page": {
			saved: &fakeSaved{each: func(_ context.Context, block int, n uint64) error {
				if block == 1 && n == 4 {
					return boom
				}
				return nil
			}},
			want: `page 4 of block "pc.ram"`, page: &PageError{Block: ramBlock, Number: 4},
		},
		"hot page": {
			saved: &fakeSaved{page: func(context.Context, int, uint64) error { return boom }},
			hot:   []PageRange{{Block: 1, First: 9, Count: 1}}, want: `page 9 of block "pc.ram"`, page: &PageError{Block: ramBlock, Number: 9},
		},
		"qemu ends": {
			saved: &fakeSaved{each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }},
			do:    func(s *serverTest) error { return s.conn.Close() }, want: "qemu ended the connection while memory was still missing",
		},
		"qemu gives up": {
			saved: &fakeSaved{each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }},
			do: func(s *serverTest) error {
				_, err := s.conn.Write([]byte{0, 1, 0, 4, 0, 0, 0, 1})
				return err
			},
			want: "qemu could not take the guest's memory (status 1)",
		},
		"qemu ends too early": {
			saved: &fakeSaved{each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }},
			do: func(s *serverTest) error {
				_, err := s.conn.Write([]byte{0, 1, 0, 4, 0, 0, 0, 0})
				return err
			},
			want: "qemu ended the restore while memory was still missing",
		},
		"nonsense": {
			saved: &fakeSaved{each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }},
			do: func(s *serverTest) error {
				_, err := s.conn.Write(bytes.Repeat([]byte{0xff}, 100))
				return err
			},
			want: "return path, byte 0",
		},
		"cancelled": {
			saved: &fakeSaved{each: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }},
			do:    func(s *serverTest) error { s.stop(); return nil }, want: "context canceled",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.saved.blocks = fakeBlocks()
			s := serveFake(t, c.saved, c.hot...)
			loaded := make(chan error, 1)
			go func() { loaded <- s.load() }()
			if c.do != nil {
				if err := c.do(s); err != nil {
					t.Fatal(err)
				}
			}
			err := <-s.err
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var p *PageError
			if errors.As(err, &p) != (c.page != nil) || c.page != nil && (p.Block != c.page.Block || p.Number != c.page.Number || !errors.Is(err, boom)) {
				t.Errorf("page error %v, want %v", p, c.page)
			}
			if <-loaded == nil {
				t.Error("QEMU was told that all is there")
			}
		})
	}
}

// A demand overtakes the background at the connection.
func TestLaneLetsUrgentPass(t *testing.T) {
	l := newLane()
	l.enter(false)
	var order []string
	var wg sync.WaitGroup
	wait := func(want func() bool) {
		for ok := false; !ok; {
			l.mu.Lock()
			ok = want()
			l.mu.Unlock()
		}
	}
	wg.Go(func() { l.enter(false); order = append(order, "bulk"); l.leave() })
	wg.Go(func() { l.enter(true); order = append(order, "urgent"); l.leave() })
	wait(func() bool { return l.urgent == 1 })
	l.leave()
	wg.Wait()
	if strings.Join(order, " ") != "urgent bulk" {
		t.Errorf("order %v", order)
	}
	l.ask()
	l.ask()
	begin := time.Now()
	l.yield(t.Context(), time.Millisecond)
	if time.Since(begin) < time.Millisecond {
		t.Error("the background did not wait while pages were asked for")
	}
	wg.Go(func() { l.yield(t.Context(), time.Hour) })
	l.answered()
	l.answered()
	wg.Wait()
	l.yield(t.Context(), time.Hour)
}

func TestLatencies(t *testing.T) {
	var l latencies
	for range 990 {
		l.note(100 * time.Microsecond)
	}
	for range 10 {
		l.note(10 * time.Millisecond)
	}
	n, mean, p99, most := l.figures()
	if n != 1000 || mean != 199*time.Microsecond || p99 != 128*time.Microsecond || most != 10*time.Millisecond {
		t.Errorf("%d, %v, %v, %v", n, mean, p99, most)
	}
}
