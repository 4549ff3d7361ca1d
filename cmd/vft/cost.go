package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// jobCost is what fault tolerance cost a job and saved it, in node-seconds,
// from the events that are remembered of it.
type jobCost struct {
	Job      string  `json:"job"`
	Nodes    int     `json:"nodes"`
	Lost     float64 `json:"lost"`     // work done again after restarts
	Downtime float64 `json:"downtime"` // from a failure to the restarted program
	// Checkpoints and Migrations is what they held the job up, FalseAlarms the
	// part of it that was for nodes which did not fail in time.
	Checkpoints float64 `json:"checkpoints"`
	Migrations  float64 `json:"migrations"`
	FalseAlarms float64 `json:"false_alarms"`
	// Saved is what the failures of nodes would have cost that were left before.
	Saved float64 `json:"saved"`
}

func newJobCost(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "cost JOB", Short: "Show what fault tolerance has cost a job and saved it, in node-seconds", Args: exactly("JOB"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.GetJob(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			nodes, err := c.ListNodes(cmd.Context())
			if err != nil {
				return err
			}
			cost := costOf(j, nodes.GetNodes(), time.Now().UnixNano())
			if g.json {
				return printJSON(cmd.OutOrStdout(), cost)
			}
			return cost.print(cmd.OutOrStdout())
		}),
	}
}

// costOf adds up a job's events. An alarm came true when its node is lost since
// it, and was false when three times its lead have passed without that.
func costOf(j *vftv1.Job, nodes []*vftv1.Node, now int64) jobCost {
	used := map[string]bool{}
	for _, g := range j.GetGuests() {
		used[g.GetNode()] = true
	}
	n := float64(max(1, len(used)))
	if len(used) == 0 { // suspended
		n = float64(len(j.GetSpec().GetGuests()))
	}
	c := jobCost{Job: j.GetSpec().GetId(), Nodes: int(n)}
	lost := map[string]int64{}
	for _, x := range nodes {
		if x.GetState() == vftv1.NodeState_NODE_STATE_LOST {
			lost[x.GetId()] = x.GetSince()
		}
	}
	wrong := map[string]bool{} // nodes that the last decision was wrong about
	last := ""                 // node of it
	saved := map[string]bool{} // alarms
	for _, ev := range j.GetEvents() {
		f, l := ev.GetFigures(), ev.GetLabels()
		spent := n * time.Duration(f["hold"]).Seconds()
		switch ev.GetKind() {
		case "decision":
			last = l["node"]
			failed := lost[last] > ev.GetAt()
			wrong[last] = !failed && now-ev.GetAt() > falseAfter*f["lead"]
			if failed && !saved[l["alarm"]] && l["action"] != "ignore" {
				saved[l["alarm"]] = true
				c.Saved += n * time.Duration(f["since_commit"]+f["downtime"]+f["restart"]).Seconds()
			}
		case "restarted":
			c.Lost += n * time.Duration(f["lost"]).Seconds()
			c.Downtime += n * time.Duration(f["detect"]+f["took"]).Seconds()
		case "checkpoint":
			c.Checkpoints += spent
			if l["trigger"] == "alarm" && wrong[last] {
				c.FalseAlarms += spent
			}
		case "migrated":
			c.Migrations += spent
			if l["trigger"] == "policy" && wrong[l["from"]] {
				c.FalseAlarms += spent
			}
		}
	}
	return c
}

// falseAfter times its lead is how long an alarm has to come true.
const falseAfter = 3

func (c jobCost) print(w io.Writer) error {
	for _, l := range []struct {
		name  string
		value float64
		note  string
	}{
		{"work lost", c.Lost, "done again after restarts"},
		{"downtime", c.Downtime, "from failures to the restarted program"},
		{"checkpoints", c.Checkpoints, "that the job was held up"},
		{"migrations", c.Migrations, "that the job was held up"},
		{"false alarms", c.FalseAlarms, "of these two, for nodes that did not fail in time"},
		{"saved", c.Saved, "that failures of nodes would have cost which were left before"},
	} {
		if _, err := fmt.Fprintf(w, "%-12s %12.1f node-seconds, %s\n", l.name, l.value, l.note); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "(on %d nodes, from the events that are remembered)\n", c.Nodes)
	return err
}
