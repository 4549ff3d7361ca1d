package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
	"github.com/mpirun-vft/vft/internal/atomicfile"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// arms are the fault points that have to be there when daemons start, as
// environment, and the faults that come later.
func arms(faults []experiment.Fault) (env []string, later []experiment.Fault) {
	var points []string
	for _, f := range faults {
		if f.Step.Do == experiment.Arm {
			points = append(points, f.Step.Points)
			continue
		}
		later = append(later, f)
	}
	if len(points) > 0 {
		env = []string{faultpoint.EnvVar + "=" + strings.Join(points, ",")}
	}
	return env, later
}

// armed are the records of a plan's fault points.
func armed(plan experiment.Plan) []campaign.Fault {
	var out []campaign.Fault
	for _, s := range plan {
		if s.Do == experiment.Arm {
			out = append(out, campaign.Fault{Do: s.Do, Target: s.Points})
		}
	}
	return out
}

// injector makes the faults of a run happen, by what it sees of the job.
type injector struct {
	lab    *cluster
	faults []experiment.Fault

	mu        sync.Mutex
	wg        sync.WaitGroup
	cancel    context.CancelFunc
	job       string
	committed int
	last      target // what the fault before hit
	records   []done
}

// done is a fault that was waited for; at is zero when it did not come to it.
type done struct {
	fault     experiment.Fault
	target    string
	at, until time.Time
	err       error
}

// target is what a fault hits.
type target struct {
	node  string
	guest int // on it; -1: none of the job's
}

var errNotReached = errors.New("the job ended before")

func newInjector(lab *cluster, faults []experiment.Fault) *injector {
	return &injector{lab: lab, faults: faults}
}

// see hears an event of the job.
func (i *injector) see(ctx context.Context, e event) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch e.Kind {
	case "started":
		if i.job != "" {
			return
		}
		i.job = e.Job
		ctx, i.cancel = context.WithCancel(ctx)
		i.begin(ctx, 0)
	case "checkpoint":
		i.committed++
		i.begin(ctx, i.committed)
	}
}

// begin starts the clocks of the faults that count from a checkpoint (0: from
// the start).
func (i *injector) begin(ctx context.Context, after int) {
	for n, f := range i.faults {
		if f.Step.After != after {
			continue
		}
		i.wg.Add(1)
		go func() {
			defer i.wg.Done()
			d := i.wait(ctx, f)
			i.mu.Lock()
			defer i.mu.Unlock()
			i.records = append(i.records, d)
			i.faults[n].Step.After = -1 // dealt with
		}()
	}
}

// close ends what has not happened and returns the records.
func (i *injector) close(begun time.Time) []campaign.Fault {
	i.mu.Lock()
	if i.cancel != nil {
		i.cancel()
	}
	i.mu.Unlock()
	i.wg.Wait()
	for _, f := range i.faults {
		if f.Step.After >= 0 {
			i.records = append(i.records, done{fault: f, err: errNotReached})
		}
	}
	var out []campaign.Fault
	for _, d := range i.records {
		r := campaign.Fault{Do: strings.TrimSpace(d.fault.Step.Do + " " + d.fault.Step.Part), Target: d.target, Planned: d.fault.At.Seconds(), After: max(0, d.fault.Step.After)}
		if !d.at.IsZero() {
			r.At = d.at.Sub(begun).Seconds()
		}
		if !d.until.IsZero() {
			r.Until = d.until.Sub(begun).Seconds()
		}
		if d.err != nil {
			r.NotDone = d.err.Error()
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b campaign.Fault) int { return int(min(1, max(-1, (a.At-b.At)*1e6))) })
	return out
}

