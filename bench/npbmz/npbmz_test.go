// Package npbmz tests BT-MZ, SP-MZ and LU-MZ, which are written in C: see
// docs/NPBMZ.md.
package npbmz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	root = "../.."
	// patience bounds every command on a busy machine.
	patience = 2 * time.Minute
)

var benchmarks = []string{"bt", "sp", "lu"}

// mpis are the MPIs and how their programs are named and started.
var mpis = map[string]struct {
	suffix string
	mpirun []string
}{
	"openmpi": {"", []string{"mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"}},
	"mpich":   {".mpich", []string{"mpirun.mpich"}},
}

// command runs a program and returns its output and exit code.
func command(t *testing.T, env []string, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// Ranks and threads outnumber processors here: nobody may wait by spinning.
	cmd.Env = slices.Concat(os.Environ(), []string{"OMP_WAIT_POLICY=passive"}, env)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		require.NoError(t, err, "%s: %s", name, errOut.String())
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// build makes the programs once.
var build = sync.OnceValue(func() error {
	for _, tool := range []string{"make", "mpicc.openmpi", "mpirun.openmpi", "mpicc.mpich", "mpirun.mpich"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: run scripts/deps.sh, or apt-get install make gcc libc6-dev openmpi-bin libopenmpi-dev mpich libmpich-dev", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "make", "-C", root, "-j2", "npbmz").CombinedOutput()
	if err != nil {
		return fmt.Errorf("make npbmz: %w\n%s", err, out)
	}
	return nil
})

// run builds the programs and starts one of them with so many ranks and threads.
func run(t *testing.T, benchmark, mpi string, ranks, threads int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	require.NoError(t, build())
	program := filepath.Join(root, "bin", benchmark+"-mz"+mpis[mpi].suffix)
	return start(t, mpi, program, ranks, threads, args...)
}

func start(t *testing.T, mpi, program string, ranks, threads int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	mpirun := mpis[mpi].mpirun
	args = slices.Concat(mpirun[1:], []string{"-np", fmt.Sprint(ranks), program}, args)
	return command(t, []string{fmt.Sprint("OMP_NUM_THREADS=", threads)}, mpirun[0], args...)
}

// report is the line of JSON.
type report struct {
	Benchmark    string
	Class        string
	Iterations   int
	Ranks        int
	Threads      int
	Seconds      float64
	Mops         float64
	Verification string
	Norms        []struct {
		Name      string
		Variable  int
		Computed  float64
		Reference float64
		Error     float64
	}
}

// lastLine reads the report out of a program's output.
func lastLine(t *testing.T, stdout string) report {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var r report
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &r), "output: %s", stdout)
	return r
}

func TestVerified(t *testing.T) {
	for _, benchmark := range benchmarks {
		for mpi := range mpis {
			for _, test := range []struct {
				class          string
				ranks, threads int
			}{{"S", 1, 1}, {"S", 2, 2}, {"S", 3, 1}, {"S", 4, 2}, {"W", 2, 1}} {
				if test.class == "W" && (benchmark != "bt" || mpi != "openmpi") {
					continue // class W takes longer and has one thing more: BT-MZ's zones of 16 sizes
				}
				t.Run(fmt.Sprintf("%s/%s/%s-%dx%d", benchmark, mpi, test.class, test.ranks, test.threads), func(t *testing.T) {
					stdout, stderr, code := run(t, benchmark, mpi, test.ranks, test.threads, test.class, "--json")
					require.Equal(t, 0, code, "%s%s", stdout, stderr)
					assert.Contains(t, stdout, "\n Verification SUCCESSFUL,")
					assert.Contains(t, stdout, "\n Time step    1\n Time step   20\n Time step   40\n")
					r := lastLine(t, stdout)
					assert.Equal(t, "SUCCESSFUL", r.Verification)
					assert.Equal(t, strings.ToUpper(benchmark)+"-MZ", r.Benchmark)
					assert.Equal(t, test.class, r.Class)
					assert.Equal(t, test.ranks, r.Ranks)
					assert.Equal(t, test.ranks*test.threads, r.Threads)
					assert.Positive(t, r.Seconds)
					assert.Positive(t, r.Mops)
					want := map[string]int{"bt": 10, "sp": 10, "lu": 11}[benchmark]
					assert.Len(t, r.Norms, want)
					for _, n := range r.Norms {
						assert.InEpsilon(t, n.Reference, n.Computed, 1e-8, "%s %d", n.Name, n.Variable)
					}
				})
			}
		}
	}
}

