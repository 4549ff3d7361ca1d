package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// withClient makes a command's body from one that needs the cluster.
func withClient(g *globals, f func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, done, err := g.connect()
		if err != nil {
			return err
		}
		defer done()
		return f(cmd, c, args)
	}
}

func newJob(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "Look at jobs, stop and restart them"}
	cmd.AddCommand(
		newJobList(g),
		&cobra.Command{
			Use: "show JOB", Short: "Show one job: guests, checkpoints, what is under way", Args: exactly("JOB"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				j, err := c.GetJob(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if g.json {
					return printProto(cmd.OutOrStdout(), j)
				}
				return printJob(cmd.OutOrStdout(), j)
			}),
		},
		newJobEvents(g), newJobWhy(g), newJobSuspend(g), newJobResume(g), newJobCost(g),
		&cobra.Command{
			Use: "restart JOB", Short: "Restart a job from its last checkpoint", Args: exactly("JOB"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				j, err := c.GetJob(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.RestartJob(cmd.Context(), j.GetSpec().GetId())
			}),
		},
		newJobStop(g),
	)
	return cmd
}

func newJobList(g *globals) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List jobs: those that have not ended and the last few that have", Args: exactly(),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			jobs, err := c.ListJobs(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return printProtos(cmd.OutOrStdout(), jobs)
			}
			ended := endedShown
			if all {
				ended = len(jobs)
			}
			return printJobs(cmd.OutOrStdout(), jobs, ended)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list every job that is remembered (JSON always does)")
	return cmd
}

func newJobStop(g *globals) *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use: "stop JOB", Short: "End a job", Args: exactly("JOB"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.GetJob(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.StopJob(cmd.Context(), j.GetSpec().GetId(), "vft job stop", now); err != nil {
				return err
			}
			return c.WatchJob(cmd.Context(), j.GetSpec().GetId(), ^uint64(0), func(*vftv1.WatchJobResponse) error { return nil })
		}),
	}
	cmd.Flags().BoolVar(&now, "now", false, "do not let the program end by itself first")
	return cmd
}

func newJobEvents(g *globals) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "events JOB", Short: "Print what happened to a job", Args: exactly("JOB"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			out := cmd.OutOrStdout()
			j, err := c.GetJob(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if follow {
				return c.WatchJob(cmd.Context(), j.GetSpec().GetId(), 0, func(r *vftv1.WatchJobResponse) error {
					return printEvents(out, g.json, r.GetJob().GetEvents(), r.GetJob().GetSubmittedAt())
				})
			}
			return printEvents(out, g.json, j.GetEvents(), j.GetSubmittedAt())
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job ends")
	return cmd
}

// printEvents writes one line per event: time since submission, kind, text;
// or one JSON object per line.
func printEvents(w io.Writer, asJSON bool, events []*vftv1.Event, since int64) error {
	for _, e := range events {
		var err error
		if asJSON {
			err = printProtoLine(w, e)
		} else {
			_, err = fmt.Fprintf(w, "%9.3fs  %-17s %s\n", time.Duration(e.GetAt()-since).Seconds(), e.GetKind(), e.GetText())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// endedShown is how many jobs that have ended are shown to somebody who did
// not ask for all.
const endedShown = 10

// printJobs lists the jobs that have not ended and the newest of the others.
func printJobs(w io.Writer, jobs []*vftv1.Job, ended int) error {
	now := time.Now()
	over := func(j *vftv1.Job) bool { return j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED }
	left := -ended
	for _, j := range jobs {
		if over(j) {
			left++
		}
	}
	left = max(left, 0)
	skip := left
	err := table(w, "job\tname\tuser\tphase\tguests\tincarnation\trestarts\tcheckpoint\tage", func(row func(...any)) {
		for _, j := range jobs { // as they were submitted
			if over(j) && skip > 0 {
				skip--
				continue
			}
			user := j.GetSpec().GetUser()
			if user == "" { // somebody else's job
				user = j.GetSpec().GetOwner()
			}
			row(j.GetSpec().GetId(), j.GetSpec().GetName(), user, phaseWord(j),
				len(j.GetSpec().GetGuests()), j.GetIncarnation(), j.GetRestarts(), lastCommitted(j), ago(now, j.GetSubmittedAt()))
		}
	})
	if left > 0 {
		fmt.Fprintf(w, "and %d that ended earlier: `vft job ls --all`\n", left) //nolint:errcheck // table reports it
	}
	return err
}

// phaseWord is the job's phase, with the outcome once it has ended.
func phaseWord(j *vftv1.Job) string {
	if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
		return word(j.GetPhase())
	}
	if j.GetExit().GetCause() == vftv1.ExitCause_EXIT_CAUSE_PROGRAM {
		return fmt.Sprintf("exit %d", j.GetExit().GetCode())
	}
	return word(j.GetExit().GetCause())
}

func lastCommitted(j *vftv1.Job) string {
	last := "-"
	for _, e := range j.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			last = fmt.Sprint(e.GetNumber())
		}
	}
	return last
}

func printJob(w io.Writer, j *vftv1.Job) error {
	s := j.GetSpec()
	lines := [][2]string{
		{"job", s.GetId()},
		{"name", s.GetName()},
		{"user", s.GetUser()},
		{"owner", s.GetOwner()},
		{"phase", phaseWord(j)},
		{"mpi", word(s.GetFlavour())},
		{"guests", fmt.Sprintf("%d of %d MiB and %d processors", len(s.GetGuests()), s.GetMemoryMib(), s.GetCpus())},
		{"incarnation", fmt.Sprint(j.GetIncarnation())},
		{"restarts", fmt.Sprintf("%d (limit %d)", j.GetRestarts(), s.GetRestartLimit())},
		{"interval", intervalText(j)},
	}
	if op := j.GetOperation(); op != nil {
		lines = append(lines, [2]string{"under way", fmt.Sprintf("%s, %s", word(op.GetKind()), word(op.GetPhase()))})
	}
	if m := j.GetExit().GetMessage(); m != "" {
		lines = append(lines, [2]string{"message", m})
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(w, "%-12s %s\n", l[0], l[1]); err != nil {
			return err
		}
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	if err := table(w, "guest\tnode\taddress\tslots", func(row func(...any)) {
		for _, g := range j.GetGuests() {
			slots := uint32(0)
			if int(g.GetIndex()) < len(s.GetGuests()) {
				slots = s.GetGuests()[g.GetIndex()].GetSlots()
			}
			row(g.GetIndex(), g.GetNode(), g.GetIp(), slots)
		}
	}); err != nil {
		return err
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	return printEpochs(w, j)
}

// intervalText is the time between checkpoints, and if it is measured the one
// that is in force.
func intervalText(j *vftv1.Job) string {
	if !j.GetSpec().GetIntervalAuto() {
		return short(j.GetSpec().GetInterval())
	}
	for _, ev := range slices.Backward(j.GetEvents()) {
		if ev.GetKind() == "interval" {
			return "auto, now " + short(ev.GetFigures()["interval"])
		}
	}
	return "auto, " + short(j.GetSpec().GetInterval()) + " until a checkpoint was measured"
}

var errNoEpoch = errors.New("the job has no such checkpoint; see `vft ckpt ls`")
