package stage

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// object is what the dynamic linker would read of a program or library.
type object struct {
	needed  []string
	rpath   []string // searched before LD_LIBRARY_PATH; empty when there is a runpath
	runpath []string // searched after it
	interp  string
}

// readBinary reads an ELF file and checks that a guest could run it.
func readBinary(path string) (object, error) {
	f, err := elf.Open(path)
	if err != nil {
		return object{}, fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return object{}, &ArchitectureError{Path: path, Architecture: machineName(f.Machine, f.Class)}
	}
	var b object
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			s, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return object{}, fmt.Errorf("read %s: %w", path, err)
			}
			b.interp = string(bytes.TrimRight(s, "\x00"))
		}
	}
	if b.needed, err = f.ImportedLibraries(); err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return object{}, fmt.Errorf("read the needed libraries of %s: %w", path, err)
	}
	origin := filepath.Dir(path)
	if b.runpath, err = searchPath(f, elf.DT_RUNPATH, origin); err != nil {
		return object{}, err
	}
	if len(b.runpath) == 0 {
		if b.rpath, err = searchPath(f, elf.DT_RPATH, origin); err != nil {
			return object{}, err
		}
	}
	return b, nil
}

func searchPath(f *elf.File, tag elf.DynTag, origin string) ([]string, error) {
	list, err := f.DynString(tag)
	if err != nil {
		return nil, fmt.Errorf("read the library search path: %w", err)
	}
	var dirs []string
	for _, l := range list {
		for d := range strings.SplitSeq(l, ":") {
			if d != "" {
				d = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d)
				dirs = append(dirs, filepath.Clean(d))
			}
		}
	}
	return dirs, nil
}

// machineName spells an architecture as users know it.
func machineName(m elf.Machine, c elf.Class) string {
	names := map[elf.Machine]string{
		elf.EM_386: "32-bit x86", elf.EM_AARCH64: "ARM64", elf.EM_ARM: "32-bit ARM", elf.EM_PPC64: "POWER",
		elf.EM_RISCV: "RISC-V", elf.EM_S390: "IBM Z", elf.EM_X86_64: "x32",
	}
	if n, ok := names[m]; ok {
		return n
	}
	return fmt.Sprintf("%s %s", m, c)
}

// libraryFinder finds libraries as the host's dynamic linker would.
type libraryFinder struct {
	// cache maps names to paths, from ldconfig.
	cache map[string]string
	// dirs are searched between a RPATH and the cache: LD_LIBRARY_PATH.
	dirs []string
	// defaults are searched last.
	defaults []string
}

// newFinder reads the host's linker cache.
func newFinder(ctx context.Context, libraryPath string) *libraryFinder {
	f := &libraryFinder{
		cache:    map[string]string{},
		defaults: []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"},
	}
	for d := range strings.SplitSeq(libraryPath, ":") {
		if d != "" {
			f.dirs = append(f.dirs, d)
		}
	}
	for _, tool := range []string{"/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"} {
		out, err := exec.CommandContext(ctx, tool, "-p").Output()
		if err == nil {
			f.cache = parseCache(out)
			break
		}
	}
	return f
}

// parseCache reads the output of ldconfig -p. The first entry of a name is the
// one that the linker takes.
func parseCache(out []byte) map[string]string {
	cache := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		entry, path, ok := strings.Cut(strings.TrimSpace(s.Text()), " => ")
		if !ok {
			continue
		}
		name, kind, ok := strings.Cut(entry, " (")
		if !ok || !strings.Contains(kind, "x86-64") {
			continue
		}
		if _, seen := cache[name]; !seen {
			cache[name] = path
		}
	}
	return cache
}

// find returns the path of the library called name that b needs. rpath is what
// the loaders of b add.
func (f *libraryFinder) find(name string, b object, rpath []string) (string, bool) {
	if strings.Contains(name, "/") {
		return name, usable(name)
	}
	var dirs []string
	dirs = append(dirs, b.rpath...)
	if len(b.runpath) == 0 {
		dirs = append(dirs, rpath...)
	}
	dirs = append(dirs, f.dirs...)
	dirs = append(dirs, b.runpath...)
	for _, d := range dirs {
		if p := filepath.Join(d, name); usable(p) {
			return p, true
		}
	}
	if p, ok := f.cache[name]; ok && usable(p) {
		return p, true
	}
	for _, d := range f.defaults {
		if p := filepath.Join(d, name); usable(p) {
			return p, true
		}
	}
	return "", false
}

// usable reports whether path is a library of the guest's architecture: the
// linker skips others.
func usable(path string) bool {
	fi, err := os.Stat(path)
	if err != nil || fi.IsDir() {
		return false
	}
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return f.Machine == elf.EM_X86_64 && f.Class == elf.ELFCLASS64
}

// library is one shared library that a program needs.
type library struct {
	name string // as it is asked for
	path string // on the host
}

// libraries returns all libraries that path needs, directly or not, in the
// linker's breadth-first order.
func (f *libraryFinder) libraries(path string) ([]library, error) {
	type job struct {
		path  string
		rpath []string
	}
	var out []library
	seen := map[string]bool{}
	for queue := []job{{path: path}}; len(queue) > 0; queue = queue[1:] {
		j := queue[0]
		b, err := readBinary(j.path)
		if err != nil {
			return nil, err
		}
		for _, name := range b.needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			p, ok := f.find(name, b, j.rpath)
			if !ok {
				return nil, &LibraryError{Program: path, NeededBy: j.path, Library: name}
			}
			out = append(out, library{name: name, path: p})
			queue = append(queue, job{path: p, rpath: append(append([]string(nil), b.rpath...), j.rpath...)})
		}
	}
	return out, nil
}

// isELF reports whether the file starts as one.
func isELF(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	var m [4]byte
	if _, err := io.ReadFull(f, m[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		return false, err
	}
	return string(m[:]) == elf.ELFMAG, nil
}

// interpreter returns the words of a script's first line, or nothing.
func interpreter(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !strings.HasPrefix(line, "#!") {
		return nil, nil
	}
	return strings.Fields(line[2:]), nil
}
