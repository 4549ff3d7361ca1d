package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func newHealthScores(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "scores", Short: "Show how often the alarms of each health rule were right in this cluster", Args: exactly(),
		Long: `Shows for each rule that has raised an alarm, or missed a failure: how many
alarms it raised, how many of them a failure of the node followed in time
(right), how many none followed (false), of how many it is not known yet (open),
and how many failures of nodes that it watched it did not announce (missed).

The weight is what the rule's own confidence is multiplied with when an alarm of
it is answered; see docs/HEALTH.md. Lead is the median time from alarm to failure.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			rules, err := c.ListScores(cmd.Context())
			switch {
			case err != nil:
				return err
			case g.json:
				return printProtos(cmd.OutOrStdout(), rules)
			}
			return printScores(cmd.OutOrStdout(), rules)
		}),
	}
}

func printScores(w io.Writer, rules []*vftv1.RuleStanding) error {
	if len(rules) == 0 {
		_, err := fmt.Fprintln(w, "no rule has raised an alarm so far, and no node that rules watched has failed")
		return err
	}
	return table(w, "rule\talarms\tright\tfalse\topen\tmissed\tconfidence\tweight\tprecision\trecall\tlead", func(row func(...any)) {
		for _, r := range rules {
			s := r.GetScore()
			confidence, precision, recall, median := "-", "-", "-", "-"
			if s.GetEpisodes() > 0 {
				confidence, precision = share(s.GetConfidence()), share(r.GetPrecision())
			}
			if failures := s.GetHits() + s.GetMissed(); failures > 0 {
				recall = share(float64(s.GetHits()) / float64(failures))
			}
			if r.GetLead() > 0 {
				median = lead(time.Duration(r.GetLead()))
			}
			row(s.GetRule(), s.GetEpisodes(), s.GetHits(), s.GetFalseAlarms(), r.GetOpen(), s.GetMissed(),
				confidence, share(r.GetWeight()), precision, recall, median)
		}
	})
}

func share(f float64) string { return fmt.Sprintf("%.2f", f) }
