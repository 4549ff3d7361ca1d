package stage

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// foreign returns an ELF header for another machine.
func foreign(m elf.Machine) string {
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(m), Version: 1, Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	return b.String()
}

// compile builds C with the host's compiler.
func compile(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s; install it with: apt-get install gcc", err, out)
	}
}

func TestProgramsThatCannotRun(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/plain", "text", 0o644)
	write(t, dir+"/arm", foreign(elf.EM_AARCH64), 0o755)
	src := write(t, dir+"/src/lib.c", "int f(void){return 1;}", 0o644)
	compile(t, "-shared", "-fPIC", "-Wl,-soname,libgone.so.3", "-o", dir+"/src/libgone.so", src)
	main := write(t, dir+"/src/main.c", "int f(void); int main(void){return f();}", 0o644)
	compile(t, "-o", dir+"/lost", main, "-L"+dir+"/src", "-lgone")
	write(t, dir+"/script", "#!/no/such/shell\n", 0o755)

	for program, check := range map[string]func(error) bool{
		"./none":      func(err error) bool { return errors.Is(err, ErrMissing) },
		"no-such-cmd": func(err error) bool { return errors.Is(err, ErrMissing) },
		"./src":       func(err error) bool { return errors.Is(err, ErrDirectory) },
		"./plain":     func(err error) bool { return errors.Is(err, ErrNotExecutable) },
		"./script":    func(err error) bool { return errors.Is(err, ErrMissing) },
		"./arm": func(err error) bool {
			var e *ArchitectureError
			return errors.As(err, &e) && e.Architecture == "ARM64"
		},
		"./lost": func(err error) bool {
			var e *LibraryError
			return errors.As(err, &e) && e.Library == "libgone.so.3" && e.Program == dir+"/lost"
		},
	} {
		_, err := Make(t.Context(), Options{Program: program, Dir: dir, Path: "/usr/bin"})
		if !check(err) {
			t.Errorf("%s: got %v", program, err)
		}
	}
}

func names(p *Plan) []string {
	var list []string
	for _, e := range p.Entries {
		list = append(list, e.Name)
	}
	return list
}

func TestLibrariesThatTheImageLacks(t *testing.T) {
	dir := t.TempDir()
	src := write(t, dir+"/src/lib.c", "int f(void){return 1;}", 0o644)
	if err := os.MkdirAll(dir+"/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	compile(t, "-shared", "-fPIC", "-Wl,-soname,libinner.so.1", "-o", dir+"/deep/libinner.so.1", src)
	outer := write(t, dir+"/src/outer.c", "int f(void); int g(void){return f();}", 0o644)
	compile(t, "-shared", "-fPIC", "-Wl,-soname,libouter.so.1", "-Wl,-rpath,$ORIGIN", "-o", dir+"/deep/libouter.so.1", outer, dir+"/deep/libinner.so.1")
	main := write(t, dir+"/src/main.c", "int g(void); int main(void){return g();}", 0o644)
	compile(t, "-o", dir+"/prog", main, dir+"/deep/libouter.so.1", "-Wl,-rpath,$ORIGIN/deep", "-Wl,--unresolved-symbols=ignore-all")

	finder := newFinder(t.Context(), "")
	libs, err := finder.libraries(dir + "/prog")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, l := range libs {
		sum, err := hashFile(l.path)
		if err != nil {
			t.Fatal(err)
		}
		have["/usr/lib/x86_64-linux-gnu/"+l.name] = sum
	}
	all := Contents{Libraries: have}
	other := Contents{Libraries: map[string]string{"/usr/lib/libouter.so.1": "something else", "/usr/lib/libc.so.6": "another"}}
	lib := func(name string) string { return LibraryDir + "/" + name }
	for name, tt := range map[string]struct {
		image    Contents
		has, not []string
		env      bool
	}{
		"all there":     {all, nil, []string{lib("libouter.so.1"), lib("libinner.so.1"), lib("libc.so.6")}, false},
		"other version": {other, []string{lib("libouter.so.1"), lib("libinner.so.1")}, []string{lib("libc.so.6")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Make(t.Context(), Options{Program: "./prog", Dir: dir, Image: tt.image, Default: OpenMPI})
			if err != nil {
				t.Fatal(err)
			}
			got := names(p)
			if !slices.Contains(got, dir+"/prog") || !slices.Contains(got, dir) {
				t.Errorf("program or directory missing: %q", got)
			}
			for _, n := range tt.has {
				if !slices.Contains(got, n) {
					t.Errorf("%s is not staged", n)
				}
			}
			for _, n := range tt.not {
				if slices.Contains(got, n) {
					t.Errorf("%s is staged", n)
				}
			}
			if want := []string{"LD_LIBRARY_PATH=" + LibraryDir}; tt.env != slices.Equal(p.Env, want) {
				t.Errorf("environment %q", p.Env)
			}
			if p.Flavour != OpenMPI || p.Known {
				t.Errorf("flavour %s, known %v", p.Flavour, p.Known)
			}
		})
	}
}

func TestFlavour(t *testing.T) {
	for soname, want := range map[string]Flavour{
		"libmpi.so.40": OpenMPI, "libmpi_mpifh.so.40": OpenMPI,
		"libmpich.so.12": MPICH, "libmpi.so.12": MPICH, "libmpichfort.so.12": MPICH, "libmpicxx.so.12": MPICH,
		"libc.so.6": "",
	} {
		if got, _ := flavourOf(soname); got != want {
			t.Errorf("%s: %q, want %q", soname, got, want)
		}
	}
	for program, want := range map[string]Flavour{"NPopenmpi": OpenMPI, "NPmpich2": MPICH} {
		p, err := Make(t.Context(), Options{Program: program, Dir: "/tmp", Path: "/usr/bin", Default: OpenMPI})
		if err != nil {
			t.Fatalf("%v; install it with: apt-get install netpipe-openmpi netpipe-mpich2", err)
		}
		if p.Flavour != want || !p.Known {
			t.Errorf("%s: %q (known %v), want %q", program, p.Flavour, p.Known, want)
		}
	}
}

func TestProgramOfTheImage(t *testing.T) {
	sum, err := hashFile("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		program  string
		programs map[string]string
		inImage  bool
	}{
		"same":                 {"env", map[string]string{"/usr/bin/env": sum}, true},
		"other version":        {"env", map[string]string{"/usr/bin/env": "x"}, false},
		"only in the image":    {"only-there", map[string]string{"/usr/bin/only-there": "x"}, true},
		"only there, by path":  {"/bin/only-there", map[string]string{"/usr/bin/only-there": "x"}, true},
		"unknown to the image": {"env", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Make(t.Context(), Options{Program: tt.program, Dir: "/tmp", Path: "/usr/bin", Image: Contents{Programs: tt.programs}})
			if err != nil {
				t.Fatal(err)
			}
			if p.InImage != tt.inImage || slices.Contains(names(p), p.Program) == tt.inImage {
				t.Errorf("in image: %v, staged: %q", p.InImage, names(p))
			}
		})
	}
}

