package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// clientPatience is how long commands look for a leader: longer than an election.
const clientPatience = 15 * time.Second

func newStatus(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster: replicas, nodes, jobs", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := g.connect()
			if err != nil {
				return err
			}
			defer done()
			return status(cmd, g, c)
		},
	}
}

type replicaView struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	State   string `json:"state"`
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"`
	Voter   bool   `json:"voter"`
}

func status(cmd *cobra.Command, g *globals, c *client.Client) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	nodes, err := c.ListNodes(ctx) // finds the leader
	if err != nil {
		return err
	}
	st, err := c.Status(ctx, "")
	if err != nil {
		return err
	}
	jobs, err := c.ListJobs(ctx)
	if err != nil {
		return err
	}
	replicas := replicaViews(ctx, c, st)
	if g.json {
		view := map[string]any{"leader": st.GetLeader(), "replicas": replicas, "version": st.GetVersion()}
		marshal := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal
		for key, m := range map[string]proto.Message{"nodes": nodes, "jobs": &vftv1.ListJobsResponse{Jobs: jobs}} {
			raw, err := marshal(m)
			if err != nil {
				return fmt.Errorf("encoding JSON: %w", err)
			}
			view[key] = json.RawMessage(raw)
		}
		return printJSON(out, view)
	}
	fmt.Fprintf(out, "leader %s, term %d, vft %s\n\n", st.GetLeader(), st.GetTerm(), st.GetVersion()) //nolint:errcheck // table reports it
	if err := table(out, "replica\taddress\tstate\tapplied", func(row func(...any)) {
		for _, r := range replicas {
			row(r.ID, r.Address, r.State, r.Applied)
		}
	}); err != nil {
		return err
	}
	fmt.Fprintln(out) //nolint:errcheck // table reports it
	if err := printNodes(out, nodes); err != nil {
		return err
	}
	fmt.Fprintln(out) //nolint:errcheck // table reports it
	return printJobs(out, jobs, endedShown)
}

// replicaViews asks every replica about itself; one that does not answer is shown as such.
func replicaViews(ctx context.Context, c *client.Client, st *vftv1.StatusResponse) []replicaView {
	var views []replicaView
	for _, r := range st.GetReplicas() {
		v := replicaView{ID: r.GetId(), Address: r.GetAddress(), Voter: r.GetVoter(), State: "unreachable"}
		actx, cancel := context.WithTimeout(ctx, 2*time.Second)
		if s, err := c.Status(actx, r.GetAddress()); err == nil {
			v.State, v.Term, v.Applied = s.GetState(), s.GetTerm(), s.GetApplied()
		}
		cancel()
		views = append(views, v)
	}
	return views
}
