package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
)

func newMigrate() *cobra.Command {
	m := bench.Migrate{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "migrate", Short: "Measure migrations of a guest of a running program against bare QEMU's", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if m.Bin, err = binaries(); err != nil {
				return err
			}
			if m.Dir, err = os.MkdirTemp("", "vft-bench-"); err != nil {
				return fmt.Errorf("making a directory: %w", err)
			}
			defer os.RemoveAll(m.Dir) //nolint:errcheck // best effort
			m.Emit = emitter(cmd.OutOrStdout(), asJSON)
			return m.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "one JSON object per line")
	f.IntVar(&m.Moves, "moves", 20, "migrations")
	f.StringVar(&m.Memory, "memory", "256M", "RAM per guest")
	f.IntVar(&m.Iterations, "iterations", 60000, "iterations of the program: it must run longer than the migrations take")
	return cmd
}
