package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func newJobSuspend(g *globals) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "suspend JOB", Short: "Take a checkpoint of a job and stop its guests, until `vft job resume`", Args: exactly("JOB"),
		Long: `Takes a checkpoint, then stops the job's guests, so that its nodes are free. The
job goes on from there when it is asked to, on the same nodes or on others, also
after all of them were started anew. Its mpirun-vft waits.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.SuspendJob(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), j)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "job %s is suspended with checkpoint %s\n", j.GetSpec().GetId(), lastCommitted(j))
			return err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people and for the job's events")
	return cmd
}

// errRuns ends the watch of a job that goes on.
var errRuns = errors.New("the job runs")

// awaitRunning returns when a job runs, and fails when it ends instead.
func awaitRunning(ctx context.Context, c *client.Client, j *vftv1.Job) (*vftv1.Job, error) {
	err := c.WatchJob(ctx, j.GetSpec().GetId(), ^uint64(0), func(r *vftv1.WatchJobResponse) error {
		if j = r.GetJob(); j.GetPhase() == vftv1.JobPhase_JOB_PHASE_RUNNING {
			return errRuns
		}
		return nil
	})
	switch {
	case err == nil:
		return nil, fmt.Errorf("the job has ended: %s", j.GetExit().GetMessage())
	case !errors.Is(err, errRuns):
		return nil, err
	}
	return j, nil
}

func newJobResume(g *globals) *cobra.Command {
	var nodes []string
	cmd := &cobra.Command{
		Use: "resume JOB", Short: "Have a suspended job go on", Args: exactly("JOB"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.ContinueJob(cmd.Context(), args[0], nodes)
			if err != nil {
				return err
			}
			if j, err = awaitRunning(cmd.Context(), c, j); err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), j)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "job %s goes on\n", j.GetSpec().GetId())
			return err
		}),
	}
	cmd.Flags().StringSliceVar(&nodes, "nodes", nil, "nodes to go on on, separated by commas (default: any)")
	return cmd
}
