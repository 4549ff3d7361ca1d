package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
)

func newCut() *cobra.Command {
	c := bench.Cut{}
	var asJSON, quick bool
	cmd := &cobra.Command{
		Use: "cut", Short: "Measure pause, network hold and slowdown of checkpoints on an all-to-all program", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Bin, err = binaries(); err != nil {
				return err
			}
			if c.Dir, err = os.MkdirTemp("", "vft-bench-"); err != nil {
				return fmt.Errorf("making a directory: %w", err)
			}
			defer os.RemoveAll(c.Dir) //nolint:errcheck // best effort
			if quick {
				c.Epochs, c.Rounds, c.Memory = 10, 0, c.Memory[:1]
			}
			c.Emit = emitter(cmd.OutOrStdout(), asJSON)
			return c.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "one JSON object per line")
	f.BoolVar(&quick, "quick", false, "ten epochs of the smallest guests, no slowdown")
	f.IntVar(&c.Epochs, "epochs", 100, "epochs for pause and hold")
	f.StringSliceVar(&c.Memory, "memory", []string{"512M", "4G"}, "RAM per guest")
	f.IntVar(&c.Iterations, "iterations", 20000, "iterations of the program whose slowdown is measured")
	f.IntVar(&c.Rounds, "rounds", 3, "runs of each variant")
	return cmd
}

// binaries is the directory of this program, where the others are too.
func binaries() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	return filepath.Dir(self), nil
}

// emitter prints results, as JSON lines or for people.
func emitter(out interface{ Write([]byte) (int, error) }, asJSON bool) func(bench.Result) {
	return func(r bench.Result) {
		if asJSON {
			_ = json.NewEncoder(out).Encode(r)
			return
		}
		line := fmt.Sprintf("%-58s %-28s %12.4g %s", r.Case, r.Metric, r.Value, r.Unit)
		if r.Baseline != 0 {
			line += fmt.Sprintf("   (baseline %.4g, ratio %.3f)", r.Baseline, r.Ratio)
		}
		_, _ = fmt.Fprintln(out, line)
	}
}
