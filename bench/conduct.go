package bench

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

// Conduct makes the runs of a campaign that have not been made.
type Conduct struct {
	Campaign *campaign.Campaign
	// Execute makes a run; its error ends the campaign, which can go on later.
	Execute func(context.Context, experiment.Run) (campaign.Run, error)
	// Limit is the time after which no further run is begun; 0: none.
	Limit time.Duration
	Now   func() time.Time
	Out   io.Writer // progress
}

// NewConduct makes runs with the binaries in a directory.
func NewConduct(c *campaign.Campaign, bin string, out io.Writer) Conduct {
	e := executor{bin: bin, x: c.Experiment}
	return Conduct{Campaign: c, Execute: e.execute, Now: time.Now, Out: out}
}

// Run makes the runs and returns how many are left.
func (c Conduct) Run(ctx context.Context, where campaign.Environment) (left int, err error) {
	number, err := c.Campaign.Enter(where)
	if err != nil {
		return 0, err
	}
	x := c.Campaign.Experiment
	pending := c.Campaign.Pending()
	total := len(x.Schedule())
	c.say("%s: %s\n%d runs of %d variants, %d of them made already%s", x.Name, x.Title, total, len(x.Variants), total-len(pending), c.remaining(pending))
	begun := c.Now()
	for i, r := range pending {
		if c.Limit > 0 && c.Now().Sub(begun) >= c.Limit {
			c.say("%s: stopping after %s; %d runs are left%s: run it again to go on", x.Name, c.Limit, len(pending)-i, c.remaining(pending[i:]))
			return len(pending) - i, nil
		}
		at := c.Now()
		rec, err := c.Execute(ctx, r)
		if err != nil {
			return len(pending) - i, fmt.Errorf("%s, %s, repetition %d: %w", x.Name, x.Label(r.Variant), r.Repetition, err)
		}
		rec.Environment, rec.Took = number, c.Now().Sub(at).Seconds()
		if err := c.Campaign.Add(rec); err != nil {
			return len(pending) - i, err
		}
		c.say("[%*d/%d] %s, repetition %d: %s%s%s", len(fmt.Sprint(total)), total-len(pending)+i+1, total,
			x.Label(r.Variant), r.Repetition, rec.Outcome, c.figures(rec), c.remaining(pending[i+1:]))
		if rec.Outcome != campaign.Verified {
			c.say("        %s", strings.ReplaceAll(rec.Why, "\n", "\n        "))
		}
		for _, f := range rec.Faults {
			if f.NotDone != "" {
				c.say("        %s was not done: %s", f.Do, f.NotDone)
			}
		}
	}
	return 0, nil
}

// figures are the metrics of a run that the experiment is about.
func (c Conduct) figures(r campaign.Run) string {
	var words []string
	for _, m := range c.Campaign.Experiment.Metrics {
		if v, ok := r.Figures[m]; ok && len(words) < 4 {
			words = append(words, strings.TrimSpace(fmt.Sprintf("%s %.4g %s", m, v, experiment.Units[m])))
		}
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, ", ") + ")"
}

// remaining estimates how long runs will take, from those made: of the same
// variant if there are any, else of all. Natively and in guests times differ so
// much that without a run nothing is said.
func (c Conduct) remaining(pending []experiment.Run) string {
	if len(pending) == 0 || len(c.Campaign.Runs) == 0 {
		return ""
	}
	var all, sum float64
	of := map[experiment.Variant][]float64{}
	for _, r := range c.Campaign.Runs {
		all += r.Took
		of[r.Variant] = append(of[r.Variant], r.Took)
	}
	for _, p := range pending {
		if took := of[p.Variant]; len(took) > 0 {
			sum += campaign.Of(took).Median
		} else {
			sum += all / float64(len(c.Campaign.Runs))
		}
	}
	return fmt.Sprintf("; about %s left", time.Duration(sum*float64(time.Second)).Round(time.Second))
}

func (c Conduct) say(format string, args ...any) { _, _ = fmt.Fprintf(c.Out, format+"\n", args...) }
