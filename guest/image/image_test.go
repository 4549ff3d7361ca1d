package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeImage writes an image with made-up files.
func fakeImage(t *testing.T) Image {
	t.Helper()
	dir := t.TempDir()
	info := Info{FormatVersion: FormatVersion, Files: map[string]FileInfo{}}
	for _, name := range []string{KernelName, InitrdName, RootName} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
		fi, err := hashFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info.Files[name] = fi
	}
	if err := writeJSON(filepath.Join(dir, infoName), info); err != nil {
		t.Fatal(err)
	}
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestVerify(t *testing.T) {
	img := fakeImage(t)
	if err := Verify(img); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	b[3] ^= 1
	if err := os.WriteFile(img.Root(), b, 0o644); err != nil {
		t.Fatal(err)
	}
	err = Verify(img)
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "vft image build --force") || !strings.Contains(err.Error(), RootName) {
		t.Errorf("got %v", err)
	}
}

func TestOpen(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNotFound) {
		t.Errorf("an empty directory: %v", err)
	}
	for name, spoil := range map[string]func(dir string) error{
		"short file":   func(dir string) error { return os.Truncate(filepath.Join(dir, RootName), 3) },
		"missing file": func(dir string) error { return os.Remove(filepath.Join(dir, KernelName)) },
		"bad JSON":     func(dir string) error { return os.WriteFile(filepath.Join(dir, infoName), []byte("{"), 0o644) },
	} {
		img := fakeImage(t)
		if err := spoil(img.Dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(img.Dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMissingTools(t *testing.T) {
	err := checkTools(func(name string) (string, error) {
		if name == "apt-get" || name == "apt-cache" || name == "sqfstar" {
			return "", exec.ErrNotFound
		}
		return "/usr/bin/" + name, nil
	})
	if !errors.Is(err, ErrMissingTools) || !strings.HasSuffix(err.Error(), "apt-get install apt squashfs-tools") {
		t.Errorf("got %v", err)
	}
}

func TestHashFollowsTheRecipe(t *testing.T) {
	a, b := DefaultRecipe(), DefaultRecipe()
	a.Suite, b.Suite = "bookworm", "bookworm"
	ha, err := a.Hash()
	if err != nil {
		t.Fatal(err)
	}
	if hb, _ := b.Hash(); ha != hb {
		t.Error("equal recipes have different hashes")
	}
	b.Packages = append(b.Packages, "one-more")
	if hb, _ := b.Hash(); ha == hb {
		t.Error("different recipes have the same hash")
	}
}

func TestAtomically(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "image")
	for _, text := range []string{"one", "two"} {
		err := atomically(dir, func(tmp string) error { return os.WriteFile(filepath.Join(tmp, "f"), []byte(text), 0o644) })
		if err != nil {
			t.Fatal(err)
		}
	}
	err := atomically(dir, func(tmp string) error {
		_ = os.WriteFile(filepath.Join(tmp, "f"), []byte("half"), 0o644)
		return errors.New("failed")
	})
	if err == nil {
		t.Error("a failure went unnoticed")
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "f")); string(b) != "two" {
		t.Errorf("got %q", b)
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLockExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, most int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			unlock, err := lock(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			mu.Unlock()
			mu.Lock()
			inside--
			mu.Unlock()
			unlock()
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("%d held the lock at once", most)
	}
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with an ended context: %v", err)
	}
	unlock()
}

func TestAptSources(t *testing.T) {
	lines := sourcesLines(`# comment
deb http://a.example/debian stable-x main
deb [signed-by=/k.gpg arch=amd64] http://a.example/debian trixie main contrib
deb http://a.example/debian trixie-security main
deb-src http://a.example/debian trixie main
deb http://b.example/tools trixie stable
`, "trixie")
	if len(lines) != 2 || !strings.Contains(lines[0], "signed-by") || !strings.Contains(lines[1], "trixie-security") {
		t.Errorf("lines %q", lines)
	}
	stanzas := sourcesStanzas(`Types: deb
# a remark
URIs: http://a.example/debian
Suites: trixie trixie-updates
Components: main

Types: deb
URIs: http://b.example/tools
Suites: nodistro
Components: main

Types: deb
Enabled: no
URIs: http://c.example/debian
Suites: trixie
Components: main
`, "trixie")
	if len(stanzas) != 1 || !strings.Contains(stanzas[0], "a.example") {
		t.Errorf("stanzas %q", stanzas)
	}
}

func TestAcquireOptions(t *testing.T) {
	got := acquireOptions("Acquire \"\";\nAcquire::http::Proxy \"http://p.example:1\";\nAcquire::cdrom::mount \"/x\";\nAcquire::http \"\";\nAcquire::Check-Date \"false\";\n")
	want := []string{`Acquire::http::Proxy "http://p.example:1"`, `Acquire::Check-Date "false"`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestKernelOf(t *testing.T) {
	if got := kernelOf("linux-image-cloud-amd64", "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n"); got != "linux-image-6.1.0-1-cloud-amd64" {
		t.Errorf("meta package: %s", got)
	}
	if got := kernelOf("linux-image-6", "linux-image-6\n  Depends: kmod\n"); got != "linux-image-6" {
		t.Errorf("package: %s", got)
	}
}

func TestLoadOrder(t *testing.T) {
	files := map[string]string{"a": "a.ko", "b": "b.ko", "c_c": "c-c.ko", "d": ""}
	deps := map[string][]string{"a.ko": {"b", "c-c", "d"}, "b.ko": {"c_c"}}
	got, err := loadOrder([]string{"a", "b"}, files, func(f string) ([]string, error) { return deps[f], nil })
	if err != nil || !slices.Equal(got, []string{"c-c.ko", "b.ko", "a.ko"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := loadOrder([]string{"z"}, files, nil); err == nil {
		t.Error("an unknown module was accepted")
	}
}

func TestFilter(t *testing.T) {
	var in bytes.Buffer
	tw := tar.NewWriter(&in)
	put := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tw, data)
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./" + packageList}, "libx_1%3a2-3_amd64.deb\nopenmpi-bin_4.1.4-3_amd64.deb\nlock\n")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/lib/libx.so.1.2", Mode: 0o644}, "library")
	put(tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/lib/libx.so.1", Linkname: "libx.so.1.2"}, "")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/tool", Mode: 0o755}, "program")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/doc/tool/README", Mode: 0o644}, "text")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/docbook", Mode: 0o644}, "text")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/passwd", Mode: 0o644}, "other")
	put(tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null"}, "")
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var info rootInfo
	r := Recipe{Remove: []string{"usr/share/doc"}, Links: map[string]string{"usr/bin/t": "tool"}, Applets: []string{"vi", "tool"}}
	if err := filter(r, &in, &out, &info); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tr)
		if _, twice := got[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		got[h.Name] = h.Linkname + string(b)
	}
	for name, want := range map[string]string{
		"usr/lib/libx.so.1": "libx.so.1.2", "usr/bin/tool": "program", "usr/bin/t": "tool", "usr/bin/vi": "busybox",
		"usr/share/docbook": "text", "usr/lib/vft/mpi": "openmpi 4.1.4\n",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"usr/share/doc/tool/README", packageList, "dev/null"} {
		if _, ok := got[name]; ok {
			t.Errorf("%s is in the root", name)
		}
	}
	if !strings.HasPrefix(got["etc/passwd"], "root:") {
		t.Errorf("etc/passwd: %q", got["etc/passwd"])
	}
	if info.packages["libx"] != "1:2-3" {
		t.Errorf("packages %v", info.packages)
	}
	if l := info.libraries; l["/usr/lib/libx.so.1"] == "" || l["/usr/lib/libx.so.1"] != l["/usr/lib/libx.so.1.2"] {
		t.Errorf("libraries %v", l)
	}
	if p := info.programs; p["/usr/bin/t"] == "" || p["/usr/bin/t"] != p["/usr/bin/tool"] {
		t.Errorf("programs %v", p)
	}
}

func TestInitrdIsReadable(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"agent", "m.ko", "libl.so"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("content of "+n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "initrd")
	if err := writeInitrd(out, filepath.Join(dir, "agent"), []string{filepath.Join(dir, "libl.so")}, dir, []string{"m.ko"}); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(first)
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s; install it with: apt-get install cpio", err, list)
	}
	for _, want := range []string{"init", "vft-guest", "modules/list", "modules/m.ko", "dev/console", "lib/libl.so"} {
		if !slices.Contains(strings.Split(string(list), "\n"), want) {
			t.Errorf("%s is missing in\n%s", want, list)
		}
	}
	if err := writeInitrd(out, filepath.Join(dir, "agent"), []string{filepath.Join(dir, "libl.so")}, dir, []string{"m.ko"}); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(out); !bytes.Equal(first, again) {
		t.Error("two runs wrote different bytes")
	}
}

func TestCheckStatic(t *testing.T) {
	if err := checkStatic("/bin/true"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a dynamic program: %v", err)
	}
	if err := checkStatic("/etc/passwd"); err == nil {
		t.Error("a text file was accepted")
	}
}
