package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench/report"
)

func newReport() *cobra.Command {
	return &cobra.Command{
		Use: "report DIR", Short: "Make a page and figures of the results in a directory", Args: cobra.ExactArgs(1),
		Long: "DIR is what `vft-bench run --out` was given, or a directory of such. Writes DIR/report.html, which needs no other\n" +
			"file, and DIR/figures with its figures as SVG and, where rsvg-convert is installed, PNG.",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := report.Build(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if r.NoPNG != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "no PNG figures: %s\n", r.NoPNG) //nolint:errcheck // for people
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s and %d figures\n", r.Page, len(r.Figures))
			return err
		},
	}
}
