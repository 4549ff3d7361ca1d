package wrapper

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// A pipe that stays silent does not keep the reader from ending, and nothing
// is taken from it before it is wanted.
func TestStdinFromAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	s := newInStream(r, t.TempDir())
	defer s.close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.read(ctx) }()
	if _, err := w.WriteString("hello world"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if s.size() != 0 {
		t.Fatal("read before it was wanted")
	}
	s.want(5)
	for from, want := range map[int64]string{0: "hello", 2: "llo"} {
		if got, eof, err := s.next(ctx, from, 100, nil); string(got) != want || eof || err != nil {
			t.Errorf("from %d: %q, %v, %v; want %q", from, got, eof, err, want)
		}
	}
	s.want(100)
	if got, _, err := s.next(ctx, 5, 100, nil); string(got) != " world" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	interrupt := make(chan struct{})
	close(interrupt)
	if got, eof, err := s.next(ctx, 11, 100, interrupt); len(got) != 0 || eof || err != nil {
		t.Errorf("interrupted: %q, %v, %v", got, eof, err)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the reader hangs in a silent pipe")
	}
}

func TestStdinEnds(t *testing.T) {
	s := newInStream(strings.NewReader("abc"), t.TempDir())
	defer s.close()
	s.want(100)
	s.read(t.Context())
	if got, eof, err := s.next(t.Context(), 1, 100, nil); string(got) != "bc" || !eof || err != nil {
		t.Errorf("%q, %v, %v", got, eof, err)
	}
	if got, eof, err := s.next(t.Context(), 3, 100, nil); len(got) != 0 || !eof || err != nil {
		t.Errorf("at the end: %q, %v, %v", got, eof, err)
	}
}
