package bench

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// hpccExample is the input file that Debian's hpcc package brings.
const hpccExample = "/usr/share/doc/hpcc/examples/_hpccinf.txt"

// HPCC is Debian's hpcc, the HPC Challenge benchmarks, with its own example
// input scaled to problem size n.
func HPCC(n int) App {
	return App{
		Name:    "hpcc",
		Options: []string{"--vft-interval", "10s", "--vft-memory", "512M", "--vft-stage", "hpccinf.txt", "-np", "4"},
		Argv:    []string{"/usr/bin/hpcc"},
		Prepare: func(dir string) error {
			data, err := os.ReadFile(hpccExample)
			if err != nil {
				return fmt.Errorf("reading hpcc's example input (install the package hpcc): %w", err)
			}
			scaled, err := scaleHPCC(string(data), n)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "hpccinf.txt"), []byte(scaled), 0o644) //nolint:gosec // input anybody may read
		},
		Check: func(dir, _ string) ([]string, error) { return checkHPCC(filepath.Join(dir, "hpccoutf.txt")) },
	}
}

// scaleHPCC sets HPL's problem size, the line that ends in "Ns".
func scaleHPCC(input string, n int) (string, error) {
	size := regexp.MustCompile(`(?m)^\d+(\s+)Ns$`)
	if !size.MatchString(input) {
		return "", errors.New("hpcc's example input has no line of problem sizes")
	}
	return size.ReplaceAllString(input, strconv.Itoa(n)+"${1}Ns"), nil
}

// checkHPCC reads the verdicts out of hpcc's output file: HPL's residual and
// the checks of the other tests. Any that is missing or bad is an error.
func checkHPCC(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("hpcc's output file did not come back: %w", err)
	}
	var shown []string
	summary := map[string]string{}
	residual := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		// The heading explains the quotient; the results have an equals sign.
		if strings.HasPrefix(line, "||Ax-b||") && strings.Contains(line, "=") {
			shown = append(shown, line)
			if !strings.HasSuffix(line, "PASSED") {
				return shown, errors.New("HPL's residual check did not pass")
			}
			residual = true
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			summary[key] = value
		}
	}
	if !residual {
		return shown, errors.New("HPL's residual check is not in the output")
	}
	if summary["Success"] != "1" {
		return shown, fmt.Errorf("hpcc's summary says Success=%q", summary["Success"])
	}
	shown = append(shown, "hpcc summary: Success=1")
	for _, check := range []struct {
		key, what string
		limit     float64
	}{
		{"PTRANS_residual", "PTRANS residual", 16},
		{"MPIRandomAccess_ErrorsFraction", "MPI RandomAccess errors", 0.01},
		{"MPIFFT_maxErr", "MPI FFT error", 1e-6},
	} {
		v, err := strconv.ParseFloat(strings.TrimSpace(summary[check.key]), 64)
		if err != nil {
			return shown, fmt.Errorf("%s (%s) is not in the summary", check.what, check.key)
		}
		shown = append(shown, fmt.Sprintf("%s %g (at most %g)", check.what, v, check.limit))
		if math.IsNaN(v) || v < 0 || v > check.limit {
			return shown, fmt.Errorf("%s is %g, not from 0 to %g", check.what, v, check.limit)
		}
	}
	return shown, nil
}

// NPB is one of the project's multi-zone benchmarks (docs/NPBMZ.md) on two
// guests with one processor each: solver is bt, sp or lu, mpi openmpi or mpich.
func NPB(bin, solver, mpi, class string) App {
	options := []string{"--vft-interval", "10s", "--vft-memory", "256M", "--vft-cpus", "1", "-np", "2"}
	return App{
		Name:    solver + "-mz",
		Options: append(options, threads(mpi, 1)...),
		Argv:    []string{npbProgram(bin, solver, mpi), class},
		Check:   func(_, stdout string) ([]string, error) { return checkNPB(stdout) },
	}
}

// npbProgram is where `make npbmz` puts a benchmark.
func npbProgram(bin, solver, mpi string) string {
	name := solver + "-mz"
	if mpi == mpich {
		name += ".mpich"
	}
	return filepath.Join(bin, name)
}

