package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func newCkpt(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ckpt", Short: "Take, list, show, pin, verify, export, import and remove checkpoints",
		Long: `Looks after the checkpoints of jobs. JOB is any unique beginning of a job's id;
CHECKPOINT is a number, the name of a pin, or last.`,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "take JOB", Short: "Take a checkpoint now and wait until it is committed", Args: exactly("JOB"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				j, err := c.GetJob(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				e, err := c.TakeCheckpoint(cmd.Context(), j.GetSpec().GetId())
				if err != nil {
					return err
				}
				if g.json {
					return printProto(cmd.OutOrStdout(), e)
				}
				if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
					return fmt.Errorf("checkpoint %d was not committed: %s; the job goes on", e.GetNumber(), e.GetReason())
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "checkpoint %d committed in %s\n", e.GetNumber(), short(e.GetEndedAt()-e.GetBegunAt()))
				return err
			}),
		},
		&cobra.Command{
			Use: "ls JOB", Short: "List a job's checkpoints", Args: exactly("JOB"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				j, err := c.GetJob(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if g.json {
					return printProtos(cmd.OutOrStdout(), j.GetEpochs())
				}
				return printEpochs(cmd.OutOrStdout(), j)
			}),
		},
		&cobra.Command{
			Use: "show JOB CHECKPOINT", Short: "Show one checkpoint: levels, parts, drain proof", Args: exactly("JOB", "CHECKPOINT"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				_, e, err := findEpoch(cmd, c, args)
				if err != nil {
					return err
				}
				if g.json {
					return printProto(cmd.OutOrStdout(), e)
				}
				return printEpoch(cmd.OutOrStdout(), e)
			}),
		},
		newCkptPin(g),
		&cobra.Command{
			Use: "unpin JOB CHECKPOINT", Short: "Let a pinned checkpoint be removed like others", Args: exactly("JOB", "CHECKPOINT"),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
				j, e, err := findEpoch(cmd, c, args)
				if err != nil {
					return err
				}
				_, err = c.PinEpoch(cmd.Context(), j.GetSpec().GetId(), e.GetNumber(), "")
				return err
			}),
		},
		newCkptRm(g),
		newCkptVerify(g),
		newCkptExport(g),
		newCkptImport(g),
		newCkptDu(g),
		newCkptGC(g),
	)
	return cmd
}

func newCkptPin(g *globals) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "pin JOB CHECKPOINT", Short: "Keep a checkpoint until it is unpinned, also after the job's end", Args: exactly("JOB", "CHECKPOINT"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, e, err := findEpoch(cmd, c, args)
			if err != nil {
				return err
			}
			if name == "" {
				name = fmt.Sprintf("pin-%d", e.GetNumber())
			}
			if _, err := strconv.ParseUint(name, 10, 64); err == nil || name == lastEpoch {
				return usageError{fmt.Errorf("--name %s would be taken for a checkpoint's number: give a name with a letter in it, other than %s", name, lastEpoch)}
			}
			e, err = c.PinEpoch(cmd.Context(), j.GetSpec().GetId(), e.GetNumber(), name)
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), e)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "checkpoint %d pinned as %s\n", e.GetNumber(), e.GetPin())
			return err
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the pin (default pin-NUMBER)")
	return cmd
}

func newCkptRm(g *globals) *cobra.Command {
	var last, pinned bool
	cmd := &cobra.Command{
		Use: "rm JOB CHECKPOINT", Short: "Remove a checkpoint from all levels", Args: exactly("JOB", "CHECKPOINT"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, e, err := findEpoch(cmd, c, args)
			if err != nil {
				return err
			}
			return c.DeleteEpoch(cmd.Context(), j.GetSpec().GetId(), e.GetNumber(), last, pinned)
		}),
	}
	cmd.Flags().BoolVar(&last, "last", false, "allow removing the only checkpoint that a job which has not ended can restart from")
	cmd.Flags().BoolVar(&pinned, "force", false, "allow removing a pinned checkpoint")
	return cmd
}

// lastEpoch stands for a job's newest committed checkpoint.
const lastEpoch = "last"

