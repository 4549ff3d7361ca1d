package wrapper

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		dir, name, want string
		ok              bool
	}{
		{"/home/u/run", "home/u/run/out", "out", true},
		{"/home/u/run", "/home/u/run/a/b/", "a/b", true},
		{"/home/u/run", "home/u/run/", ".", true},
		{"/home/u/run", "./out", "out", true},
		{"/home/u/run", "out/../x", "x", true},
		{"/home/u/run", "/etc/passwd", "", false},
		{"/home/u/run", "../x", "", false},
		{"/home/u/run", "home/u/run/../../x", "home/x", true},
		{"/home/u/run", "a\x00b", "", false},
		{"/home/u/run", "home/u/runner", "home/u/runner", true},
	} {
		got, ok := below(tt.dir, tt.name)
		if got != tt.want || ok != tt.ok {
			t.Errorf("below(%q, %q) = %q, %v; want %q, %v", tt.dir, tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text = h.Linkname // the content, for short
			h.Linkname, h.Size = "", int64(len(text))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(t testing.TB, dir string) *os.Root {
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func all(string) bool { return true }

func TestUntar(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("target", "stays")
	if err := os.Symlink("target", filepath.Join(dir, "was-link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1e9, 0)
	data := archiveOf(t,
		tar.Header{Name: "new/deep/file", Typeflag: tar.TypeReg, Mode: 0o640, Linkname: "text", ModTime: when},
		tar.Header{Name: "was-link", Typeflag: tar.TypeReg, Mode: 0o4755, Linkname: "a file now"},
		tar.Header{Name: "dir", Typeflag: tar.TypeReg, Linkname: "no"},
		tar.Header{Name: "fifo", Typeflag: tar.TypeFifo},
		tar.Header{Name: "last", Typeflag: tar.TypeReg, Linkname: "still comes"},
	)
	err := untar(open(t, dir), dir, bytes.NewReader(data), all)
	if err == nil || !strings.Contains(err.Error(), "dir: is a file in the guest and a directory here") {
		t.Errorf("error %v", err)
	}
	for name, want := range map[string]string{"new/deep/file": "text", "was-link": "a file now", "target": "stays", "last": "still comes"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "new/deep/file"))
	if err != nil || info.Mode() != 0o640 || !info.ModTime().Equal(when) {
		t.Errorf("new/deep/file: %v, %v", info, err)
	}
	if info, _ := os.Lstat(filepath.Join(dir, "was-link")); info.Mode() != 0o755 {
		t.Errorf("was-link has mode %v, want no more than -rwxr-xr-x", info.Mode())
	}
	if _, err := os.Lstat(filepath.Join(dir, "fifo")); err == nil {
		t.Error("a pipe was made")
	}
}

// A stream that breaks off leaves the old file and no half one.
func TestUntarBreaksOff(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := archiveOf(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Linkname: strings.Repeat("new", 1000)})
	if err := untar(open(t, dir), dir, bytes.NewReader(data[:1200]), all); err == nil {
		t.Error("no error")
	}
	entries, _ := os.ReadDir(dir)
	if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != "old" || len(entries) != 1 {
		t.Errorf("f is %q among %v", got, entries)
	}
}

func FuzzUntar(f *testing.F) {
	f.Add(archiveOf(f, tar.Header{Name: "../a", Typeflag: tar.TypeReg, Linkname: "x"}))
	f.Add(archiveOf(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg, Linkname: "x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = untar(open(t, dir), dir, bytes.NewReader(data), all)
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Fatalf("written outside: %v, %v", entries, err)
		}
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(filepath.Base(path), ".vft-") && !bytes.Contains(data, []byte(".vft-")) {
				t.Fatalf("%s was left behind", path)
			}
			return nil
		})
	})
}