// The MPI implementations, as options name them.
const (
	openMPI = "openmpi"
	mpich   = "mpich"
)

// threads are mpirun's options that give all ranks so many threads, in the
// words of an MPI.
func threads(mpi string, n int) []string {
	if mpi == mpich {
		return []string{"-genv", "OMP_NUM_THREADS", strconv.Itoa(n)}
	}
	return []string{"-x", "OMP_NUM_THREADS=" + strconv.Itoa(n)}
}

// checkNPB requires a benchmark's verdict, once, and its time steps in order:
// output doubled or lost by a restart would show here.
func checkNPB(stdout string) ([]string, error) {
	var shown []string
	last, total := 0, 0
	for line := range strings.Lines(stdout) {
		line = strings.TrimSpace(line)
		var n int
		if _, err := fmt.Sscanf(line, "Iterations %d", &n); err == nil {
			total = n
		}
		if _, err := fmt.Sscanf(line, "Time step %d", &n); err == nil {
			// The first one is shown, then every twentieth.
			want := (last/20 + 1) * 20
			if last == 0 {
				want = 1
			}
			switch {
			case n <= last:
				return nil, fmt.Errorf("time step %d came after %d: output was doubled", n, last)
			case n != want:
				return nil, fmt.Errorf("time step %d came after %d: output was lost", n, last)
			}
			last = n
		}
		if strings.HasPrefix(line, "Verification ") && !strings.HasPrefix(line, "Verification  ") {
			shown = append(shown, line)
		}
	}
	switch {
	case len(shown) == 0:
		return nil, errors.New("the program printed no verdict")
	case len(shown) > 1:
		return shown, errors.New("the verdict came twice: output was doubled")
	case shown[0] != "Verification SUCCESSFUL" && !strings.HasPrefix(shown[0], "Verification SUCCESSFUL,"):
		return shown, fmt.Errorf("the program says %q", shown[0])
	case last == 0 || total-last >= 20:
		return shown, fmt.Errorf("no time step was shown after %d of %d: output was lost", last, total)
	}
	return shown, nil
}

// Heat is the project's own self-checking solver, built for one MPI (see
// bench/workloads/heat.c).
func Heat(program string, n, iterations int) App {
	return App{
		Name:    "heat",
		Options: []string{"--vft-interval", "10s", "--vft-memory", "512M", "-np", "4"},
		Argv:    []string{program, strconv.Itoa(n), strconv.Itoa(iterations), strconv.Itoa(max(iterations/40, 1))},
		Check: func(_, stdout string) ([]string, error) {
			return checkHeat(stdout)
		},
	}
}

// checkHeat requires the program's verdict and its progress lines once each
// and in order: output doubled or lost by a restart would show here.
func checkHeat(stdout string) ([]string, error) {
	last, step, total := 0, 0, 0
	verdict := ""
	for line := range strings.Lines(stdout) {
		line = strings.TrimSpace(line)
		var i, skip int
		if _, err := fmt.Sscanf(line, "iteration %d", &i); err == nil {
			if step == 0 {
				step = i
			}
			switch {
			case i <= last:
				return nil, fmt.Errorf("iteration %d came after %d: output was doubled", i, last)
			case i != last+step:
				return nil, fmt.Errorf("iteration %d came after %d: output was lost", i, last)
			}
			last = i
		}
		if _, err := fmt.Sscanf(line, "heat: %d ranks, %d x %d, %d iterations", &skip, &skip, &skip, &i); err == nil {
			total = i
		}
		if strings.HasPrefix(line, "Verification") {
			if verdict != "" {
				return nil, errors.New("the verdict came twice: output was doubled")
			}
			verdict = line
		}
	}
	switch {
	case verdict != "Verification SUCCESSFUL":
		return nil, fmt.Errorf("the program says %q", verdict)
	case step == 0 || total-last >= step:
		return nil, fmt.Errorf("no progress was shown after iteration %d of %d: output was lost", last, total)
	}
	return []string{verdict}, nil
}
