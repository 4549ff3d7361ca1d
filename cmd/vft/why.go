package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func newJobWhy(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "why JOB", Short: "Explain what was decided about nodes that expect to fail, and from what", Args: exactly("JOB"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.GetJob(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var told []*vftv1.Event
			for _, ev := range j.GetEvents() {
				if explains(ev) {
					told = append(told, ev)
				}
			}
			if g.json {
				return printProtos(cmd.OutOrStdout(), told)
			}
			return printWhy(cmd.OutOrStdout(), told, j.GetSubmittedAt())
		}),
	}
}

// explains says whether an event is a decision about an alarm, or what led to
// one or came of it.
func explains(ev *vftv1.Event) bool {
	switch ev.GetKind() {
	case "decision", "node-health", "node-lost":
		return true
	case "checkpoint", "checkpoint-failed", "migrating", "migrated", "migrate-failed":
		t := ev.GetLabels()["trigger"]
		return t == "alarm" || t == "policy"
	case "restarting", "restarted":
		return strings.Contains(ev.GetLabels()["reason"], "expects to fail")
	}
	return false
}

func printWhy(w io.Writer, told []*vftv1.Event, since int64) error {
	if len(told) == 0 {
		_, err := fmt.Fprintln(w, "no node of the job has expected to fail so far, and nothing had to be decided")
		return err
	}
	for _, ev := range told {
		text := ev.GetText()
		if ev.GetKind() == "decision" {
			text, _, _ = strings.Cut(text, "; ") // the options follow as a table
		}
		if _, err := fmt.Fprintf(w, "%9.3fs  %-17s %s\n", time.Duration(ev.GetAt()-since).Seconds(), ev.GetKind(), text); err != nil {
			return err
		}
		if ev.GetKind() != "decision" {
			continue
		}
		if err := printDecision(w, ev); err != nil {
			return err
		}
	}
	return nil
}

// printDecision writes the options and the figures of a decision.
func printDecision(w io.Writer, ev *vftv1.Event) error {
	f, l := ev.GetFigures(), ev.GetLabels()
	if err := table(w, "            option\texpected loss\ttakes\t", func(row func(...any)) {
		for _, a := range []string{"ignore", "checkpoint", "migrate", "move"} {
			mark := ""
			if a == l["action"] {
				mark = "chosen"
			}
			if o := l["obstacle_"+a]; o != "" {
				mark = "not possible: " + o
			}
			row("            "+a, short(f["cost_"+a]), short(f["need_"+a]), mark)
		}
	}); err != nil {
		return err
	}
	assumed := strings.Fields(l["assumed"])
	figure := func(name, value string) string {
		for _, a := range assumed {
			if a == name {
				value += " (assumed)"
			}
		}
		return strings.ReplaceAll(name, "_", " ") + " " + value
	}
	_, err := fmt.Fprintf(w, "            from: confidence %.2f (its own %.2f; %s), lead %s, %s, %d guests with %s, %s, %s, %s, %s, %s, %s, %s; policy %s%s\n",
		float64(f["confidence_ppm"])/1e6, float64(f["own_confidence_ppm"])/1e6, l["scores"], short(f["lead"]), figure("since_commit", short(f["since_commit"])), f["guests"], size(f["memory"]),
		figure("bandwidth", size(f["bandwidth"])+"/s"), figure("dirty_rate", size(f["dirty_rate"])+"/s"),
		figure("migration_loss", short(f["migration_loss"])), figure("checkpoint", short(f["checkpoint"])), figure("latency", short(f["latency"])),
		figure("restart", short(f["restart"])), figure("downtime", short(f["downtime"])), l["policy"], fault(l["policy_fault"]))
	return err
}

func fault(why string) string {
	if why == "" {
		return ""
	}
	return " (the site's was not used: " + why + ")"
}
