package serial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

func TestScannerFindsRecordsInGarbage(t *testing.T) {
	data := record{kind: kindData, session: 7, seq: 3, payload: []byte("hello")}
	syn := record{kind: kindSyn, session: 9}
	whole := appendRecord(nil, data)
	tests := map[string]struct {
		in   []byte
		want []record
	}{
		"plain":              {whole, []record{data}},
		"two":                {append(bytes.Clone(whole), appendRecord(nil, syn)...), []record{data, syn}},
		"garbage before":     {append([]byte("\x00\xf5VFTgarbage"), whole...), []record{data}},
		"cut head":           {append(bytes.Clone(whole[5:]), whole...), []record{data}},
		"cut tail, then syn": {append(bytes.Clone(whole[:len(whole)-2]), appendRecord(nil, syn)...), []record{syn}},
		"cut tail, cut syn, then syn": {
			append(append(appendRecord(nil, record{kind: kindData, session: 1, payload: make([]byte, 9000)})[:400],
				appendRecord(nil, syn)[:20]...), appendRecord(nil, syn)...),
			[]record{syn},
		},
		"bit flip": {append(flip(whole, headerSize+1), appendRecord(nil, syn)...), []record{syn}},
		"length of 4 GiB": {
			append(append(bytes.Clone(whole[:24]), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0), whole...),
			[]record{data},
		},
		"half a magic at the end": {append(bytes.Clone(whole), magic[:4]...), []record{data}},
	}
	for name, tt := range tests {
		for _, step := range []int{1, 7, 1 << 20} {
			var s scanner
			var got []record
			for in := tt.in; len(in) > 0; {
				n := min(step, len(in))
				s.feed(in[:n])
				in = in[n:]
				for {
					r, ok := s.next()
					if !ok {
						break
					}
					r.payload = bytes.Clone(r.payload)
					got = append(got, r)
				}
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%s, step %d: got %d records, want %d", name, step, len(got), len(tt.want))
			}
			for i, w := range tt.want {
				g := got[i]
				if g.kind != w.kind || g.session != w.session || g.seq != w.seq || !bytes.Equal(g.payload, w.payload) {
					t.Errorf("%s, step %d: record %d is %+v, want %+v", name, step, i, g, w)
				}
			}
		}
	}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// FuzzScanner checks that no input makes the scanner fail or hold on to more
// than one record, and that a SYN is always found in the end.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("x"), uint8(1))
	f.Add(appendRecord(nil, record{kind: kindData, session: 1, payload: []byte("abc")})[:33], uint8(5))
	f.Add(appendRecord(nil, record{kind: kindSyn, session: 1})[:31], uint8(5))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var s scanner
		feed := func(b []byte) (last record) {
			for len(b) > 0 {
				n := min(int(step)+1, len(b))
				s.feed(b[:n])
				b = b[n:]
				for {
					r, ok := s.next()
					if !ok {
						break
					}
					last = r
				}
				if len(s.buf) > headerSize+MaxPayload+int(step)+1 {
					t.Fatalf("scanner holds %d bytes", len(s.buf))
				}
			}
			return last
		}
		feed(in)
		if last := feed(appendRecord(nil, record{kind: kindSyn, session: 42})); last.session != 42 {
			t.Fatal("the SYN behind the garbage was not found")
		}
	})
}

// wire joins a Listener with a dial function.
func wire(t *testing.T) (*Listener, func() net.Conn) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &switchPort{ctx: ctx}
	l := NewListener(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		p.set(nil)
		<-done
	})
	return l, func() net.Conn {
		a, b := net.Pipe()
		p.set(b)
		return a
	}
}

func echo(l *Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			_, _ = io.Copy(c, c)
		}()
	}
}

func TestSessionCarriesData(t *testing.T) {
	l, dial := wire(t)
	go echo(l)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, dial())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	want := make([]byte, 3*MaxPayload+17)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	go func() { _, _ = c.Write(want) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the echo differs")
	}
}

func TestNewSessionEndsTheOld(t *testing.T) {
	l, dial := wire(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	first, err := Dial(ctx, dial())
	if err != nil {
		t.Fatal(err)
	}
	old := <-accepted
	// The host's process dies in the middle of a record and another one dials.
	second, err := Dial(ctx, dial())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
		t.Fatalf("the old session's read: %v, want ErrReset", err)
	}
	if _, err := old.Write([]byte("x")); !errors.Is(err, ErrReset) {
		t.Fatalf("the old session's write: %v, want ErrReset", err)
	}
	_ = first.Close()
	c := <-accepted
	go func() { _, _ = c.Write([]byte("new")) }()
	got := make([]byte, 3)
	if _, err := io.ReadFull(second, got); err != nil || string(got) != "new" {
		t.Fatalf("the new session: %q, %v", got, err)
	}
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _ = b.Close() }()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, a); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the context's error", err)
	}
}

func TestLostRecordResetsTheSession(t *testing.T) {
	l := &line{w: io.Discard}
	c := newConn(l, 1, nil)
	if !c.deliver(record{seq: 0, payload: []byte("a")}, false) {
		t.Fatal("the first record was refused")
	}
	if c.deliver(record{seq: 2, payload: []byte("c")}, false) {
		t.Fatal("a gap was not noticed")
	}
	b := make([]byte, 4)
	if n, err := c.Read(b); n != 1 || err != nil {
		t.Fatalf("data before the gap: %d, %v", n, err)
	}
	if _, err := c.Read(b); !errors.Is(err, ErrReset) {
		t.Fatalf("got %v, want ErrReset", err)
	}
}

func TestReadDeadline(t *testing.T) {
	c := newConn(&line{w: io.Discard}, 1, nil)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	var ne net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("got %v, want a time-out", err)
	}
}
