package wrapper

import (
	"bufio"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// locate finds a context's program as mpirun would: below the program's
// working directory when its name has a slash, else on PATH (after --path),
// else, with Open MPI, in the working directory.
func (p *Parser) locate(c *scannedContext, f vftv1.Flavour) (string, error) {
	dir := c.dir(p.Dir)
	if strings.ContainsRune(c.program, filepath.Separator) {
		return under(dir, c.program), nil
	}
	var places []string
	for _, u := range c.options {
		if u.option.means == meaningPath {
			places = append(places, filepath.SplitList(u.value())...)
		}
	}
	path, _ := p.Env.Lookup("PATH")
	places = append(places, filepath.SplitList(path)...)
	if f != vftv1.Flavour_FLAVOUR_MPICH {
		places = append(places, dir)
	}
	for _, place := range places {
		candidate := under(under(dir, place), c.program)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	if p.InImage != nil {
		if at, ok := p.InImage(c.program); ok {
			return at, nil
		}
	}
	hint := "give its path"
	if _, err := os.Stat(under(dir, c.program)); err == nil {
		hint = "did you mean ./" + c.program + "?"
	}
	return "", failf(ExitNotFound, "program %s is not on PATH; %s", c.program, hint)
}

// machines maps Go's names to what a program's ELF header says.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM,
	"ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "loong64": elf.EM_LOONGARCH,
}

// check is checkProgram for a program that may be the image's.
func (p *Parser) check(name, path string) error {
	err := checkProgram(name, path)
	if ExitCode(err) == ExitNotFound && p.InImage != nil {
		if at, ok := p.InImage(path); ok && at == path {
			return nil
		}
	}
	return err
}

// checkProgram finds out whether the program at path can run in a guest,
// which has the architecture of this machine.
func checkProgram(name, path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf(ExitNotFound, "program %s does not exist (looked for %s)", name, path)
	case err != nil:
		return failf(ExitNotExec, "program %s: %w", name, err)
	case info.IsDir():
		return failf(ExitNotExec, "program %s is a directory; give the program in it", name)
	case !info.Mode().IsRegular():
		return failf(ExitNotExec, "program %s is not a file", name)
	case info.Mode()&0o111 == 0:
		return failf(ExitNotExec, "program %s is not executable; chmod +x %s if it should be", name, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return failf(ExitNotExec, "program %s cannot be read, which is needed to take it into the guests: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	head, _ := bufio.NewReader(f).Peek(256)
	switch {
	case len(head) == 0:
		return failf(ExitNotExec, "program %s is an empty file", name)
	case strings.HasPrefix(string(head), elf.ELFMAG):
		return checkELF(name, f)
	case strings.HasPrefix(string(head), "#!"):
		return checkInterpreter(name, string(head[2:]))
	}
	return nil // execvp hands it to the shell
}

func checkELF(name string, f *os.File) error {
	e, err := elf.NewFile(f)
	if err != nil {
		return failf(ExitNotExec, "program %s is a damaged executable: %w", name, err)
	}
	if want, ok := machines[runtime.GOARCH]; ok && e.Machine != want {
		return failf(ExitNotExec, "program %s is built for %s and the guests are %s; build it for this machine", name,
			strings.TrimPrefix(e.Machine.String(), "EM_"), strings.TrimPrefix(want.String(), "EM_"))
	}
	if e.Type != elf.ET_EXEC && e.Type != elf.ET_DYN {
		return failf(ExitNotExec, "program %s is an ELF file but no executable (%s); link it first", name, e.Type)
	}
	return nil
}

func checkInterpreter(name, line string) error {
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil
	}
	if _, err := os.Stat(words[0]); err != nil {
		return failf(ExitNotFound, "program %s is a script for %s, which does not exist", name, words[0])
	}
	return nil
}
