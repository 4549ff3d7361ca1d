package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
	"github.com/mpirun-vft/vft/policy/simulate"
)

// predictors are precision and recall of the alarms simulated.
var predictors = [][2]float64{{0, 0}, {0.2, 0.3}, {0.5, 0.5}, {0.7, 0.9}, {0.9, 0.3}, {0.1, 0.9}, {1, 0.5}, {1, 1}}

func newPolicy() *cobra.Command {
	var asJSON bool
	var seeds int
	cmd := &cobra.Command{
		Use: "policy", Short: "Simulate a year of failures and alarms on 1,000 and 16,000 nodes", Args: cobra.NoArgs,
		Long: "Compares the time that the checkpoint policy wastes with that of the best fixed interval found with hindsight,\n" +
			"and with Daly's interval without alarms. docs/POLICY.md describes the simulation.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			emit := emitter(out, true)
			table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
			if !asJSON {
				fmt.Fprintln(table, "nodes\tprecision\trecall\tpolicy\tbest fixed\tits interval\tDaly, no alarms\tto best\tto Daly\t") //nolint:errcheck // flushed below
			}
			for _, nodes := range []int{1000, 16000} {
				for _, p := range predictors {
					if err := cmd.Context().Err(); err != nil {
						return err
					}
					c := simulate.Compare(nodes, p[0], p[1], max(1, seeds*1000/nodes))
					if !asJSON {
						fmt.Fprintf(table, "%d\t%.1f\t%.1f\t%.2f %%\t%.2f %%\t%v\t%.2f %%\t%.3f\t%.3f\t\n", c.Nodes, c.Precision, c.Recall, //nolint:errcheck // flushed below
							100*c.Policy, 100*c.Best, c.BestInterval.Round(1e9), 100*c.Daly, c.Policy/c.Best, c.Policy/c.Daly)
						continue
					}
					name := fmt.Sprintf("%d nodes, precision %.1f, recall %.1f", c.Nodes, c.Precision, c.Recall)
					for metric, base := range map[string]float64{"wasted, against the best fixed interval": c.Best, "wasted, against Daly without alarms": c.Daly} {
						emit(bench.Result{Bench: "policy", Case: name, Metric: metric, Value: c.Policy, Unit: "share of the time", Baseline: base, Ratio: c.Policy / base})
					}
				}
			}
			return table.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line")
	cmd.Flags().IntVar(&seeds, "seeds", 8, "years simulated on 1,000 nodes, and as many failures on 16,000")
	return cmd
}
