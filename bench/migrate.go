package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
)

// Migrate measures what moving a guest of a running program costs: how long the
// guest stands still, how long the whole takes, and whether TCP had to send
// anything again; against bare QEMU-to-QEMU migrations of the same machine, by
// turns.
type Migrate struct {
	Bin        string       // directory of the binaries
	Dir        string       // working directory, made and removed by the caller
	Moves      int          // at least, of guest 1 of two
	Memory     string       // guests' RAM
	Iterations int          // of the program
	Emit       func(Result) // gets each figure as it is known
}

// Run measures everything; what was measured before an error has been emitted.
func (m Migrate) Run(ctx context.Context) (err error) {
	lab, err := startCluster(ctx, m.Bin, filepath.Join(m.Dir, "lab"), 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.stop(ctx)) }()

	still, again, err := m.quietRun(ctx, lab)
	if err != nil {
		return err
	}
	j, id, err := m.begin(ctx, lab)
	if err != nil {
		return err
	}
	defer j.interrupt()
	bare, err := newBare(ctx, id, filepath.Join(m.Dir, "bare"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	var down, hold, total, sent, bareDown, bareTotal []float64
	for range m.Moves {
		ev, err := m.move(ctx, lab, id)
		if err != nil {
			return err
		}
		down = append(down, millis(ev.Figures["downtime"]))
		hold = append(hold, millis(ev.Figures["hold"]))
		total = append(total, millis(ev.Figures["took"]))
		sent = append(sent, millis(ev.Figures["bytes"])*1e6/(1<<20))
		b, err := bare.migrate(ctx)
		if err != nil {
			return err
		}
		bareDown = append(bareDown, b.down.Seconds()*1e3)
		bareTotal = append(bareTotal, b.total.Seconds()*1e3)
	}
	name := fmt.Sprintf("guest of %s, all-to-all of 2, %d moves", m.Memory, m.Moves)
	emit := func(metric string, value float64, unit string, baseline float64) {
		m.Emit(Result{Bench: "migrate", Case: name, Metric: metric, Value: value, Unit: unit}.against(baseline))
	}
	emit("downtime, median", campaign.Quantile(down, 0.5), "ms", campaign.Quantile(bareDown, 0.5))
	emit("downtime, p99", campaign.Quantile(down, 0.99), "ms", campaign.Quantile(bareDown, 0.99))
	emit("network hold, median", campaign.Quantile(hold, 0.5), "ms", 0)
	emit("total, median", campaign.Quantile(total, 0.5), "ms", campaign.Quantile(bareTotal, 0.5))
	emit("sent, median", campaign.Quantile(sent, 0.5), "MiB", 0)
	if err := j.wait(); err != nil {
		return err
	}
	moved, err := j.value("retransmitted")
	if err != nil {
		return err
	}
	took, err := j.value("seconds")
	if err != nil {
		return err
	}
	emit("TCP segments sent again", moved, "segments", again)
	emit("time of the program", took, "s", still)
	return nil
}

// begin starts the program and returns its job's id.
func (m Migrate) begin(ctx context.Context, lab *cluster) (*job, string, error) {
	args := []string{"--vft-interval", "0", "--vft-memory", m.Memory, "--vft-nodes", "2", "--vft-cpus", "1", "-np", "2"}
	j, err := lab.start(ctx, append(args, filepath.Join(m.Bin, "alltoall.openmpi"), "4096", fmt.Sprint(m.Iterations), "500")...)
	if err != nil {
		return nil, "", err
	}
	e, err := j.await(ctx, "started")
	if err != nil {
		j.interrupt()
		return nil, "", err
	}
	return j, e.Job, nil
}

// quietRun runs the program without a migration.
func (m Migrate) quietRun(ctx context.Context, lab *cluster) (seconds, retransmitted float64, err error) {
	j, _, err := m.begin(ctx, lab)
	if err != nil {
		return 0, 0, err
	}
	if err := j.wait(); err != nil {
		return 0, 0, err
	}
	if seconds, err = j.value("seconds"); err != nil {
		return 0, 0, err
	}
	retransmitted, err = j.value("retransmitted")
	return seconds, retransmitted, err
}

// moveEvent is what the command says of a migration.
type moveEvent struct {
	Figures map[string]string
}

// move moves guest 1 to whichever node suits.
func (m Migrate) move(ctx context.Context, lab *cluster, id string) (moveEvent, error) {
	var ev moveEvent
	err := lab.ask(ctx, &ev, "guest", "migrate", id+"/1")
	return ev, err
}

// bareMove is one migration between two QEMUs with nothing between them.
type bareMove struct{ down, total time.Duration }