// Another number of steps is nothing that published norms could verify.
func TestIterations(t *testing.T) {
	for _, benchmark := range benchmarks {
		stdout, stderr, code := run(t, benchmark, "mpich", 2, 1, "S", "--iterations", "3", "--json")
		assert.Equal(t, 3, code, stderr)
		assert.Contains(t, stdout, "\n Verification not performed")
		r := lastLine(t, stdout)
		assert.Equal(t, 3, r.Iterations)
		assert.Equal(t, "not performed", r.Verification)
	}
}

func TestBadArguments(t *testing.T) {
	for name, test := range map[string]struct {
		ranks int
		args  []string
		want  string
	}{
		"no class":         {2, nil, "which class?"},
		"unknown class":    {2, []string{"X"}, "unknown class 'X'"},
		"two classes":      {2, []string{"S", "W"}, "'W' is too much"},
		"empty class":      {2, []string{""}, "unknown class ''"},
		"unknown option":   {2, []string{"S", "--fast"}, "unknown option '--fast'"},
		"no number":        {2, []string{"S", "--iterations"}, "not ''"},
		"zero steps":       {2, []string{"S", "--iterations", "0"}, "not '0'"},
		"steps with noise": {2, []string{"S", "--iterations", "3x"}, "not '3x'"},
		"too many steps":   {2, []string{"S", "--iterations", "3000000000"}, "not '3000000000'"},
		"too many ranks":   {5, []string{"S"}, "at most 4 ranks"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := run(t, "bt", "mpich", test.ranks, 1, test.args...)
			assert.Equal(t, 2, code)
			assert.Empty(t, stdout)
			assert.Equal(t, 1, strings.Count(stderr, test.want), "one rank says it: %s", stderr)
		})
	}
	stdout, _, code := run(t, "bt", "mpich", 2, 1, "--help")
	assert.Equal(t, 0, code)
	assert.Equal(t, 1, strings.Count(stdout, "Usage:"), stdout)
}

// A program that solves other equations is told so: here the dissipation is
// larger by one part in a million.
func TestWrongResultsFailVerification(t *testing.T) {
	require.NoError(t, build())
	constants, err := os.ReadFile("src/constants.c")
	require.NoError(t, err)
	changed := strings.Replace(string(constants), ".dissipation = 0.25,", ".dissipation = 0.25000025,", 1)
	require.NotEqual(t, string(constants), changed)
	dir := t.TempDir()
	source := filepath.Join(dir, "constants.c")
	require.NoError(t, os.WriteFile(source, []byte(changed), 0o600))

	for _, benchmark := range benchmarks {
		objects, err := filepath.Glob(filepath.Join(root, "bin", "npbmz", "mpich", "*.o"))
		require.NoError(t, err)
		objects = slices.DeleteFunc(objects, func(path string) bool {
			name := strings.TrimSuffix(filepath.Base(path), ".o")
			return name == "constants" || name != benchmark && slices.Contains(benchmarks, name)
		})
		program := filepath.Join(dir, benchmark)
		args := slices.Concat([]string{"-std=c11", "-fopenmp", "-Isrc", "-o", program, source}, objects, []string{"-lm"})
		_, stderr, code := command(t, nil, "mpicc.mpich", args...)
		require.Equal(t, 0, code, stderr)

		stdout, stderr, code := start(t, "mpich", program, 2, 1, "S", "--json")
		assert.Equal(t, 1, code, stderr)
		assert.Contains(t, stdout, "\n Verification UNSUCCESSFUL")
		assert.Equal(t, "UNSUCCESSFUL", lastLine(t, stdout).Verification)
	}
}

// The parts below the solvers have tests of their own, in C, here with the
// compiler's checks for undefined behaviour and bad addresses.
func TestParts(t *testing.T) {
	require.NoError(t, build())
	program := filepath.Join(t.TempDir(), "unit")
	args := []string{
		"-std=c11", "-O1", "-g", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
		"-fno-sanitize-recover=all", "-Isrc", "-o", program, "testdata/unit.c",
	}
	for _, part := range []string{"constants", "field", "initial", "problem", "rhs", "verify", "zones"} {
		args = append(args, filepath.Join("src", part+".c"))
	}
	_, stderr, code := command(t, nil, "gcc", append(args, "-lm")...)
	require.Equal(t, 0, code, stderr)
	stdout, stderr, code := command(t, []string{"OMP_NUM_THREADS=2"}, program)
	assert.Equal(t, 0, code, "%s%s", stdout, stderr)
}
