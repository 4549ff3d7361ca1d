package outside

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/backend/dir"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3/s3test"
	"github.com/mpirun-vft/vft/ckpt/object"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openStore opens a node's store.
func openStore(t testing.TB, path string) *ckpt.Store {
	t.Helper()
	s, err := ckpt.Open(path, ckpt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newStore(t testing.TB) *ckpt.Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "store"))
}

// part is a part with known content.
type part struct {
	id       ckpt.PartID
	pages    map[uint64][]byte
	manifest string
}

const blockPages = 3 * 16_384

// newPart makes a part of so many pages; those of one seed are the same in all.
func newPart(epoch uint64, pages int, seed byte) *part {
	p := &part{id: ckpt.PartID{Job: "bt-mz.1", Epoch: epoch, Guest: 1}, pages: map[uint64][]byte{}}
	random := rand.NewChaCha8([32]byte{seed})
	for i := range uint64(pages) {
		page := make([]byte, object.PageSize)
		_, _ = random.Read(page[:object.PageSize/2]) // it can be compressed
		p.pages[i*3] = page
	}
	return p
}

func (p *part) put(t testing.TB, s *ckpt.Store) {
	t.Helper()
	w, err := s.Create(context.Background(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	_ = w.Head([]byte("head"), []ckpt.Block{{Name: "pc.ram", Length: blockPages * object.PageSize}})
	for _, n := range slices.Sorted(maps.Keys(p.pages)) {
		_ = w.Page(0, n, p.pages[n])
	}
	_ = w.Tail(bytes.Repeat([]byte("tail"), 40_000))
	info, err := w.Commit(context.Background(), ckpt.Meta{Incarnation: 1, Engine: "stop-copy", ChannelState: [][]byte{{1, 2, 3}}})
	if err != nil {
		t.Fatal(err)
	}
	p.manifest = info.Manifest
}

// check reads the part from a store and compares it.
func (p *part) check(s *ckpt.Store) error {
	r, err := s.Open(p.id, p.manifest)
	if err != nil {
		return err
	}
	defer r.Close()
	got := 0
	if err := r.Each(context.Background(), 0, func(n uint64, data []byte) error {
		got++
		if !bytes.Equal(data, p.pages[n]) {
			return fmt.Errorf("page %d differs", n)
		}
		return nil
	}); err != nil {
		return err
	}
	if got != len(p.pages) {
		return fmt.Errorf("%d pages, %d expected", got, len(p.pages))
	}
	tail, err := r.Tail(context.Background())
	if err == nil && len(tail) != 160_000 {
		err = fmt.Errorf("tail of %d bytes", len(tail))
	}
	return err
}

// fetch reads the part from a level into an empty store, and compares it.
func (p *part) fetch(t testing.TB, l *Level) error {
	t.Helper()
	s := newStore(t)
	if _, _, err := s.Fetch(t.Context(), p.id, p.manifest, l.Source(p.id, p.manifest)); err != nil {
		return err
	}
	return p.check(s)
}

func (p *part) mustFetch(t testing.TB, l *Level) {
	t.Helper()
	if err := p.fetch(t, l); err != nil {
		t.Fatal(err)
	}
}

func mustPut(t testing.TB, l *Level, s *ckpt.Store, p *part) int64 {
	t.Helper()
	n, err := l.Put(context.Background(), s, p.id, p.manifest, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// dirLevel is a level in a directory. Its backend can be wrapped.
func dirLevel(t testing.TB, path string, opt Options, wrap ...func(backend.Backend) backend.Backend) *Level {
	t.Helper()
	var b backend.Backend
	b, err := dir.Open(fsys.OS{}, path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrap {
		b = w(b)
	}
	l := New(b, opt)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// onEach runs a test on a directory and on a bucket.
func onEach(t *testing.T, test func(t *testing.T, open func() *Level)) {
	t.Run("dir", func(t *testing.T) {
		path := t.TempDir()
		test(t, func() *Level { return dirLevel(t, path, Options{}) })
	})
	t.Run("s3", func(t *testing.T) {
		cfg := s3test.Start(t).Bucket(t, "bucket")
		cfg.Prefix = "some/prefix"
		test(t, func() *Level {
			b, err := s3.New(cfg, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			l := New(b, Options{})
			t.Cleanup(func() { _ = l.Close() })
			return l
		})
	})
}

// names lists what is at a level.
func names(t testing.TB, l *Level, prefix string) []string {
	t.Helper()
	var all []string
	if err := l.b.List(context.Background(), prefix, func(i backend.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// age makes files look older.
func age(t testing.TB, dir, prefix string, by time.Duration) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, prefix, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if err := os.Chtimes(f, time.Time{}, time.Now().Add(-by)); err != nil {
			t.Fatal(err)
		}
	}
}

// edit changes a file.
func edit(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 1 << (at % 8)
		return b
	}
}
