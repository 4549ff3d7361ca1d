package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// drainPoll is how often it is asked which guests are still there.
const drainPoll = 300 * time.Millisecond

func newNodeDrain(g *globals) *cobra.Command {
	var reason string
	var wait bool
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Move all guests away from a node and place none there", Args: exactly("NODE"),
		Long: `Notes that the node is to be emptied, and waits until no guest is left on it.
The jobs of its guests go on meanwhile. Interrupting the command does not end
the draining: ` + "`vft node undrain`" + ` does.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			begun := time.Now()
			told := map[string]string{}
			for {
				resp, err := c.DrainNode(cmd.Context(), args[0], reason)
				if err != nil {
					return err
				}
				if !wait || len(resp.GetGuests()) == 0 {
					return printDrain(cmd.OutOrStdout(), g, resp, time.Since(begun))
				}
				for _, p := range resp.GetGuests() {
					id := fmt.Sprintf("%s/%d", p.GetJob(), p.GetGuest())
					if p.GetFailure() != "" && told[id] != p.GetFailure() {
						told[id] = p.GetFailure()
						_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "vft: %s is still on %s and will be tried again: %s\n", id, args[0], p.GetFailure())
					}
				}
				select {
				case <-cmd.Context().Done():
					return fmt.Errorf("%d guests are still on node %s, which is still being drained: %w", len(resp.GetGuests()), args[0], cmd.Context().Err())
				case <-time.After(drainPoll):
				}
			}
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people and for the jobs' events")
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until no guest is left")
	return cmd
}

func newNodeUndrain(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "undrain NODE", Short: "Place guests on a node again", Args: exactly("NODE"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			resp, err := c.UndrainNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), resp)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "node %s takes guests again\n", args[0])
			return err
		}),
	}
}

func printDrain(w io.Writer, g *globals, resp *vftv1.DrainNodeResponse, took time.Duration) error {
	if g.json {
		return printProto(w, resp)
	}
	if n := len(resp.GetGuests()); n > 0 {
		_, err := fmt.Fprintf(w, "node %s is being drained: %d guests are still there\n", resp.GetNode().GetId(), n)
		return err
	}
	_, err := fmt.Fprintf(w, "node %s has no guests (%s)\n", resp.GetNode().GetId(), took.Round(10*time.Millisecond))
	return err
}
