package vm

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"
)

type bufSink struct {
	bytes.Buffer
	closed int
	cause  error
}

func (s *bufSink) Close() error                     { s.closed++; return nil }
func (s *bufSink) CloseWithError(cause error) error { s.closed++; s.cause = cause; return nil }

func startPump(t *testing.T, sink Sink, buffer int) (*pump, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	p, err := newPump(t.Context(), path, sink, buffer)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); p.release(); <-p.done; p.closeListener() })
	return p, conn
}

func TestPumpKeepsBytes(t *testing.T) {
	noLeaks(t)
	sink := &bufSink{}
	p, conn := startPump(t, sink, 4<<20)
	want := make([]byte, 9<<20+17)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(want)
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(40000)) //nolint:gosec // test data
		if _, err := conn.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	_ = conn.Close()
	<-p.done
	if err := p.err(); err != nil || !bytes.Equal(sink.Bytes(), want) || p.bytes.Load() != int64(len(want)) {
		t.Errorf("%d bytes of %d, %v", sink.Len(), len(want), err)
	}
}

// A sink that fails does not stop the stream.
func TestPumpDrainsBehindBrokenSink(t *testing.T) {
	pr, pw := io.Pipe()
	_ = pr.CloseWithError(errors.New("disk full"))
	p, conn := startPump(t, pw, 2<<20)
	if _, err := conn.Write(make([]byte, 20<<20)); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	<-p.done
	if p.err() == nil || p.bytes.Load() != 20<<20 {
		t.Errorf("%d bytes, %v", p.bytes.Load(), p.err())
	}
}

// A sink that stalls fills a bounded buffer, and discard frees the stream.
func TestPumpBoundAndDiscard(t *testing.T) {
	pr, pw := io.Pipe()
	const buffer = 4 << 20
	p, conn := startPump(t, pw, buffer)
	wrote := make(chan error)
	go func() {
		_, err := conn.Write(make([]byte, 40<<20))
		_ = conn.Close()
		wrote <- err
	}()
	select {
	case err := <-wrote:
		t.Fatalf("40 MiB went into a stalled sink: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if n := p.bytes.Load(); n > buffer+chunkSize {
		t.Errorf("%d bytes are buffered, want at most %d", n, buffer)
	}
	p.discard()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	<-p.readDone
	_ = pr.Close()
	<-p.done
}

func TestPumpGate(t *testing.T) {
	sink := &bufSink{}
	p, conn := startPump(t, sink, 0)
	p.holdAfter(1)
	wrote := make(chan struct{})
	go func() {
		_, _ = conn.Write(make([]byte, 8<<20))
		_ = conn.Close()
		close(wrote)
	}()
	select {
	case <-wrote:
		t.Fatal("the gate is open")
	case <-time.After(50 * time.Millisecond):
	}
	p.release()
	<-wrote
	<-p.done
	if sink.Len() != 8<<20 {
		t.Errorf("%d bytes", sink.Len())
	}
}

func TestPumpWithoutConnection(t *testing.T) {
	noLeaks(t)
	p, err := newPump(t.Context(), filepath.Join(t.TempDir(), "s"), &bufSink{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.closeListener()
	<-p.done
	<-p.flowing
}