// wait does a fault when its time has come, and undoes it.
func (i *injector) wait(ctx context.Context, f experiment.Fault) done {
	d := done{fault: f}
	if !sleep(ctx, f.At) {
		d.err = errNotReached
		return d
	}
	t, err := i.find(ctx, f)
	if err != nil {
		d.err = fmt.Errorf("finding what to hit: %w", err)
		return d
	}
	d.target = t.node
	if t.guest >= 0 {
		d.target += fmt.Sprintf(" (guest %d)", t.guest)
	}
	i.mu.Lock()
	i.last = t
	i.mu.Unlock()
	d.at = time.Now()
	undo, err := i.do(ctx, f.Step, t)
	if err != nil {
		if ctx.Err() != nil {
			err = errNotReached
		}
		d.at, d.err = time.Time{}, err
		return d
	}
	if f.Step.For > 0 && undo != nil {
		sleep(ctx, time.Duration(f.Step.For))
		// Undone even when the job has ended: what was stopped must not stay so.
		if err := undo(context.WithoutCancel(ctx)); err != nil {
			d.err = fmt.Errorf("undoing it: %w", err)
		}
		d.until = time.Now()
	}
	return d
}

// sleep returns false when the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// find decides what a fault hits.
func (i *injector) find(ctx context.Context, f experiment.Fault) (target, error) {
	var job struct {
		Guests []struct {
			Index int
			Node  string
		}
	}
	if err := i.lab.ask(ctx, &job, "job", "show", i.job); err != nil {
		return target{}, err
	}
	on := f.Step.On
	if f.Step.Do == experiment.KillLeader {
		on = "leader"
	}
	switch on {
	case "same":
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.last.node == "" {
			return target{}, errors.New("nothing was hit before")
		}
		return i.last, nil
	case "leader":
		var status struct{ Leader string }
		if err := i.lab.ask(ctx, &status, "status"); err != nil {
			return target{}, err
		}
		on = status.Leader
	case "", "guest":
		if len(job.Guests) == 0 {
			return target{}, errors.New("the job has no guests now")
		}
		g := job.Guests[int(f.Pick*float64(len(job.Guests)))]
		return target{node: g.Node, guest: g.Index}, nil
	}
	index, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(on, "guest ")))
	for _, g := range job.Guests {
		if g.Node == on || err == nil && g.Index == index {
			return target{node: g.Node, guest: g.Index}, nil
		}
	}
	if err == nil {
		return target{}, fmt.Errorf("the job has no guest %d", index)
	}
	return target{node: on, guest: -1}, nil
}

// do makes a fault happen and returns what undoes it.
func (i *injector) do(ctx context.Context, s experiment.Step, t target) (undo func(context.Context) error, err error) {
	lab := func(verb string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := i.lab.run(ctx, "lab", verb, "--dir", i.lab.dir, t.node)
			return err
		}
	}
	switch s.Do {
	case experiment.KillNode, experiment.KillLeader:
		return lab("start"), lab("kill")(ctx)
	case experiment.Partition:
		return lab("heal"), lab("partition")(ctx)
	case experiment.KillQEMU:
		return nil, i.signal(s, t, unix.SIGKILL)
	case experiment.Stop:
		return func(context.Context) error { return i.signal(s, t, unix.SIGCONT) }, i.signal(s, t, unix.SIGSTOP)
	case experiment.EDAC:
		return nil, i.ramp(ctx, s, t.node)
	case experiment.Migrate:
		if t.guest < 0 {
			return nil, fmt.Errorf("no guest of the job is on %s", t.node)
		}
		_, err := i.lab.run(ctx, "--cluster", i.lab.dir, "guest", "migrate", fmt.Sprintf("%s/%d", i.job, t.guest))
		return nil, err
	}
	return nil, fmt.Errorf("nobody knows how to do %s", s.Do)
}

