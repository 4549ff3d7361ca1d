package simulate

import (
	"time"

	"github.com/mpirun-vft/vft/policy"
)

// NodeMTBF is the mean time between failures of one node that the published
// figure of a large training run gives: 419 unexpected interruptions in 54 days
// on 16,384 accelerators, eight to a node.
const NodeMTBF = 54 * 24 * time.Hour / 419 * (16384 / 8)

// Year is the length of the simulations.
const Year = 365 * 24 * time.Hour

// ExampleJob is the job that the simulations use: a checkpoint holds it up for
// 20 s and is committed a minute later, a restart takes a minute, a migration
// too and costs it 2 s. It believes in a third of the true MTBF.
func ExampleJob(mtbf time.Duration) Job {
	return Job{
		Costs:     policy.Costs{Checkpoint: 20 * time.Second, Latency: time.Minute, Restart: time.Minute, Downtime: 10 * time.Second},
		Migration: time.Minute, MigrationLoss: 2 * time.Second, Prior: mtbf / 3,
	}
}

// Comparison is one predictor on one size of job. Wastes are shares of the time.
type Comparison struct {
	Nodes             int
	Precision, Recall float64
	Policy            float64 // what the policy wastes
	Best              float64 // the best fixed interval with hindsight, alarms handled alike
	BestInterval      time.Duration
	Daly              float64 // Daly's interval with the true MTBF, alarms ignored
}

// Compare simulates a year for several seeds. Alarms come with 10 min lead.
func Compare(nodes int, precision, recall float64, seeds int) Comparison {
	mtbf := NodeMTBF / time.Duration(nodes)
	traces := make([]*Trace, seeds)
	for i := range traces {
		traces[i] = NewTrace(Failures{MTBF: mtbf, Precision: precision, Recall: recall, Lead: 10 * time.Minute}, Year, uint64(i))
	}
	j := ExampleJob(mtbf)
	c := Comparison{
		Nodes: nodes, Precision: precision, Recall: recall,
		Policy: Mean(traces, j, Strategy{Alarms: true}),
		Daly:   Mean(traces, j, Strategy{Fixed: policy.Daly(j.Checkpoint, mtbf)}),
	}
	c.BestInterval, c.Best = BestFixed(traces, j, true)
	return c
}
