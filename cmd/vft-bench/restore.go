package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
)

func newRestore() *cobra.Command {
	r := bench.Restore{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "restore", Short: "Measure restarts of a job that gets its memory lazily against the plain way", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.Bin, err = binaries(); err != nil {
				return err
			}
			if r.Dir, err = os.MkdirTemp("", "vft-bench-"); err != nil {
				return fmt.Errorf("making a directory: %w", err)
			}
			defer os.RemoveAll(r.Dir) //nolint:errcheck // best effort
			r.Emit = emitter(cmd.OutOrStdout(), asJSON)
			return r.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "one JSON object per line")
	f.IntSliceVar(&r.Memory, "memory", []int{2048, 4096}, "RAM of the guest in MiB; the program uses half of it")
	f.IntVar(&r.Restarts, "restarts", 3, "restarts of each job")
	return cmd
}
