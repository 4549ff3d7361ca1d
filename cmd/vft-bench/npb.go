package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
)

func newNPB() *cobra.Command {
	var dir, out string
	r := bench.NPBRun{}
	cmd := &cobra.Command{
		Use: "npb --npb-dir DIR --out DIR", Short: "Build and run NASA's NPB3.x-MZ from a source tree, next to vft's own", Args: cobra.NoArgs,
		Long: "Builds one benchmark in a copy of the tree, as its config/make.def says (else its template), runs it and the\n" +
			"project's own of the same name by turns, and compares them. The tree itself is left as it is.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			tree, err := bench.FindNPBTree(dir)
			if err != nil {
				return err
			}
			if _, err := r.Experiment(); err != nil {
				return err // before anything is built
			}
			abs, err := filepath.Abs(out)
			if err != nil {
				return err
			}
			if r.Program, err = tree.Build(cmd.Context(), filepath.Join(abs, "build"), r.Benchmark, r.Class, r.MPI, r.Ranks); err != nil {
				return err
			}
			text, err := r.Experiment()
			if err != nil {
				return err
			}
			return conduct(cmd, text, out, 0)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "npb-dir", "", "the source tree, NPB3.x-MZ or the NPB3.x-MZ-MPI in it")
	f.StringVar(&out, "out", "", "directory of the build and the results")
	f.StringVar(&r.Benchmark, "benchmark", "bt-mz", "bt-mz, sp-mz or lu-mz")
	f.StringVar(&r.Class, "class", "W", "class")
	f.StringVar(&r.MPI, "mpi", "openmpi", "MPI implementation: openmpi or mpich")
	f.IntVar(&r.Ranks, "ranks", 2, "ranks")
	f.IntVar(&r.Repetitions, "repetitions", 3, "runs of each")
	f.StringSliceVar(&r.Where, "where", []string{"native"}, "native, guests or both")
	f.StringVar(&r.Interval, "interval", "10s", "between checkpoints, in guests")
	_ = cmd.MarkFlagRequired("npb-dir")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}
