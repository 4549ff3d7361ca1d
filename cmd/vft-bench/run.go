package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

func newRun() *cobra.Command {
	var out string
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "run EXPERIMENT --out DIR", Short: "Make the runs of an experiment, or those that are left of it", Args: cobra.ExactArgs(1),
		Long: "EXPERIMENT is the name of one that comes with vft (`vft-bench list`) or a YAML file (docs/BENCH.md). Results are\n" +
			"in DIR; when the same is run again, only what is missing is made. `vft-bench report DIR` shows them.",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := experimentText(args[0])
			if err != nil {
				return err
			}
			return conduct(cmd, text, out, limit)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "directory of the results")
	cmd.Flags().DurationVar(&limit, "limit", 0, "begin no further run after this time; run again to go on")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// experimentText is the YAML of an experiment that a user names.
func experimentText(name string) ([]byte, error) {
	text, err := experiment.ShippedText(name)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q is neither a file nor an experiment that comes with vft; `vft-bench list` shows those", name)
	}
	return text, err
}

// conduct makes the runs of an experiment and prints what came out.
func conduct(cmd *cobra.Command, text []byte, out string, limit time.Duration) error {
	bin, err := binaries()
	if err != nil {
		return err
	}
	c, err := campaign.Open(out, text)
	if err != nil {
		return err
	}
	where, err := bench.Environment(cmd.Context(), bin)
	if err != nil {
		return err
	}
	d := bench.NewConduct(c, bin, cmd.ErrOrStderr())
	d.Limit = limit
	left, err := d.Run(cmd.Context(), where)
	if err != nil {
		return fmt.Errorf("%w\n%d runs are left: the same command goes on with them", err, left)
	}
	return c.Print(cmd.OutOrStdout())
}

func newList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the experiments that come with vft", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			xs, err := experiment.Shipped()
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, x := range xs {
				fmt.Fprintf(t, "%s\t%d runs\t%s\n", x.Name, len(x.Schedule()), x.Title) //nolint:errcheck // flushed below
			}
			return t.Flush()
		},
	}
}
