// Package backendtest has the tests that every backend must pass.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// Place is an empty place for one test.
type Place struct {
	// Open returns another handle, as another process would have it. It is
	// closed when the test ends.
	Open func(t *testing.T) backend.Backend
	// Lose takes away the directory or bucket itself, with all that is in it.
	Lose func(t *testing.T)
}

// Run runs all tests, each on a place of its own.
func Run(t *testing.T, newPlace func(t *testing.T) Place) {
	for name, test := range map[string]func(*testing.T, Place){
		"objects": testObjects, "ranges": testRanges, "absent": testAbsent, "names": testNames, "prefixes": testPrefixes,
		"list ends with an error": testListError, "replace": testReplace, "reader fails": testReaderFails,
		"cancelled": testCancelled, "one name": testOneName, "many names": testManyNames, "sweep": testSweep, "lost": Lost,
	} {
		t.Run(name, func(t *testing.T) { test(t, newPlace(t)) })
	}
}

// Content returns n bytes that do not repeat and depend on seed.
func Content(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Put puts b or fails the test.
func Put(t *testing.T, s backend.Backend, name string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// Want fails the test unless name holds b.
func Want(t *testing.T, s backend.Backend, name string, b []byte) {
	t.Helper()
	got, err := backend.ReadAll(t.Context(), s, name, int64(len(b))+1)
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%s: read %d bytes, %v; want %d other ones", name, len(got), err, len(b))
	}
}

// Names lists names, sorted.
func Names(t *testing.T, s backend.Backend, prefix string) []string {
	t.Helper()
	var names []string
	if err := s.List(t.Context(), prefix, func(info backend.Info) error {
		names = append(names, info.Name)
		return nil
	}); err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	slices.Sort(names)
	return names
}

func testObjects(t *testing.T, p Place) {
	s, other := p.Open(t), p.Open(t)
	for i, size := range []int{0, 1, 4095, 1 << 20, 1<<20 + 1, 8 << 20, 8<<20 + 1, 20<<20 + 7} {
		name, b := fmt.Sprintf("packs/%d", i), Content(size, uint64(size))
		Put(t, s, name, b)
		Want(t, other, name, b)
		info, err := other.Stat(t.Context(), name)
		if err != nil || info.Name != name || info.Size != int64(size) || time.Since(info.Modified).Abs() > time.Hour {
			t.Fatalf("%+v, %v", info, err)
		}
		if got := Names(t, other, "packs/"); len(got) != i+1 {
			t.Fatalf("after %d puts: %q", i+1, got)
		}
		if err := s.List(t.Context(), name, func(listed backend.Info) error {
			if listed.Name != name || listed.Size != int64(size) || listed.Modified.Sub(info.Modified).Abs() > time.Second {
				t.Errorf("listed as %+v, is %+v", listed, info)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Delete(t.Context(), "packs/3"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "packs/3"); !errors.Is(err, backend.ErrNotExist) {
		t.Fatalf("after delete: %v", err)
	}
}

func testRanges(t *testing.T, p Place) {
	s := p.Open(t)
	b := Content(3<<20, 1)
	Put(t, s, "o", b)
	for _, r := range []struct{ off, n, want int }{
		{0, 1, 1},
		{0, len(b), len(b)},
		{len(b) - 1, 1, 1},
		{1 << 20, 2 << 20, 2 << 20},
		{0, len(b) + 1, len(b)},
		{len(b) - 10, 100, 10},
		{len(b), 1, 0},
		{len(b) + 100, 10, 0},
		{5, 0, 0},
	} {
		p := make([]byte, r.n)
		n, err := s.ReadAt(t.Context(), "o", p, int64(r.off))
		if n != r.want || (n < r.n) != errors.Is(err, io.EOF) || (n == r.n) != (err == nil) {
			t.Fatalf("%+v: %d, %v", r, n, err)
		}
		if n > 0 && !bytes.Equal(p[:n], b[r.off:r.off+n]) {
			t.Fatalf("%+v: other bytes", r)
		}
	}
	if _, err := s.ReadAt(t.Context(), "o", make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("negative offset: %v", err)
	}
	Put(t, s, "empty", nil)
	if n, err := s.ReadAt(t.Context(), "empty", make([]byte, 4), 0); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("empty object: %d, %v", n, err)
	}
	if _, err := backend.ReadAll(t.Context(), s, "o", int64(len(b))-1); err == nil {
		t.Fatal("an object above the limit was read")
	}
}

func testAbsent(t *testing.T, p Place) {
	s := p.Open(t)
	if got := Names(t, s, ""); len(got) != 0 {
		t.Fatalf("not empty at first: %q", got)
	}
	for _, name := range []string{"a", "a/b/c"} {
		_, statErr := s.Stat(t.Context(), name)
		_, readErr := s.ReadAt(t.Context(), name, make([]byte, 1), 0)
		for _, err := range []error{statErr, readErr} {
			if !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), s.String()) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	Put(t, s, "a/b", nil)
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("directory of an object: %v", err)
	}
}

func testNames(t *testing.T, p Place) {
	s := p.Open(t)
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".tmp", ".tmp/x", "a/.b", "a b", "ä", "a\x00", "a\\b", strings.Repeat("a", 241), strings.Repeat("a/", 240) + "a"} {
		_, statErr := s.Stat(t.Context(), name)
		_, readErr := s.ReadAt(t.Context(), name, nil, 0)
		putErr := s.Put(t.Context(), name, 0, bytes.NewReader(nil))
		for op, err := range map[string]error{"stat": statErr, "read": readErr, "put": putErr, "delete": s.Delete(t.Context(), name)} {
			if !errors.Is(err, backend.ErrName) {
				t.Errorf("%s %.20q: %v", op, name, err)
			}
		}
	}
	if err := s.List(t.Context(), "../", nil); !errors.Is(err, backend.ErrName) {
		t.Errorf("list: %v", err)
	}
	if err := s.Put(t.Context(), "a", -1, bytes.NewReader(nil)); err == nil {
		t.Error("a negative size was taken")
	}
	for _, name := range []string{"a", "A", "0.1-2_3", strings.Repeat("a", 240), strings.Repeat("a/", 239) + "a"} {
		Put(t, s, name, []byte(name))
		Want(t, s, name, []byte(name))
		if err := s.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func testPrefixes(t *testing.T, p Place) {
	s := p.Open(t)
	all := []string{"a", "b/c", "b/cc/d", "b/cc/e", "b-c", "parts/job/1.0.x", "parts/job/10.0.x", "parts/job2/1.0.x"}
	for _, name := range all {
		Put(t, s, name, nil)
	}
	for _, prefix := range []string{"", "a", "b", "b/", "b/c", "b/cc", "b/cc/", "b/cc/d", "b/cc/dd", "parts/", "parts/job", "parts/job/", "parts/job/1", "parts/job/1.", "c", "a/", "a/b"} {
		var want []string
		for _, name := range all {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		slices.Sort(want)
		if got := Names(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
}

func testListError(t *testing.T, p Place) {
	s := p.Open(t)
	for i := range 20 {
		Put(t, s, fmt.Sprintf("d/%d", i), nil)
	}
	stop, calls := fmt.Errorf("stop: %w", backend.ErrNotExist), 0
	err := s.List(t.Context(), "d/", func(info backend.Info) error {
		if calls++; calls == 3 {
			return stop
		}
		return s.Delete(t.Context(), info.Name)
	})
	if !errors.Is(err, stop) || calls != 3 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	if got := Names(t, s, ""); len(got) != 18 {
		t.Fatalf("%d left", len(got))
	}
}

func testReplace(t *testing.T, p Place) {
	s := p.Open(t)
	for i, size := range []int{9 << 20, 3, 0, 10 << 20, 10 << 20} {
		b := Content(size, uint64(i))
		Put(t, s, "x/o", b)
		Want(t, s, "x/o", b)
	}
	if got := Names(t, s, ""); !slices.Equal(got, []string{"x/o"}) {
		t.Fatalf("%q", got)
	}
}

var errDisk = errors.New("disk of the reader")

// failing fails from off on.
type failing struct {
	io.ReaderAt
	off int64
	err error
}

// ReadAt implements io.ReaderAt.
func (r failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= r.off {
		return r.ReaderAt.ReadAt(p, off)
	}
	return 0, r.err
}

func testReaderFails(t *testing.T, p Place) {
	s := p.Open(t)
	old, b := Content(100, 1), Content(20<<20, 2)
	Put(t, s, "o", old)
	for _, off := range []int64{0, 5 << 20, 17 << 20} {
		var source *backend.SourceError
		err := s.Put(t.Context(), "o", int64(len(b)), failing{bytes.NewReader(b), off, errDisk})
		if !errors.Is(err, errDisk) || !errors.As(err, &source) {
			t.Fatalf("got %v", err)
		}
		err = s.Put(t.Context(), "o", int64(len(b)), failing{bytes.NewReader(b), off, io.EOF})
		if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &source) {
			t.Fatalf("got %v", err)
		}
		// The kind of the reader's error says nothing about the place.
		err = s.Put(t.Context(), "n", int64(len(b)), failing{bytes.NewReader(b), off, backend.ErrNoSpace})
		if !errors.As(err, &source) {
			t.Fatalf("got %v", err)
		}
	}
	if err := s.Put(t.Context(), "o", 101, bytes.NewReader(old)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("reader too short: %v", err)
	}
	Want(t, s, "o", old)
	if got := Names(t, s, ""); !slices.Equal(got, []string{"o"}) {
		t.Fatalf("%q", got)
	}
}

// cancelling cancels when it is read the second time.
type cancelling struct {
	io.ReaderAt
	mu     sync.Mutex
	reads  int
	cancel func()
}

// ReadAt implements io.ReaderAt.
func (r *cancelling) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	if r.reads++; r.reads == 2 {
		r.cancel()
	}
	r.mu.Unlock()
	return r.ReaderAt.ReadAt(p, off)
}

func testCancelled(t *testing.T, p Place) {
	s := p.Open(t)
	Put(t, s, "o", []byte("old"))
	ctx, cancel := context.WithCancel(t.Context())
	b := Content(40<<20, 1)
	err := s.Put(ctx, "o", int64(len(b)), &cancelling{ReaderAt: bytes.NewReader(b), cancel: cancel})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("put: %v", err)
	}
	Want(t, s, "o", []byte("old"))
	_, statErr := s.Stat(ctx, "o")
	_, readErr := s.ReadAt(ctx, "o", make([]byte, 1), 0)
	for op, err := range map[string]error{
		"stat": statErr, "read": readErr, "put": s.Put(ctx, "o", 0, bytes.NewReader(nil)), "delete": s.Delete(ctx, "o"),
		"list": s.List(ctx, "", func(backend.Info) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", op, err)
		}
	}
	Want(t, s, "o", []byte("old"))
}

// testOneName has several processes write one name while others read it: they
// see one or the other, whole.
func testOneName(t *testing.T, p Place) {
	const writers, rounds = 4, 5
	contents := make([][]byte, writers)
	for i := range contents {
		contents[i] = Content(300_000+i*7_000, uint64(i))
	}
	var wg sync.WaitGroup
	Put(t, p.Open(t), "d/o", contents[0])
	for i := range writers {
		w, r := p.Open(t), p.Open(t)
		wg.Go(func() {
			for range rounds {
				if err := w.Put(t.Context(), "d/o", int64(len(contents[i])), bytes.NewReader(contents[i])); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range rounds {
				b := make([]byte, 400_000)
				n, err := r.ReadAt(t.Context(), "d/o", b, 0)
				if !errors.Is(err, io.EOF) || !slices.ContainsFunc(contents, func(c []byte) bool { return bytes.Equal(c, b[:n]) }) {
					t.Errorf("read %d bytes that nobody wrote, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if got := Names(t, p.Open(t), ""); !slices.Equal(got, []string{"d/o"}) {
		t.Fatalf("%q", got)
	}
}

// testManyNames has several processes write, list and delete in the same
// directories.
func testManyNames(t *testing.T, p Place) {
	var wg sync.WaitGroup
	var want []string
	for i := range 4 {
		s := p.Open(t)
		for j := range 10 {
			if j%2 == 1 {
				want = append(want, fmt.Sprintf("job%d/%d", j, i))
			}
		}
		wg.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("job%d/%d", j, i)
				if err := s.Put(t.Context(), name, int64(len(name)), strings.NewReader(name)); err != nil {
					t.Errorf("put: %v", err)
				}
				if err := s.List(t.Context(), "job", func(backend.Info) error { return nil }); err != nil {
					t.Errorf("list: %v", err)
				}
				if j%2 == 1 {
					continue
				}
				if err := s.Delete(t.Context(), name); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	if got := Names(t, p.Open(t), ""); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func testSweep(t *testing.T, p Place) {
	s := p.Open(t)
	b := Content(9<<20, 1)
	Put(t, s, "a/o", b)
	if err := s.Sweep(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	Want(t, s, "a/o", b)
	if err := s.Delete(t.Context(), "a/o"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context(), -time.Hour); err != nil {
		t.Fatal(err)
	}
	Put(t, s, "a/o", b)
	Want(t, s, "a/o", b)
}

// Lost loses a place, and wants to be told so.
func Lost(t *testing.T, p Place) {
	s := p.Open(t)
	Put(t, s, "a/o", []byte("old"))
	p.Lose(t)
	_, statErr := s.Stat(t.Context(), "a/o")
	_, readErr := s.ReadAt(t.Context(), "a/o", make([]byte, 1), 0)
	for op, err := range map[string]error{
		"stat": statErr, "read": readErr, "put": s.Put(t.Context(), "a/o", 1, strings.NewReader("n")), "delete": s.Delete(t.Context(), "a/o"),
		"list": s.List(t.Context(), "a/", func(backend.Info) error { return nil }), "sweep": s.Sweep(t.Context(), 0),
	} {
		if !errors.Is(err, backend.ErrLost) || errors.Is(err, backend.ErrNotExist) {
			t.Errorf("%s: %v", op, err)
		}
	}
}
