package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// NPBTree is a source tree of the reference implementation of the NAS Parallel
// Benchmarks, Multi-Zone, versions 3.x, that the user has.
type NPBTree struct {
	Dir string // of the MPI version
}

// ErrNPBTree is wrapped by errors about a directory that is no such tree.
var ErrNPBTree = errors.New("not a source tree of NPB3.x-MZ")

// FindNPBTree finds the MPI version in dir, which is it or contains it.
func FindNPBTree(dir string) (NPBTree, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return NPBTree{}, fmt.Errorf("%w: %w", ErrNPBTree, err)
	}
	if info, err := os.Stat(dir); err != nil {
		return NPBTree{}, fmt.Errorf("%s: %w: %w", dir, ErrNPBTree, err)
	} else if !info.IsDir() {
		return NPBTree{}, fmt.Errorf("%s: %w: it is a file; unpack the archive and name its directory", dir, ErrNPBTree)
	}
	inside, err := filepath.Glob(filepath.Join(dir, "NPB3.*-MZ-MPI"))
	if err != nil {
		return NPBTree{}, fmt.Errorf("%w: %w", ErrNPBTree, err)
	}
	switch {
	case len(inside) == 1:
		dir = inside[0]
	case len(inside) > 1:
		return NPBTree{}, fmt.Errorf("%s: %w: it holds several: name one of %s", dir, ErrNPBTree, strings.Join(inside, ", "))
	}
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	var missing []string
	for _, name := range []string{"Makefile", "sys", "config", "common", "BT-MZ", "SP-MZ", "LU-MZ"} {
		if !there(name) {
			missing = append(missing, name)
		}
	}
	switch {
	case strings.HasSuffix(dir, "-MZ-SER") || strings.HasSuffix(dir, "-MZ-OMP"):
		return NPBTree{}, fmt.Errorf("%s: %w: it is the version without MPI; the one whose name ends in -MZ-MPI is wanted", dir, ErrNPBTree)
	case len(missing) > 0 && there("BT") && there("EP"):
		return NPBTree{}, fmt.Errorf("%s: %w: it is NPB without zones; Multi-Zone is an archive of its own", dir, ErrNPBTree)
	case len(missing) > 0:
		return NPBTree{}, fmt.Errorf("%s: %w: there is no %s in it", dir, ErrNPBTree, strings.Join(missing, ", "))
	case !there("config/make.def") && !there("config/make.def.template"):
		return NPBTree{}, fmt.Errorf("%s: %w: config has neither make.def nor make.def.template", dir, ErrNPBTree)
	}
	return NPBTree{Dir: dir}, nil
}

// Build builds a benchmark (bt-mz, sp-mz or lu-mz) for an MPI in a copy of the
// tree below work and returns the program's path. What was built there before
// is taken as it is. The tree's config/make.def says how; without one its
// template does. mpif90 and the like are those of the MPI.
func (t NPBTree) Build(ctx context.Context, work, benchmark, class, mpi string, ranks int) (string, error) {
	tree := filepath.Join(work, fmt.Sprintf("%s-%s-%s-%d", benchmark, class, mpi, ranks))
	if program, err := built(tree, benchmark, class); err == nil {
		return program, nil
	}
	if err := os.RemoveAll(tree); err != nil {
		return "", fmt.Errorf("removing a build that was not finished: %w", err)
	}
	if err := os.CopyFS(tree, os.DirFS(t.Dir)); err != nil {
		return "", fmt.Errorf("copying the tree: %w", err)
	}
	config := filepath.Join(tree, "config", "make.def")
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		text, err := os.ReadFile(config + ".template")
		if err == nil {
			err = os.WriteFile(config, text, 0o644) //nolint:gosec // sources anybody may read
		}
		if err != nil {
			return "", fmt.Errorf("taking the tree's template of make.def: %w", err)
		}
	}
	// A tree that was built before brings its programs along.
	if err := errors.Join(os.RemoveAll(filepath.Join(tree, "bin")), os.MkdirAll(filepath.Join(tree, "bin"), 0o755)); err != nil { //nolint:gosec // programs anybody may run
		return "", fmt.Errorf("making the directory of programs: %w", err)
	}
	shims, err := compilers(filepath.Join(work, "compilers-"+mpi), mpi)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "make", benchmark, "CLASS="+class, fmt.Sprintf("NPROCS=%d", ranks))
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "PATH="+shims+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building %s in a copy of %s: %w; compilers and flags are set in its config/make.def\n%s", benchmark, t.Dir, err, tail(string(out), 3000))
	}
	program, err := built(tree, benchmark, class)
	if err != nil {
		return "", fmt.Errorf("make %s CLASS=%s ended well, but %w\n%s", benchmark, class, err, tail(string(out), 3000))
	}
	return program, nil
}

// built finds a benchmark's program: versions 3.4 name it bt-mz.W.x, those
// before bt-mz.W.2, with the number of ranks.
func built(tree, benchmark, class string) (string, error) {
	found, err := filepath.Glob(filepath.Join(tree, "bin", benchmark+"."+class+"*"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d programs of the name %s.%s are in its bin, not one", len(found), benchmark, class)
	}
	return found[0], nil
}

// compilers makes a directory in which the usual names of compilers are those
// of one MPI.
func compilers(dir, mpi string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // links only
		return "", fmt.Errorf("making a directory for compilers: %w", err)
	}
	for _, name := range []string{"mpif90", "mpif77", "mpifort", "mpicc"} {
		path, err := exec.LookPath(name + "." + mpi)
		if err != nil {
			continue // the tree may not want it; if it does, make says so
		}
		link := filepath.Join(dir, name)
		if err := os.Symlink(path, link); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("naming a compiler: %w", err)
		}
	}
	return dir, nil
}

// NPBRun says how a built benchmark is run.
type NPBRun struct {
	Program, Benchmark, Class, MPI string
	Ranks, Repetitions             int
	Where                          []string
	Interval                       string
}

var npbExperiment = template.Must(template.New("npb").Parse(`name: npb-{{.Benchmark}}
title: {{.Benchmark}} class {{.Class}}, the reference implementation
about: Built from the user's own source tree.
repetitions: {{.Repetitions}}
programs:
  reference: {path: {{printf "%q" .Program}}, check: npb}
runs:
{{- range .Where}}
  - {program: reference, class: {{$.Class}}, where: {{.}}, mpi: {{$.MPI}}, ranks: {{$.Ranks}}{{if eq . "guests"}}, interval: {{$.Interval}}{{end}}}
{{- end}}
{{- range .Where}}
  - {program: {{$.Benchmark}}, class: {{$.Class}}, where: {{.}}, mpi: {{$.MPI}}, ranks: {{$.Ranks}}{{if eq . "guests"}}, interval: {{$.Interval}}{{end}}}
{{- end}}
metrics: [program, mops, total]
baseline: {program: reference}
per: [where]
`))

// Experiment compares the benchmark with the project's own of the same name,
// as YAML.
func (r NPBRun) Experiment() ([]byte, error) {
	if !slices.Contains([]string{"bt-mz", "sp-mz", "lu-mz"}, r.Benchmark) || len(r.Class) != 1 {
		return nil, fmt.Errorf("benchmark %q, class %q: the benchmarks are bt-mz, sp-mz and lu-mz, a class is a letter such as W", r.Benchmark, r.Class)
	}
	var b strings.Builder
	if err := npbExperiment.Execute(&b, r); err != nil {
		return nil, fmt.Errorf("writing the experiment: %w", err)
	}
	return []byte(b.String()), nil
}