// signal sends a signal to what a step names.
func (i *injector) signal(s experiment.Step, t target, sig unix.Signal) error {
	config := filepath.Join(i.lab.dir, t.node) + string(filepath.Separator)
	words := []string{"qemu-system", fmt.Sprintf("vft-%s-%d", i.job, t.guest)}
	switch s.Part {
	case "sidecar", "coordinator":
		words = []string{"vft", " " + s.Part + " ", config}
	case "node":
		words = []string{"vft", " node run ", config}
	default:
		if t.guest < 0 {
			return fmt.Errorf("no guest of the job is on %s", t.node)
		}
	}
	found, err := processes(words...)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d processes match %q, not one", len(found), words)
	}
	pid := found[0]
	if s.Part == "node" {
		pid = -pid // its whole group
	}
	if err := unix.Kill(pid, sig); err != nil {
		return fmt.Errorf("sending %s to %d: %w", sig, pid, err)
	}
	return nil
}

// processes have all the words in their command lines.
func processes(words ...string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	var found []int
	for _, f := range files {
		data, err := os.ReadFile(f) //nolint:gosec // of /proc
		if err != nil {
			continue // it has ended
		}
		line := strings.ReplaceAll(string(data), "\x00", " ")
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err == nil && pid != os.Getpid() {
				found = append(found, pid)
			}
		}
	}
	return found, nil
}

// machineDir is where a lab's node looks for the machine's health.
const machineDir = "machine"

// edacFiles are the kernel's counters of one memory controller with one DIMM.
func edacFiles(corrected, uncorrected int) map[string]string {
	ce, ue := strconv.Itoa(corrected), strconv.Itoa(uncorrected)
	return map[string]string{
		"mc_name": "fault plan", "ce_count": ce, "ue_count": ue, "ce_noinfo_count": "0", "ue_noinfo_count": "0",
		"dimm0/dimm_label": "DIMM_A1", "dimm0/dimm_ce_count": ce, "dimm0/dimm_ue_count": ue,
	}
}

func (i *injector) writeEDAC(node string, corrected, uncorrected int) error {
	dir := filepath.Join(i.lab.dir, node, machineDir, "sys/devices/system/edac/mc/mc0")
	if err := os.MkdirAll(filepath.Join(dir, "dimm0"), 0o755); err != nil { //nolint:gosec // stands for sysfs
		return fmt.Errorf("making EDAC's directory: %w", err)
	}
	files := edacFiles(corrected, uncorrected)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := atomicfile.WriteFile(filepath.Join(dir, name), []byte(files[name]+"\n"), 0o644); err != nil {
			return fmt.Errorf("writing EDAC's counters: %w", err)
		}
	}
	return nil
}

// errNoHealthRoot says that the lab's nodes read the real machine's counters,
// which no plan can make count.
var errNoHealthRoot = errors.New("the lab's nodes have no health directory of their own")

// prepare lets memory controllers count from 0 where a plan will make them
// count: an error that was always there is not news.
func (i *injector) prepare(ctx context.Context) error {
	if !slices.ContainsFunc(i.faults, func(f experiment.Fault) bool { return f.Step.Do == experiment.EDAC }) {
		return nil
	}
	var nodes []struct{ ID string }
	if err := i.lab.ask(ctx, &nodes, "node", "ls"); err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := os.Stat(filepath.Join(i.lab.dir, n.ID, machineDir)); err != nil {
			continue // said when its time comes
		}
		if err := i.writeEDAC(n.ID, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// ramp lets a node's memory controller count errors, ever more until all have
// come.
func (i *injector) ramp(ctx context.Context, s experiment.Step, node string) error {
	if _, err := os.Stat(filepath.Join(i.lab.dir, node, machineDir)); err != nil {
		return errNoHealthRoot
	}
	const tick = time.Second
	steps := max(1, int(time.Duration(s.For)/tick))
	for n := 1; n <= steps; n++ {
		if err := i.writeEDAC(node, s.Errors*n/steps, s.Uncorrected*n/steps); err != nil {
			return err
		}
		if n < steps && !sleep(ctx, tick) {
			return nil // as many as the job saw
		}
	}
	return nil
}