// findEpoch finds the job and the checkpoint that the arguments name.
func findEpoch(cmd *cobra.Command, c *client.Client, args []string) (*vftv1.Job, *vftv1.Epoch, error) {
	j, err := c.GetJob(cmd.Context(), args[0])
	if err != nil {
		return nil, nil, err
	}
	number, nerr := strconv.ParseUint(args[1], 10, 64)
	var found *vftv1.Epoch
	for _, e := range j.GetEpochs() {
		switch {
		case nerr == nil && e.GetNumber() == number,
			e.GetPin() == args[1] && args[1] != "",
			args[1] == lastEpoch && e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED:
			found = e
		}
	}
	if found == nil {
		return nil, nil, fmt.Errorf("checkpoint %s of job %s: %w", args[1], j.GetSpec().GetId(), errNoEpoch)
	}
	return j, found, nil
}

func printEpochs(w io.Writer, j *vftv1.Job) error {
	now := time.Now()
	return table(w, "checkpoint\tstate\tengine\ttook\thold\tpause\tsize\tlevels\tpin\tage\treason", func(row func(...any)) {
		for _, e := range j.GetEpochs() {
			var pause, bytes int64
			engine := "-"
			for _, p := range e.GetParts() {
				pause, bytes = max(pause, p.GetPause()), bytes+p.GetSize()
				engine = word(p.GetEngine())
			}
			took := int64(0)
			if e.GetEndedAt() > 0 {
				took = e.GetEndedAt() - e.GetBegunAt()
			}
			row(e.GetNumber(), epochState(e), engine, short(took), short(e.GetHold()), short(pause), size(bytes), levelsOf(e),
				orDash(e.GetPin()), ago(now, e.GetBegunAt()), e.GetReason()+e.GetDamaged())
		}
	})
}

// epochState is the state in one word.
func epochState(e *vftv1.Epoch) string {
	if e.GetDamaged() != "" {
		return "damaged"
	}
	return word(e.GetState())
}

// levelsOf lists the levels of a committed checkpoint; those at which it is not
// safe are marked.
func levelsOf(e *vftv1.Epoch) string {
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
		return "-"
	}
	var out []string
	for _, l := range e.GetLevels() {
		name := l.GetLevel()
		if l.GetState() != vftv1.LevelState_LEVEL_STATE_SAFE {
			name += "(" + word(l.GetState()) + ")"
		}
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printEpoch(w io.Writer, e *vftv1.Epoch) error {
	head := fmt.Sprintf("checkpoint %d, %s, incarnation %d, hold %s", e.GetNumber(), epochState(e), e.GetIncarnation(), short(e.GetHold()))
	if e.GetPin() != "" {
		head += ", pinned as " + e.GetPin()
	}
	if why := e.GetReason() + e.GetDamaged(); why != "" {
		head += "\n" + why
	}
	if _, err := fmt.Fprintf(w, "%s\n\n", head); err != nil {
		return err
	}
	if err := table(w, "level\tstate\tafter\twritten\treason", func(row func(...any)) {
		for _, l := range e.GetLevels() {
			after := "-"
			if l.GetAt() != 0 {
				after = short(l.GetAt() - e.GetBegunAt())
			}
			row(l.GetLevel(), word(l.GetState()), after, size(l.GetBytes()), l.GetReason())
		}
	}); err != nil {
		return err
	}
	fmt.Fprintln(w) //nolint:errcheck // the next table reports it
	if err := table(w, "guest\tengine\tpause\tcopy\tsize\tchannel state\tcopies\tshards\tmanifest", func(row func(...any)) {
		for _, p := range e.GetParts() {
			row(p.GetGuest(), word(p.GetEngine()), short(p.GetPause()), short(p.GetCopy()), size(p.GetSize()),
				fmt.Sprintf("%d frames, %s", p.GetHeldFrames(), size(int64(p.GetHeldBytes()))), strings.Join(p.GetNodes(), ","), shards(p), abbreviate(p.GetManifest()))
		}
	}); err != nil {
		return err
	}
	if len(e.GetProof().GetPairs()) == 0 {
		return nil
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	return table(w, "from\tto\tsent\tdelivered\tdropped", func(row func(...any)) {
		for _, p := range e.GetProof().GetPairs() {
			row(p.GetSource(), p.GetDestination(), p.GetSent(), p.GetDelivered(), p.GetDropped())
		}
	})
}

// shards lists the nodes that have shards of a part.
func shards(p *vftv1.Part) string {
	var out []string
	for _, l := range p.GetLevels() {
		if len(l.GetNodes()) > 0 {
			out = append(out, l.GetLevel()+" on "+strings.Join(l.GetNodes(), ","))
		}
	}
	return orDash(strings.Join(out, "; "))
}

func abbreviate(digest string) string { return digest[:min(len(digest), 16)] }
