package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
)

// Cut measures what taking a consistent cut costs a job that communicates all
// the time: how long processors stand still, how long the network is held, and
// how much longer the job takes with checkpoints than without.
type Cut struct {
	Bin    string       // directory of the binaries
	Dir    string       // working directory, made and removed by the caller
	Epochs int          // measured for pause and hold
	Emit   func(Result) // gets each figure as it is known
	Memory []string     // guests' RAM for pause and hold, the first one is the baseline of the others
	// Iterations of the program whose slowdown is measured, Rounds of it per
	// variant, interleaved.
	Iterations, Rounds int
}

// Run measures everything; what was measured before an error has been emitted.
func (c Cut) Run(ctx context.Context) (err error) {
	lab, err := startCluster(ctx, c.Bin, filepath.Join(c.Dir, "lab"), 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.stop(ctx)) }()
	var first float64
	for i, memory := range c.Memory {
		pause, err := c.pauses(ctx, lab, memory)
		if err != nil {
			return err
		}
		if i == 0 {
			first = pause
			continue
		}
		c.Emit(Result{Bench: "cut", Case: memory + " against " + c.Memory[0], Metric: "pause, median", Value: pause, Unit: "ms"}.against(first))
	}
	if c.Rounds > 0 {
		return c.slowdown(ctx, lab)
	}
	return nil
}

// program is the one that all cases run.
func (c Cut) program(iterations int) []string {
	return []string{filepath.Join(c.Bin, "alltoall.openmpi"), "4096", fmt.Sprint(iterations), "500"}
}

// pauses takes epochs of four guests on two nodes and returns the median pause
// in ms.
func (c Cut) pauses(ctx context.Context, lab *cluster, memory string) (float64, error) {
	args := []string{"--vft-interval", "0", "--vft-memory", memory, "--vft-nodes", "4", "--vft-cpus", "1", "--oversubscribe", "-np", "4"}
	j, err := lab.start(ctx, append(args, c.program(1<<30)...)...)
	if err != nil {
		return 0, err
	}
	defer j.interrupt()
	e, err := j.await(ctx, "started")
	if err != nil {
		return 0, err
	}
	var pauses, holds, commits []float64
	for range c.Epochs {
		var epoch struct {
			State, Hold, BegunAt, EndedAt string
			Parts                         []struct{ Pause string }
		}
		begun := time.Now()
		if err := lab.ask(ctx, &epoch, "ckpt", "take", e.Job); err != nil {
			return 0, err
		}
		commits = append(commits, time.Since(begun).Seconds()*1e3)
		holds = append(holds, millis(epoch.Hold))
		for _, p := range epoch.Parts {
			pauses = append(pauses, millis(p.Pause))
		}
	}
	name := fmt.Sprintf("4 guests of %s on 2 nodes, all-to-all, %d epochs", memory, c.Epochs)
	for _, q := range []struct {
		name string
		q    float64
	}{{"median", 0.5}, {"p99", 0.99}} {
		c.Emit(Result{Bench: "cut", Case: name, Metric: "pause, " + q.name, Value: campaign.Quantile(pauses, q.q), Unit: "ms"})
		c.Emit(Result{Bench: "cut", Case: name, Metric: "network hold, " + q.name, Value: campaign.Quantile(holds, q.q), Unit: "ms"})
	}
	c.Emit(Result{Bench: "cut", Case: name, Metric: "until committed, median", Value: campaign.Quantile(commits, 0.5), Unit: "ms"})
	return campaign.Quantile(pauses, 0.5), nil
}

// millis reads nanoseconds as JSON gives them.
func millis(ns string) float64 {
	var v float64
	_, _ = fmt.Sscan(ns, &v)
	return v / 1e6
}

// slowdown runs the program with and without checkpoints, by turns.
func (c Cut) slowdown(ctx context.Context, lab *cluster) error {
	type variant struct{ name, interval, engine string }
	variants := []variant{{"no checkpoints", "0", "auto"}}
	for _, engine := range []string{"auto", "background", "pre-copy"} {
		variants = append(variants, variant{engine + ", every second", "1s", engine}, variant{engine + ", every 5 s", "5s", engine})
	}
	seconds := map[string][]float64{}
	for range c.Rounds {
		for _, v := range variants {
			args := []string{"--vft-interval", v.interval, "--vft-engine", v.engine, "--vft-memory", "256M", "--vft-nodes", "2", "--vft-cpus", "1", "-np", "2"}
			j, err := lab.start(ctx, append(args, c.program(c.Iterations)...)...)
			if err != nil {
				return err
			}
			if err := j.wait(); err != nil {
				return err
			}
			took, err := j.value("seconds")
			if err != nil {
				return err
			}
			seconds[v.name] = append(seconds[v.name], took)
			again, err := j.value("retransmitted")
			if err != nil {
				return err
			}
			c.Emit(Result{Bench: "cut", Case: v.name, Metric: "TCP segments sent again", Value: again, Unit: "segments"})
		}
	}
	base := campaign.Quantile(seconds[variants[0].name], 0.5)
	for _, v := range variants[1:] {
		c.Emit(Result{Bench: "cut", Case: "2 guests of 256 MiB, all-to-all, " + v.name, Metric: "time of the program", Value: campaign.Quantile(seconds[v.name], 0.5), Unit: "s"}.against(base))
	}
	return nil
}
