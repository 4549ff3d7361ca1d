package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
)

// Restore measures restarts of a job whose guests get their memory lazily,
// against the same restarts in the plain way, in which all memory is loaded
// before the guest runs: how long it takes until the guest can run, and how much
// the program gets done in the first ten seconds.
type Restore struct {
	Bin      string       // directory of the binaries
	Dir      string       // working directory, made and removed by the caller
	Memory   []int        // guests' RAM in MiB; the program uses half of it
	Restarts int          // of each job
	Emit     func(Result) // gets each figure as it is known
}

// workWindow is how long after the decision to restart the work is counted.
const workWindow = 10 * time.Second

// restores are the figures of the restarts of one job.
type restores struct {
	load, decision []float64 // ms: QEMU's start, and the decision, to where the guest could run
	steps          []float64 // of the program, within the window
	fill           []float64 // ms from when the guest ran until it had its memory
	waited         []float64 // pages that the guest waited for
	longest        []float64 // ms that it waited for one
}

// Run measures everything; what was measured before an error has been emitted.
func (m Restore) Run(ctx context.Context) error {
	for _, mib := range m.Memory {
		lazy, err := m.job(ctx, mib, "lazy")
		if err != nil {
			return err
		}
		plain, err := m.job(ctx, mib, "plain")
		if err != nil {
			return err
		}
		name := fmt.Sprintf("1 guest of %d MiB, half in use, %d restarts", mib, m.Restarts)
		emit := func(metric string, value float64, unit string, baseline float64) {
			m.Emit(Result{Bench: "restore", Case: name, Metric: metric, Value: value, Unit: unit}.against(baseline))
		}
		emit("QEMU's start to first instruction, median", campaign.Quantile(lazy.load, 0.5), "ms", campaign.Quantile(plain.load, 0.5))
		emit("decision to first instruction, median", campaign.Quantile(lazy.decision, 0.5), "ms", campaign.Quantile(plain.decision, 0.5))
		emit("work in the first 10 s, median", campaign.Quantile(lazy.steps, 0.5), "steps", campaign.Quantile(plain.steps, 0.5))
		emit("memory complete, median", campaign.Quantile(lazy.fill, 0.5), "ms", 0)
		emit("pages waited for, median", campaign.Quantile(lazy.waited, 0.5), "pages", 0)
		emit("longest wait for a page, max", campaign.Quantile(lazy.longest, 1), "ms", 0)
	}
	return nil
}

// job runs the program in a lab of its own, restarts it again and again, and
// measures.
func (m Restore) job(ctx context.Context, mib int, way string) (r restores, err error) {
	lab, err := startCluster(ctx, m.Bin, filepath.Join(m.Dir, fmt.Sprintf("%s%d", way, mib)), 1)
	if err != nil {
		return r, err
	}
	defer func() {
		if derr := lab.stop(ctx); err == nil {
			err = derr
		}
	}()
	j, err := lab.start(ctx, "--vft-interval", "0", "--vft-memory", fmt.Sprint(mib), "--vft-nodes", "1", "--vft-cpus", "1",
		"--vft-restore", way, "-np", "1", filepath.Join(m.Bin, "sweep.openmpi"), fmt.Sprint(mib/2), "1000000000")
	if err != nil {
		return r, err
	}
	defer j.interrupt()
	started, err := j.await(ctx, "started")
	if err != nil {
		return r, err
	}
	if err := j.printed(ctx, func(_ time.Time, line string) bool { return line == "step 20" }); err != nil {
		return r, err
	}
	for range m.Restarts {
		if err := m.restart(ctx, lab, j, started.Job, way, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// restart takes a checkpoint and restarts the job from it.
func (m Restore) restart(ctx context.Context, lab *cluster, j *job, id, way string, r *restores) error {
	var epoch struct {
		Number int64 `json:"number,string"`
		Parts  []struct {
			CutAt int64 `json:"cutAt,string"`
		}
	}
	if err := lab.ask(ctx, &epoch, "ckpt", "take", id); err != nil {
		return err
	}
	if len(epoch.Parts) != 1 {
		return fmt.Errorf("checkpoint %d has %d parts", epoch.Number, len(epoch.Parts))
	}
	saved := j.stepAt(time.Unix(0, epoch.Parts[0].CutAt))
	if _, err := lab.run(ctx, "--cluster", lab.dir, "job", "restart", id); err != nil {
		return err
	}
	decided, err := j.await(ctx, "restarting")
	if err != nil {
		return err
	}
	runs, err := j.await(ctx, "restarted")
	if err != nil {
		return err
	}
	if lazily := runs.Figures["lazy"] == 1; lazily != (way == "lazy") {
		return fmt.Errorf("the guest was not restored in the way %q: %s", way, runs.Text)
	}
	r.load = append(r.load, inMillis(runs.Figures["load"]))
	r.decision = append(r.decision, inMillis(int64(runs.Time.Sub(decided.Time))))
	if way == "lazy" {
		filled, err := j.await(ctx, "filled")
		if err != nil {
			return err
		}
		r.fill = append(r.fill, inMillis(filled.Figures["took"]))
		r.waited = append(r.waited, float64(filled.Figures["demanded"]))
		r.longest = append(r.longest, inMillis(filled.Figures["wait"]))
	}
	end := decided.Time.Add(workWindow)
	// Lines that had been shown before are not shown again: the first one after
	// the window is a new one, or the window had no time for the program.
	if err := j.printed(ctx, func(at time.Time, _ string) bool { return at.After(end) }); err != nil {
		return err
	}
	r.steps = append(r.steps, float64(j.stepAt(end)-saved))
	return nil
}

// stepAt is the last step that the program had told of at a time.
func (j *job) stepAt(at time.Time) int64 {
	step := int64(0)
	for shown, line := range j.stdout.lines {
		if shown.After(at) {
			break
		}
		if n, err := strconv.ParseInt(strings.TrimPrefix(line, "step "), 10, 64); err == nil {
			step = n
		}
	}
	return step
}

func inMillis(ns int64) float64 { return float64(ns) / 1e6 }
