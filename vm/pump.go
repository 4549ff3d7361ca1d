package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Sink takes the bytes of a snapshot. Write may block, which holds the copy up
// once the snapshot's buffer is full. It is ended once: by Close after the last
// Write when the snapshot is complete, or, when it is not, by CloseWithError
// for a sink that has this method (as *io.PipeWriter) and else by Close too; it
// must then learn from Snapshot.Wait that what it got is not complete. A sink
// that is ended early must let a Write that blocks return.
type Sink interface {
	io.Writer
	Close() error
}

type errCloser interface{ CloseWithError(err error) error }

const (
	// QEMU writes pieces of 9 bytes and up; one read takes all that is there.
	chunkSize = 1 << 20
	// minChunk is what an idle sink is woken for.
	minChunk = 64 << 10
	// flowMark is an amount of stream that cannot be reached before the
	// first RAM PART section: header and RAM set-up take less than 1 KB, and
	// the device state comes last.
	flowMark = 32 << 10
	// DefaultBuffer is the memory that a snapshot buffers between QEMU and
	// the sink, in bytes.
	DefaultBuffer = 64 << 20
)

// pump accepts one connection of QEMU and moves the stream to the sink. It
// reads to the end whatever happens to the sink, because a background snapshot
// whose stream is not read freezes the guest.
type pump struct {
	path string
	l    net.Listener
	sink Sink

	full chan []byte // chunks for the sink, in order
	free chan []byte // empty chunks; nil entries are not allocated yet

	bytes   atomic.Int64
	flowing chan struct{} // flowMark passed, or the stream ended
	drop    chan struct{} // closed: the rest of the stream is thrown away
	dropped sync.Once

	mu      sync.Mutex
	gate    chan struct{} // not nil: reading waits until it is closed
	holdAt  int64         // hold when bytes reach this; 0 never
	readErr error
	sinkErr error

	readDone chan struct{} // stream at its end
	done     chan struct{} // and all of it given to the sink
}

// newPump listens at path. buffer is the bound of buffered bytes.
func newPump(ctx context.Context, path string, sink Sink, buffer int) (*pump, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshot socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("snapshot socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("snapshot socket: %w", err)
	}
	if buffer <= 0 {
		buffer = DefaultBuffer
	}
	n := max(buffer/chunkSize, 2)
	p := &pump{
		path: path, l: l, sink: sink,
		full: make(chan []byte, n), free: make(chan []byte, n),
		flowing: make(chan struct{}), drop: make(chan struct{}),
		readDone: make(chan struct{}), done: make(chan struct{}),
	}
	for range n {
		p.free <- nil
	}
	go p.read()
	go p.write()
	return p, nil
}

func (p *pump) read() {
	defer close(p.readDone)
	defer close(p.full)
	err := p.stream()
	p.mu.Lock()
	p.readErr = err
	p.mu.Unlock()
	select {
	case <-p.flowing:
	default:
		close(p.flowing)
	}
}

func (p *pump) stream() error {
	conn, err := p.l.Accept()
	_ = p.l.Close() // one stream per snapshot
	if err != nil {
		return fmt.Errorf("accept snapshot stream: %w", err)
	}
	defer func() { _ = conn.Close() }()
	var buf []byte
	n := 0
	var total int64
	for {
		p.waitGate(total)
		if buf == nil {
			buf = p.chunk()
			n = 0
		}
		k, err := conn.Read(buf[n:])
		n += k
		total += int64(k)
		p.bytes.Store(total)
		if total >= flowMark && total-int64(k) < flowMark {
			close(p.flowing)
		}
		if n == len(buf) || n >= minChunk && len(p.full) == 0 || err != nil && n > 0 {
			buf = p.hand(buf, n)
			n = 0
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read snapshot stream: %w", err)
		}
	}
}

// chunk returns an empty chunk, waiting for the sink when all are in use.
func (p *pump) chunk() []byte {
	select {
	case b := <-p.free:
		if b != nil {
			return b[:chunkSize]
		}
	case <-p.drop:
	}
	return make([]byte, chunkSize)
}

// hand gives the first n bytes of buf to the sink. It returns buf when the
// stream is being thrown away, else nil. A chunk was taken from free, so full
// has room.
func (p *pump) hand(buf []byte, n int) []byte {
	select {
	case <-p.drop:
		return buf
	default:
	}
	select {
	case p.full <- buf[:n]:
		return nil
	case <-p.drop:
		return buf
	}
}

func (p *pump) write() {
	defer close(p.done)
	for b := range p.full {
		select {
		case <-p.drop:
		default:
			if p.sinkError() == nil {
				if _, err := p.sink.Write(b); err != nil {
					p.mu.Lock()
					p.sinkErr = fmt.Errorf("write snapshot: %w", err)
					p.mu.Unlock()
				}
			}
		}
		select {
		case p.free <- b:
		default: // a chunk made while throwing away
		}
	}
}

func (p *pump) sinkError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sinkErr
}

// err is the first thing that went wrong with the stream or the sink.
func (p *pump) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.sinkErr, p.readErr)
}

// holdAfter stops reading, and with it QEMU's writing, n bytes from now.
func (p *pump) holdAfter(n int64) {
	p.mu.Lock()
	p.holdAt = p.bytes.Load() + n
	p.mu.Unlock()
}

// release lets reading go on until the next holdAfter.
func (p *pump) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holdAt = 0
	if p.gate != nil {
		close(p.gate)
		p.gate = nil
	}
}

// allow lets n more bytes be read and returns when they have been, or when
// none come for a while because the writer has nothing more to say.
func (p *pump) allow(ctx context.Context, n int64) error {
	p.mu.Lock()
	p.holdAt = p.bytes.Load() + n
	want := p.holdAt
	if p.gate != nil {
		close(p.gate)
		p.gate = nil
	}
	p.mu.Unlock()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for last, quiet := int64(-1), 0; p.bytes.Load() < want && quiet < allowQuiet; {
		select {
		case <-tick.C:
		case <-p.readDone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if now := p.bytes.Load(); now != last {
			last, quiet = now, 0
		} else {
			quiet++
		}
	}
	return nil
}

// allowQuiet is how many milliseconds without a byte end allow.
const allowQuiet = 20

func (p *pump) waitGate(total int64) {
	p.mu.Lock()
	if p.holdAt == 0 || total < p.holdAt {
		p.mu.Unlock()
		return
	}
	if p.gate == nil {
		p.gate = make(chan struct{})
	}
	gate := p.gate
	p.mu.Unlock()
	select {
	case <-gate:
	case <-p.drop:
	}
}

// discard throws away what is still to come; reading goes on to the end.
func (p *pump) discard() {
	p.dropped.Do(func() { close(p.drop) })
}

// closeListener ends a pump to which QEMU did not connect.
func (p *pump) closeListener() {
	_ = p.l.Close()
	_ = os.Remove(p.path)
}

// closeSink ends the sink after done; cause nil means that all is well.
func (p *pump) closeSink(cause error) error {
	if c, ok := p.sink.(errCloser); ok && cause != nil {
		return c.CloseWithError(cause)
	}
	return p.sink.Close()
}
