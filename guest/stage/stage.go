// Package stage decides what of the host a program needs inside a guest, and
// packs it: the program, the shared libraries that the image lacks, the files
// that the user named, and the working directory.
package stage

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
)

// LibraryDir is where libraries go in the guest that the image lacks or has in
// another version. It is on the program's LD_LIBRARY_PATH and on nobody
// else's, so the image's own programs keep theirs.
const LibraryDir = "/usr/lib/vft/stage/lib"

// Flavour is an MPI implementation.
type Flavour string

// The MPI implementations that a guest has.
const (
	OpenMPI Flavour = "openmpi"
	MPICH   Flavour = "mpich"
)

// flavours maps the names of MPI libraries to what they belong to.
func flavourOf(soname string) (Flavour, bool) {
	switch {
	case soname == "libmpi.so.40", strings.HasPrefix(soname, "libmpi_mpifh.so"),
		strings.HasPrefix(soname, "libmpi_usempi"), soname == "libopen-rte.so.40":
		return OpenMPI, true
	case soname == "libmpi.so.12", strings.HasPrefix(soname, "libmpich"), strings.HasPrefix(soname, "libmpifort.so.12"),
		strings.HasPrefix(soname, "libmpicxx.so.12"), soname == "libmpichfort.so.12":
		return MPICH, true
	}
	return "", false
}

// Contents is what the image has.
type Contents struct {
	// Libraries maps absolute paths in the image to the BLAKE3 of the library.
	Libraries map[string]string
	// Programs maps absolute paths in the image to the BLAKE3 of the program.
	Programs map[string]string
}

// Options say what to stage.
type Options struct {
	// Program as the user typed it: a path or a name to look up in Path.
	Program string
	// Args follow the program. Those that name existing files are not staged by
	// themselves: only the user knows which are input.
	Args []string
	// Dir is the absolute working directory.
	Dir string
	// Path is the user's PATH, LibraryPath the user's LD_LIBRARY_PATH.
	Path, LibraryPath string
	// Files are paths and glob patterns, relative ones to Dir. A directory
	// brings everything below it.
	Files []string
	// Image is what needs no staging.
	Image Contents
	// Default is the flavour of programs that do not tell.
	Default Flavour
}

// Plan is what will be packed.
type Plan struct {
	// Program is the absolute path of the program in the guest.
	Program string
	// Argv is Program with Args.
	Argv []string
	// Flavour of MPI that the program is linked with, else the default.
	Flavour Flavour
	// Known is whether the program itself told the flavour.
	Known bool
	// Env has the variables to add for the program and nothing else.
	Env []string
	// InImage says that the program is the image's own.
	InImage bool
	// Entries are sorted by name.
	Entries []Entry
}

// Entry is one file of the plan.
type Entry struct {
	// Name is the absolute path in the guest, Source the path on the host.
	Name, Source string
	// Follow says that a symbolic link is packed as what it leads to.
	Follow bool
}

// Make finds everything that the program needs. Its errors are
// [*ProgramError], [*ArchitectureError] and [*LibraryError] where the user's
// program is at fault.
func Make(ctx context.Context, o Options) (*Plan, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("stage a program: working directory %q is not absolute", o.Dir)
	}
	p := &Plan{Flavour: o.Default}
	entries := map[string]Entry{}
	add := func(e Entry) {
		if _, ok := entries[e.Name]; !ok {
			entries[e.Name] = e
		}
	}
	if err := addDir(o.Dir, add); err != nil {
		return nil, err
	}
	program, err := locate(o)
	if err != nil {
		return nil, err
	}
	p.Program = program
	p.Argv = append([]string{program}, o.Args...)
	finder := newFinder(ctx, o.LibraryPath)
	if err := p.addProgram(program, o, finder, add, 0); err != nil {
		return nil, err
	}
	for _, pattern := range o.Files {
		if err := addFiles(pattern, o.Dir, add); err != nil {
			return nil, err
		}
	}
	for _, e := range entries {
		p.Entries = append(p.Entries, e)
	}
	slices.SortFunc(p.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return p, nil
}

// locate returns the program's absolute path. What the host lacks and the
// image has is taken from the image.
func locate(o Options) (string, error) {
	file := o.Program
	if !strings.Contains(file, "/") {
		for _, d := range filepath.SplitList(o.Path) {
			if !filepath.IsAbs(d) {
				d = filepath.Join(o.Dir, d)
			}
			candidate := filepath.Join(d, file)
			if checkProgram(candidate) == nil {
				return candidate, nil
			}
		}
		if p, ok := inImage(file, o.Image); ok {
			return p, nil
		}
		return "", &ProgramError{Path: o.Program, Err: fmt.Errorf("%w in PATH (for a program in this directory write ./%s)", ErrMissing, file)}
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(o.Dir, file)
	}
	file = filepath.Clean(file)
	if err := checkProgram(file); err != nil {
		if errors.Is(err, ErrMissing) && o.Image.Programs[merged(file)] != "" {
			return file, nil
		}
		return "", &ProgramError{Path: o.Program, Err: err}
	}
	return file, nil
}

func inImage(name string, c Contents) (string, bool) {
	for _, d := range []string{"/usr/bin", "/usr/sbin"} {
		if p := path.Join(d, name); c.Programs[p] != "" {
			return p, true
		}
	}
	return "", false
}

func checkProgram(file string) error {
	fi, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrMissing
	case err != nil:
		return err
	case fi.IsDir():
		return ErrDirectory
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return ErrNotExecutable
	}
	return nil
}

