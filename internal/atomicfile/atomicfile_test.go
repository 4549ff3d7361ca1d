package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, tc := range []struct {
		data string
		perm fs.FileMode
	}{{"one", 0o600}, {"", 0o644}, {strings.Repeat("x", 1<<20), 0o666}} {
		if err := WriteFile(path, []byte(tc.data), tc.perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != tc.data {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(tc.data))
		}
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != tc.perm {
			t.Fatalf("mode %v, %v; want %v", fi.Mode(), err, tc.perm)
		}
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Fatalf("left in the directory: %v", got)
	}
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := WriteFile("f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale("f"); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, "."); len(got) != 1 || got[0] != "f" {
		t.Fatalf("%v", got)
	}
}

func TestFailedReplaceKeepsOldContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := Replace(path, io.MultiReader(strings.NewReader("new"), iotest.ErrReader(boom)), 0o600)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v", err)
	}
	if err := WriteJSON(path, make(chan int), 0o600); err == nil {
		t.Fatal("a channel was encoded")
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Fatalf("content %q", got)
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Fatalf("left in the directory: %v", got)
	}
}

func TestTargetIsDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), nil, 0o600); err == nil {
		t.Fatal("a directory was replaced")
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Fatalf("left in the directory: %v", got)
	}
	if err := WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}

func TestReadersSeeWholeFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := func(c byte) []byte { return []byte(strings.Repeat(string(c), 100_000)) }
	if err := WriteFile(path, content('a'), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range []byte("bc") {
		wg.Go(func() {
			for range 20 {
				if err := WriteFile(path, content(c), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		got, err := os.ReadFile(path)
		if err != nil || len(got) != 100_000 || strings.Count(string(got), string(got[0])) != len(got) {
			t.Fatalf("mixed content: %d bytes, %v", len(got), err)
		}
	}
	wg.Wait()
}

func TestRemoveStale(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"f", ".f.tmp-12", ".g.tmp-12", ".f.tmp-", "f.tmp-12"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveStale(filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(entries(t, dir), " "); got != ".f.tmp- .g.tmp-12 f f.tmp-12" {
		t.Fatalf("left: %s", got)
	}
}

func TestJSON(t *testing.T) {
	type doc struct {
		A int
		B []string
	}
	path := filepath.Join(t.TempDir(), "f.json")
	if err := WriteJSON(path, doc{3, []string{"x"}}, 0o600); err != nil {
		t.Fatal(err)
	}
	var got doc
	if err := ReadJSON(path, &got); err != nil || got.A != 3 || len(got.B) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "{", `{"A":1} x`, `{"A":"s"}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadJSON(path, &got); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
	if err := ReadJSON(path+"x", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}
