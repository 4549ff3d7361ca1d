package fsys_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

// each runs a test on the real file system and on the one for tests, which
// must not differ in what the store relies on.
func each(t *testing.T, test func(t *testing.T, f fsys.FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, fsys.OS{}, t.TempDir()) })
	t.Run("faultfs", func(t *testing.T) {
		f := faultfs.New()
		if err := f.MakeRoot("/d"); err != nil {
			t.Fatal(err)
		}
		test(t, f, "/d")
	})
}

func TestContract(t *testing.T) {
	each(t, func(t *testing.T, f fsys.FS, dir string) {
		path := func(name string) string { return filepath.Join(dir, name) }
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		want := func(err, target error) {
			t.Helper()
			if !errors.Is(err, target) {
				t.Fatalf("got %v, want %v", err, target)
			}
		}
		must(f.MakeRoot(path("root/a/b")))
		must(f.MakeRoot(path("root/a/b")))
		must(f.Restrict(path("root")))
		must(fsys.MkdirIfMissing(f, path("x")))
		must(fsys.MkdirIfMissing(f, path("x")))
		want(f.Mkdir(path("x")), fs.ErrExist)
		want(f.Mkdir(path("no/x")), fs.ErrNotExist)

		must(fsys.WriteFile(f, path("x/one"), []byte("hello")))
		want(fsys.WriteFile(f, path("x/one"), nil), fs.ErrExist)
		b, err := fsys.ReadFile(f, path("x/one"), 5)
		must(err)
		if string(b) != "hello" {
			t.Fatalf("read %q", b)
		}
		if _, err := fsys.ReadFile(f, path("x/one"), 4); err == nil {
			t.Fatal("a file above the limit was read")
		}
		_, err = fsys.ReadFile(f, path("x/two"), 5)
		want(err, fs.ErrNotExist)

		open, err := f.Open(path("x/one"))
		must(err)
		if n, err := open.ReadAt(make([]byte, 10), 3); n != 2 || !errors.Is(err, io.EOF) {
			t.Fatalf("read at the end: %d, %v", n, err)
		}
		must(fsys.WriteFile(f, path("x/two"), []byte("two")))
		must(f.Rename(path("x/two"), path("x/one")))
		must(f.SyncDir(path("x")))
		old := make([]byte, 5)
		if _, err := open.ReadAt(old, 0); err != nil || string(old) != "hello" {
			t.Fatalf("open file after it was replaced: %q, %v", old, err)
		}
		must(open.Close())
		info, err := f.Stat(path("x/one"))
		must(err)
		if info.Size != 3 || info.Dir || info.ModTime.IsZero() {
			t.Fatalf("%+v", info)
		}

		must(f.Mkdir(path("y")))
		want(f.Rename(path("y"), path("x")), fs.ErrExist)
		want(f.Remove(path("x")), syscall.ENOTEMPTY)
		must(fsys.WriteFile(f, path("x/a"), nil))
		names, err := f.ReadDir(path("x"))
		must(err)
		if !slices.Equal(names, []string{"a", "one"}) {
			t.Fatalf("names %q", names)
		}
		must(fsys.RemoveAll(f, path("x")))
		must(fsys.RemoveAll(f, path("x")))
		_, err = f.Stat(path("x"))
		want(err, fs.ErrNotExist)
		want(f.Remove(path("x")), fs.ErrNotExist)
		_, err = f.Open(path("x"))
		want(err, fs.ErrNotExist)
		if free, err := f.Free(dir); err != nil || free <= 0 {
			t.Fatalf("free: %d, %v", free, err)
		}
	})
}

func TestFile(t *testing.T) {
	each(t, func(t *testing.T, f fsys.FS, dir string) {
		w, err := f.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("0123456789"), 1000)
		for part := range slices.Chunk(want, 999) {
			if err := fsys.WriteAll(w, part); err != nil {
				t.Fatal(err)
			}
		}
		w.DropCache()
		for _, err := range []error{w.WriteBack(0, 5000, false), w.WriteBack(0, 5000, true), w.Sync()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(want))
		if _, err := w.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("reading back: %v", err)
		}
		if n, err := w.Size(); err != nil || n != int64(len(want)) {
			t.Fatalf("size %d, %v", n, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestScratch(t *testing.T) {
	each(t, func(t *testing.T, f fsys.FS, dir string) {
		path := filepath.Join(dir, "scratch")
		for _, w := range []struct {
			text string
			off  int64
			want string
		}{{"end", 5, "\x00\x00\x00\x00\x00end"}, {"abcdef", 0, "abcdefnd"}} {
			s, err := f.OpenScratch(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.WriteAt([]byte(w.text), w.off); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8)
			if _, err := s.ReadAt(b, 0); err != nil || string(b) != w.want {
				t.Fatalf("%q, %v, want %q", b, err, w.want)
			}
			if size, err := s.Size(); size != 8 || err != nil {
				t.Fatal(size, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.OpenScratch(dir); err == nil {
			t.Fatal("a directory was opened for writing")
		}
	})
}

func TestLock(t *testing.T) {
	each(t, func(t *testing.T, f fsys.FS, dir string) {
		path := filepath.Join(dir, "lock")
		l, err := f.Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Lock(path); !errors.Is(err, fsys.ErrLocked) {
			t.Fatalf("second lock: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, err = f.Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestErrorsSayWhat(t *testing.T) {
	each(t, func(t *testing.T, f fsys.FS, dir string) {
		for _, err := range []error{
			f.Remove(filepath.Join(dir, "absent")),
			f.SyncDir(filepath.Join(dir, "absent")),
		} {
			if err == nil || !strings.Contains(err.Error(), "absent") {
				t.Errorf("error without the path: %v", err)
			}
		}
	})
}