func TestScriptBringsItsInterpreter(t *testing.T) {
	dir := t.TempDir()
	interp, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/bin/mysh", string(interp), 0o755)
	write(t, dir+"/run", "#!/usr/bin/env mysh\n", 0o755)
	p, err := Make(t.Context(), Options{Program: "./run", Dir: dir, Path: dir + "/bin", Default: MPICH})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names(p), dir+"/bin/mysh") || p.Flavour != MPICH {
		t.Errorf("staged %q, flavour %s", names(p), p.Flavour)
	}
}

func TestFilesAndDeterminism(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.dat", "a", 0o600)
	write(t, dir+"/b.dat", "b", 0o644)
	write(t, dir+"/tree/x/y", "y", 0o644)
	if err := os.Symlink("y", dir+"/tree/x/z"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/run", "#!/bin/sh\n", 0o755)
	o := Options{
		Program: "./run", Dir: dir, Files: []string{"*.dat", "tree"},
		Image: Contents{Programs: map[string]string{"/usr/bin/sh": "x"}},
	}
	var first []byte
	var firstHash string
	for i := range 2 {
		p, err := Make(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		hash, err := p.WriteTar(&b)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first, firstHash = b.Bytes(), hash
		} else if !bytes.Equal(first, b.Bytes()) || hash != firstHash {
			t.Error("two runs packed different bytes")
		}
	}
	got := map[string]*tar.Header{}
	for tr := tar.NewReader(bytes.NewReader(first)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got["/"+h.Name] = h
	}
	for _, n := range []string{"/a.dat", "/b.dat", "/tree/", "/tree/x/", "/tree/x/y", "/tree/x/z", "/run", "/"} {
		if got[dir+n] == nil {
			t.Errorf("%s is not packed", n)
		}
	}
	if h := got[dir+"/a.dat"]; h != nil && h.Mode&0o777 != 0o600 {
		t.Errorf("mode %o", h.Mode)
	}
	if h := got[dir+"/tree/x/z"]; h != nil && (h.Typeflag != tar.TypeSymlink || h.Linkname != "y") {
		t.Errorf("symbolic link packed as %q to %q", h.Typeflag, h.Linkname)
	}
	o.Files = []string{"*.none"}
	if _, err := Make(t.Context(), o); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "*.none") {
		t.Errorf("a pattern without matches: %v", err)
	}
}

func TestParseCache(t *testing.T) {
	out := "2 libs found in cache `/etc/ld.so.cache'\n" +
		"\tlibx.so.1 (libc6,x86-64) => /lib/first/libx.so.1\n" +
		"\tlibx.so.1 (libc6,x86-64) => /lib/second/libx.so.1\n" +
		"\tlibx.so.1 (libc6) => /lib32/libx.so.1\n" +
		"\tliby.so (libc6) => /lib32/liby.so\n"
	got := parseCache([]byte(out))
	if len(got) != 1 || got["libx.so.1"] != "/lib/first/libx.so.1" {
		t.Errorf("got %v", got)
	}
}
