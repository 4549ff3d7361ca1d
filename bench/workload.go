package bench

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

// netpipe is Debian's NetPIPE, by MPI.
var netpipe = map[string]string{openMPI: "/usr/bin/NPopenmpi", mpich: "/usr/bin/NPmpich2"}

// verdict is what a program says of itself.
type verdict struct {
	proof   []string
	figures map[string]float64
	curve   []campaign.Point
}

// workload is a program of an experiment's variant.
type workload struct {
	argv  []string
	check func(stdout, stderr string) (verdict, error) // its error: the result is not verified
	step  *regexp.Regexp                               // finds in a line how much is done
}

var (
	npbStep  = regexp.MustCompile(`^\s*Time step\s+(\d+)\s*$`)
	heatStep = regexp.MustCompile(`^iteration (\d+) `)
)

// workloadOf is the program that a variant runs; bin holds the project's own.
func workloadOf(x experiment.Experiment, v experiment.Variant, bin string) (workload, error) {
	var w workload
	switch v.Program {
	case "bt-mz", "sp-mz", "lu-mz":
		if v.Class == "" {
			return w, fmt.Errorf("%s needs a class", v.Program)
		}
		w.argv = []string{npbProgram(bin, strings.TrimSuffix(v.Program, "-mz"), v.MPI), v.Class}
		w.step = npbStep
		w.check = func(out, _ string) (verdict, error) {
			proof, err := checkNPB(out)
			return verdict{proof: proof, figures: npbFigures(out)}, err
		}
	case "heat":
		w.argv, w.step = []string{filepath.Join(bin, "heat."+v.MPI)}, heatStep
		w.check = func(out, _ string) (verdict, error) {
			proof, err := checkHeat(out)
			return verdict{proof: proof}, err
		}
	case "netpipe":
		w.argv = []string{netpipe[v.MPI]}
		w.check = func(_, errs string) (verdict, error) { return checkNetPIPE(errs) }
	default:
		p := x.Programs[v.Program]
		w.argv, w.step = []string{p.Path}, npbStep
		for _, a := range p.Arguments {
			w.argv = append(w.argv, strings.ReplaceAll(a, "{class}", v.Class))
		}
		w.check = func(out, _ string) (verdict, error) { return checkReference(out) }
		if p.Check == "text" {
			w.check = func(out, _ string) (verdict, error) { return checkText(out, p.Expect) }
		}
	}
	w.argv = append(w.argv, strings.Fields(v.Arguments)...)
	return w, nil
}

// done reads how much a line of output says is done.
func (w workload) done(line string) (int, bool) {
	if w.step == nil {
		return 0, false
	}
	m := w.step.FindStringSubmatch(line)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil
}

// nativeCommand is mpirun's command line for a variant.
func (w workload) nativeCommand(v experiment.Variant) []string {
	args := []string{"mpirun." + v.MPI, "-np", strconv.Itoa(v.Ranks)}
	if v.MPI == openMPI {
		if v.Ranks > runtime.NumCPU() {
			args = append(args, "--oversubscribe")
		}
		if v.Threads > 1 {
			args = append(args, "--bind-to", "none")
		}
	}
	return append(append(args, threads(v.MPI, v.Threads)...), w.argv...)
}

// guestOptions are mpirun-vft's for a variant, with the program.
func (w workload) guestOptions(v experiment.Variant) []string {
	args := []string{"--vft-memory", v.Memory, "--vft-nodes", strconv.Itoa(v.Guests), "--vft-cpus", strconv.Itoa(v.CPUs), "--vft-restarts", strconv.Itoa(v.Restarts)}
	if v.Interval == 0 {
		args = append(args, "--vft-interval", "0")
	} else {
		args = append(args, "--vft-interval", v.Interval.String(), "--vft-engine", v.Engine)
	}
	if v.MPI == openMPI && (v.Ranks > v.Guests*v.CPUs || v.Guests > v.Nodes) {
		args = append(args, "--oversubscribe")
	}
	args = append(args, "-np", strconv.Itoa(v.Ranks))
	return append(append(args, threads(v.MPI, v.Threads)...), w.argv...)
}

// npbValues are the figures in a NAS benchmark's summary, the reference
// implementation's and the project's alike.
var npbValues = map[string]*regexp.Regexp{
	"program":         regexp.MustCompile(`(?m)^\s*Time in seconds\s*=\s*([0-9.eE+-]+)\s*$`),
	"mops":            regexp.MustCompile(`(?m)^\s*Mop/s total\s*=\s*([0-9.eE+-]+)\s*$`),
	"mops_per_thread": regexp.MustCompile(`(?m)^\s*Mop/s/thread\s*=\s*([0-9.eE+-]+)\s*$`),
}

func npbFigures(out string) map[string]float64 {
	figures := map[string]float64{}
	for name, form := range npbValues {
		if m := form.FindStringSubmatch(out); m != nil {
			if v, err := strconv.ParseFloat(m[1], 64); err == nil {
				figures[name] = v
			}
		}
	}
	return figures
}

var npbVerdict = regexp.MustCompile(`(?m)^\s*Verification\s*=\s*(.*?)\s*$`)

// checkReference reads the summary that the NAS reference implementation
// prints.
func checkReference(out string) (verdict, error) {
	v := verdict{figures: npbFigures(out)}
	found := npbVerdict.FindAllStringSubmatch(out, -1)
	for _, m := range found {
		v.proof = append(v.proof, "Verification = "+m[1])
	}
	switch {
	case len(found) == 0:
		return v, errors.New("the program printed no verdict")
	case len(found) > 1:
		return v, errors.New("the verdict came more than once: output was doubled")
	case !strings.EqualFold(found[0][1], "SUCCESSFUL"):
		return v, fmt.Errorf("the program says %q", v.proof[0])
	}
	return v, nil
}

func checkText(out, expect string) (verdict, error) {
	if n := strings.Count(out, expect); n != 1 {
		return verdict{}, fmt.Errorf("%q is %d times in the output, not once", expect, n)
	}
	return verdict{proof: []string{expect}}, nil
}

var netpipeLine = regexp.MustCompile(`^\s*(\d+):\s+(\d+) bytes\s+\d+ times -->\s+([0-9.]+) Mbps in\s+([0-9.]+) usec`)

// checkNetPIPE reads the table that NetPIPE prints on stderr. It measures and verifies nothing: that all its lines are there, in order, is
// what can be asked of it.
func checkNetPIPE(out string) (verdict, error) {
	var v verdict
	for line := range strings.Lines(out) {
		m := netpipeLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		size, _ := strconv.Atoi(m[2])
		bandwidth, err1 := strconv.ParseFloat(m[3], 64)
		latency, err2 := strconv.ParseFloat(m[4], 64)
		if n != len(v.curve) || err1 != nil || err2 != nil || bandwidth <= 0 {
			return v, fmt.Errorf("NetPIPE's line %q does not follow line %d", strings.TrimSpace(line), len(v.curve)-1)
		}
		v.curve = append(v.curve, campaign.Point{Bytes: size, Bandwidth: bandwidth, Latency: latency})
	}
	if len(v.curve) < 2 {
		return v, errors.New("NetPIPE printed no table")
	}
	last := v.curve[len(v.curve)-1]
	v.figures = map[string]float64{"latency": v.curve[0].Latency, "bandwidth": 0}
	for _, p := range v.curve {
		v.figures["bandwidth"] = max(v.figures["bandwidth"], p.Bandwidth)
	}
	v.proof = []string{fmt.Sprintf("NetPIPE: %d sizes up to %d bytes", len(v.curve), last.Bytes)}
	return v, nil
}
