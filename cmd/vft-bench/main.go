// Command vft-bench shows what vft costs and saves on real programs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
	"github.com/mpirun-vft/vft/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "vft-bench", Short: "Show what vft costs and saves on real programs",
		Version: version.String(), SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(newDemo(), newCut(), newMigrate(), newRestore(), newPolicy(), newRun(), newList(), newReport(), newNPB(), newOverlay(), newOverlaySwitch(), newOverlayPlug())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "vft-bench: %v\n", err)
		os.Exit(1)
	}
}

func newDemo() *cobra.Command {
	var mpi, app string
	var hpccSize, heatSize, heatIterations int
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a real MPI job on three nodes, kill one, and see the job finish", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bin, err := binaries()
			if err != nil {
				return err
			}
			a, err := demoApp(bin, mpi, app, hpccSize, heatSize, heatIterations)
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "vft-demo-")
			if err != nil {
				return fmt.Errorf("making a directory: %w", err)
			}
			if keep {
				fmt.Fprintf(cmd.ErrOrStderr(), "keeping %s\n", dir) //nolint:errcheck // for people
			}
			d := bench.Demo{Bin: bin, Dir: dir, App: a, Keep: keep, Out: cmd.OutOrStdout()}
			if err := d.Run(cmd.Context()); err != nil {
				return fmt.Errorf("demo: FAILED: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&mpi, "mpi", "openmpi", "MPI implementation: openmpi or mpich")
	f.StringVar(&app, "app", "bt-mz", "program: bt-mz, sp-mz or lu-mz (class W), hpcc or heat")
	f.IntVar(&hpccSize, "hpcc-size", 500, "hpcc's problem size")
	f.IntVar(&heatSize, "heat-size", 200, "heat's grid size")
	f.IntVar(&heatIterations, "heat-iterations", 6000, "heat's iterations")
	f.BoolVar(&keep, "keep", false, "leave the demo's directory, with the lab's logs")
	return cmd
}

// demoApp is the program that a demo runs.
func demoApp(bin, mpi, app string, hpccSize, heatSize, heatIterations int) (bench.App, error) {
	if mpi != "openmpi" && mpi != "mpich" {
		return bench.App{}, fmt.Errorf("unknown --mpi %q: it is openmpi or mpich", mpi)
	}
	switch app {
	case "bt-mz", "sp-mz", "lu-mz":
		return bench.NPB(bin, strings.TrimSuffix(app, "-mz"), mpi, "W"), nil
	case "heat":
		return bench.Heat(filepath.Join(bin, "heat."+mpi), heatSize, heatIterations), nil
	case "hpcc":
		if mpi == "mpich" {
			return bench.App{}, errors.New("hpcc comes linked with Open MPI; with mpich use bt-mz or heat")
		}
		return bench.HPCC(hpccSize), nil
	}
	return bench.App{}, fmt.Errorf("unknown --app %q: it is bt-mz, sp-mz, lu-mz, hpcc or heat", app)
}
