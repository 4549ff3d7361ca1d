package dir

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/backend/backendtest"
)

func open(t *testing.T, files fsys.FS, path string) *Dir {
	t.Helper()
	d, err := Open(files, path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func place(files fsys.FS, path string) backendtest.Place {
	return backendtest.Place{
		Open: func(t *testing.T) backend.Backend { return open(t, files, path) },
		Lose: func(t *testing.T) {
			if err := fsys.RemoveAll(files, path); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Place { return place(fsys.OS{}, t.TempDir()) })
}

// When a file system goes away, its mount point stays, and is empty.
func TestUnmounted(t *testing.T) {
	path := t.TempDir()
	p := place(fsys.OS{}, path)
	p.Lose = func(t *testing.T) {
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	backendtest.Lost(t, p)
	if names, err := os.ReadDir(path); err != nil || len(names) != 0 {
		t.Errorf("written to the mount point: %q, %v", names, err)
	}
}

func TestOpen(t *testing.T) {
	path := t.TempDir()
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(path, "absent"), file} {
		_, err := Open(fsys.OS{}, bad, time.Now)
		if !errors.Is(err, backend.ErrLost) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestFilesArePrivate(t *testing.T) {
	path := t.TempDir()
	d := open(t, fsys.OS{}, path)
	backendtest.Put(t, d, "a/o", []byte("x"))
	for _, name := range []string{"a", "a/o"} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestErrorsHaveMeanings(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{
		syscall.ENOSPC: backend.ErrNoSpace, syscall.EDQUOT: backend.ErrNoSpace,
		syscall.EACCES: backend.ErrDenied, syscall.EROFS: backend.ErrDenied, syscall.ETIMEDOUT: backend.ErrUnreachable,
		syscall.EIO: syscall.EIO,
	} {
		files := memory(t)
		d := open(t, files, "/shared")
		for _, kind := range []string{"create", "write", "sync", "rename", "read"} {
			files.Inject(func(c faultfs.Call) error {
				if c.Kind == kind {
					return errno
				}
				return nil
			})
			err := d.Put(t.Context(), "a/o", 3, strings.NewReader("abc"))
			if !errors.Is(err, want) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "/shared") {
				t.Errorf("%v at %s: %v", errno, kind, err)
			}
		}
	}
}

func memory(t *testing.T) *faultfs.FS {
	t.Helper()
	files := faultfs.New()
	if err := files.MakeRoot("/shared"); err != nil {
		t.Fatal(err)
	}
	return files
}

// TestPutIsAtomic makes every call of a Put fail, and crashes there, with all
// that a crash may leave: the old or the new object is there, whole, and the
// new one when Put said so.
func TestPutIsAtomic(t *testing.T) {
	old, next := backendtest.Content(500, 1), backendtest.Content(1<<20+5, 2)
	for _, fault := range []error{faultfs.ErrCrash, faultfs.ErrShort, faultfs.ErrQuietShort, syscall.ENOSPC, syscall.EIO} {
		for _, name := range []string{"d/old", "new/dir/o"} {
			for n := 1; ; n++ {
				files := memory(t)
				d := open(t, files, "/shared")
				if name == "d/old" {
					backendtest.Put(t, d, name, old)
				}
				files.Inject(faultfs.FailAt(n, fault))
				err := d.Put(t.Context(), name, int64(len(next)), bytes.NewReader(next))
				done := files.Calls() < n
				if done && err != nil {
					t.Fatal(err)
				}
				for left, survival := range faultfs.Survivals() {
					after := files.AfterCrash(survival)
					got := after.Bytes("/shared/" + name)
					switch {
					case bytes.Equal(got, next):
					case err == nil:
						t.Fatalf("%v at call %d, crash leaves %s: Put said it was done", fault, n, left)
					case name == "d/old" && !bytes.Equal(got, old), name != "d/old" && got != nil:
						t.Fatalf("%v at call %d, crash leaves %s: %d bytes", fault, n, left, len(got))
					}
				}
				if done {
					break
				}
			}
		}
	}
}

func TestDamageWhileWritingIsFound(t *testing.T) {
	files := memory(t)
	d := open(t, files, "/shared")
	for name, distort := range map[string]func(b []byte) []byte{
		"bit":     func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"shorter": func(b []byte) []byte { return b[:len(b)-1] },
		"nothing": func([]byte) []byte { return nil },
	} {
		files.Distort(func(_ string, b []byte) []byte { return distort(b) })
		err := d.Put(t.Context(), "a/o", 2<<20, bytes.NewReader(make([]byte, 2<<20)))
		if !errors.Is(err, errReadBack) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left := files.Files("/shared"); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSweep(t *testing.T) {
	files := memory(t)
	var after time.Duration
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	d, err := Open(files, "/shared", func() time.Time { return start.Add(after) })
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Put(t, d, "jobs/1/o", []byte("x"))
	backendtest.Put(t, d, "jobs/2/o", []byte("x"))
	if err := d.Delete(t.Context(), "jobs/1/o"); err != nil {
		t.Fatal(err)
	}
	files.Inject(func(c faultfs.Call) error {
		if c.Kind == "rename" {
			return faultfs.ErrCrash
		}
		return nil
	})
	if err := d.Put(t.Context(), "o", 3, strings.NewReader("abc")); err == nil {
		t.Fatal("no crash")
	}
	files.Revive()
	count := func() int { return len(files.Files("/shared/" + tmpName)) }
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{0, 1}, {time.Hour, 1}, {25 * time.Hour, 0}} {
		after = step.after
		if err := d.Sweep(t.Context(), 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		if count() != step.left {
			t.Errorf("after %v: %d temporary files, want %d", after, count(), step.left)
		}
	}
	if _, err := files.Stat("/shared/jobs/1"); err == nil {
		t.Error("an empty directory stays")
	}
	backendtest.Want(t, d, "jobs/2/o", []byte("x"))
}

func TestDirectoriesThatCannotBeSynced(t *testing.T) {
	files := memory(t)
	d := open(t, files, "/shared")
	files.Inject(func(c faultfs.Call) error {
		if c.Kind == "syncdir" {
			return syscall.EINVAL
		}
		return nil
	})
	backendtest.Put(t, d, "a/o", []byte("x"))
	backendtest.Want(t, d, "a/o", []byte("x"))
}

// A Sweep may remove the directory of an object that is about to get its name.
func TestPutWhileDirectoriesGo(t *testing.T) {
	files := memory(t)
	d := open(t, files, "/shared")
	removed := 0
	files.Inject(func(c faultfs.Call) error {
		if c.Kind == "rename" && removed < 3 {
			removed++
			return syscall.ENOENT
		}
		return nil
	})
	backendtest.Put(t, d, "a/b/o", []byte("x"))
	backendtest.Want(t, d, "a/b/o", []byte("x"))
}

func BenchmarkPut(b *testing.B) {
	d, err := Open(fsys.OS{}, b.TempDir(), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	pack := backendtest.Content(64<<20, 1)
	b.SetBytes(int64(len(pack)))
	for b.Loop() {
		if err := d.Put(b.Context(), "packs/p", int64(len(pack)), bytes.NewReader(pack)); err != nil {
			b.Fatal(err)
		}
	}
}
