package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/bench"
)

func newOverlay() *cobra.Command {
	o := bench.Overlay{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "overlay", Short: "Measure the guests' switch against VDE2 and a kernel veth pair", Args: cobra.NoArgs,
		Long: "Joins two network namespaces by taps and the switch, and measures TCP throughput (iperf3) and NetPIPE's latency of\n" +
			"one byte: on one node, on two nodes with an encrypted link, at MTU 65520 and 1500. It needs root and Debian's\n" +
			"iproute2, vde2, netpipe-tcp and iperf3.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Self, err = os.Executable(); err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			if o.Dir, err = os.MkdirTemp("", "vftb-"); err != nil {
				return fmt.Errorf("making a directory: %w", err)
			}
			defer os.RemoveAll(o.Dir) //nolint:errcheck // best effort
			o.Emit = emitter(cmd.OutOrStdout(), asJSON)
			return o.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "one JSON object per line")
	f.DurationVar(&o.Time, "time", 2*time.Second, "time of one measurement")
	f.IntVar(&o.Rounds, "rounds", 3, "measurements of each case, by turns")
	return cmd
}

// newOverlaySwitch and newOverlayPlug are the processes that overlay starts.
func newOverlaySwitch() *cobra.Command {
	return &cobra.Command{
		Use: "overlay-switch", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var cfg bench.SwitchConfig
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&cfg); err != nil {
				return fmt.Errorf("reading the configuration: %w", err)
			}
			return bench.RunSwitch(cmd.Context(), cfg)
		},
	}
}

func newOverlayPlug() *cobra.Command {
	return &cobra.Command{
		Use: "overlay-plug TAP SOCKET", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return bench.RunPlug(cmd.Context(), args[0], args[1]) },
	}
}