// addProgram adds a program, its libraries, and for a script its interpreter.
func (p *Plan) addProgram(file string, o Options, finder *libraryFinder, add func(Entry), depth int) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		p.InImage = p.InImage || depth == 0
		return nil
	}
	isBinary, err := isELF(file)
	if err != nil {
		return &ProgramError{Path: file, Err: err}
	}
	own, err := ofImage(file, o.Image, depth)
	if err != nil {
		return &ProgramError{Path: file, Err: err}
	}
	if !own {
		add(Entry{Name: file, Source: file, Follow: true})
	} else if depth == 0 {
		p.InImage = true
	}
	if !isBinary {
		return p.addScript(file, o, finder, add, depth)
	}
	libs, err := finder.libraries(file)
	if err != nil {
		return err
	}
	for _, l := range libs {
		if f, ok := flavourOf(l.name); ok && depth == 0 {
			p.Flavour, p.Known = f, true
		}
	}
	if own {
		// The image has it with libraries that fit.
		return nil
	}
	return p.addLibraries(libs, o.Image, add)
}

// ofImage reports whether the image's program at the same path will do: for the
// user's own program it must be the same, for an interpreter it is close enough.
func ofImage(file string, c Contents, depth int) (bool, error) {
	sum, ok := c.Programs[merged(file)]
	if !ok || depth > 0 {
		return ok, nil
	}
	got, err := hashFile(file)
	return got == sum, err
}

func (p *Plan) addScript(file string, o Options, finder *libraryFinder, add func(Entry), depth int) error {
	words, err := interpreter(file)
	if err != nil {
		return &ProgramError{Path: file, Err: err}
	}
	const maxDepth = 4 // as the kernel has it
	if len(words) == 0 || depth >= maxDepth {
		return nil
	}
	next := words[0]
	if filepath.Base(next) == "env" {
		rest := slices.DeleteFunc(words[1:], func(w string) bool { return strings.HasPrefix(w, "-") || strings.Contains(w, "=") })
		if len(rest) == 0 {
			return nil
		}
		next = rest[0]
	}
	sub := o
	sub.Program = next
	found, err := locate(sub)
	if err != nil {
		return fmt.Errorf("the interpreter of %s: %w", file, err)
	}
	return p.addProgram(found, o, finder, add, depth+1)
}

// addLibraries adds what the image lacks or has with other content.
func (p *Plan) addLibraries(libs []library, img Contents, add func(Entry)) error {
	byName := map[string][]string{}
	for lib, sum := range img.Libraries {
		byName[path.Base(lib)] = append(byName[path.Base(lib)], sum)
	}
	staged := false
	for _, l := range libs {
		if isLoader(l.name) {
			// The image's loader starts the program; one that is older than the
			// program's libc cannot be replaced for one program.
			continue
		}
		sum, err := hashFile(l.path)
		if err != nil {
			return err
		}
		if slices.Contains(byName[path.Base(l.name)], sum) {
			continue
		}
		if _, mpi := flavourOf(l.name); mpi && len(byName[path.Base(l.name)]) > 0 {
			// The image's launcher and daemons speak with the image's MPI library.
			// The interface is the same within one soname, so the image's is used.
			continue
		}
		if isLibc(l.name) && len(byName[path.Base(l.name)]) > 0 {
			continue
		}
		name := path.Join(LibraryDir, path.Base(l.name))
		if strings.Contains(l.name, "/") {
			name = l.name
		}
		add(Entry{Name: name, Source: l.path, Follow: true})
		staged = true
	}
	if staged && len(p.Env) == 0 {
		p.Env = []string{"LD_LIBRARY_PATH=" + LibraryDir}
	}
	return nil
}

func isLoader(name string) bool { return strings.HasPrefix(path.Base(name), "ld-linux") }

// isLibc names the parts of the C library, which fit only the loader that they
// were built with.
func isLibc(name string) bool {
	switch path.Base(name) {
	case "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2":
		return true
	}
	return false
}

// merged spells a path as the image stores it, with /bin and /lib under /usr.
func merged(file string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(file, d) {
			return "/usr" + file
		}
	}
	return file
}

// addDir adds a directory and those above it, so that they get their owners
// and modes.
func addDir(dir string, add func(Entry)) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("stage the working directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("stage the working directory: %s is not a directory", dir)
	}
	for d := filepath.Clean(dir); d != "/"; d = filepath.Dir(d) {
		if !systemDir(d) {
			add(Entry{Name: d, Source: d, Follow: true})
		}
	}
	return nil
}

// systemDir names directories that the image has and whose attributes are its
// own business.
func systemDir(d string) bool {
	switch d {
	case "/", "/tmp", "/var", "/var/tmp", "/usr", "/home", "/root", "/opt", "/etc", "/dev", "/run", "/mnt", "/srv":
		return true
	}
	return false
}

// addFiles adds what a pattern names.
func addFiles(pattern, dir string, add func(Entry)) error {
	full := pattern
	if !filepath.IsAbs(full) {
		full = filepath.Join(dir, full)
	}
	matches, err := filepath.Glob(full)
	if err != nil {
		return fmt.Errorf("stage %q: %w", pattern, err)
	}
	if len(matches) == 0 {
		return fmt.Errorf("stage %q: %w", pattern, fs.ErrNotExist)
	}
	for _, m := range matches {
		err := filepath.WalkDir(m, func(file string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			t := d.Type()
			if t.IsRegular() || t.IsDir() || t&fs.ModeSymlink != 0 {
				add(Entry{Name: file, Source: file})
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("stage %q: %w", pattern, err)
		}
	}
	return nil
}

func hashFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := blake3.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
