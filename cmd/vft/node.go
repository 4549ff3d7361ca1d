package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/daemon"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/proc"
	"github.com/mpirun-vft/vft/vm"
)

func newNode(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Run a node, see what it can do, list nodes"}
	cmd.AddCommand(
		&cobra.Command{
			Use: "ls", Short: "List nodes", Args: exactly(),
			RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, _ []string) error {
				nodes, err := c.ListNodes(cmd.Context())
				if err != nil {
					return err
				}
				if g.json {
					return printProtos(cmd.OutOrStdout(), nodes.GetNodes())
				}
				return printNodes(cmd.OutOrStdout(), nodes)
			}),
		},
		newNodeShow(g), newNodeJoin(g), newNodeExpel(g), newNodeDrain(g), newNodeUndrain(g), newNodeRun(g), newNodeProbe(g),
	)
	return cmd
}

func printNodes(w io.Writer, nodes *vftv1.ListNodesResponse) error {
	now := time.Now()
	return table(w, "node\tstate\thealth\tsince\taddress\tdomain\taccel\tqemu\tcpus\tmemory\tguests", func(row func(...any)) {
		for _, n := range nodes.GetNodes() {
			state := word(n.GetState())
			if n.GetDrained() != "" {
				state += ", drained"
			}
			row(n.GetId(), state, healthWord(n), ago(now, n.GetSince()), n.GetAddress(), n.GetFailureDomain(), n.GetAccelerator(),
				n.GetQemuVersion(), n.GetCpus(), size(int64(n.GetMemoryMib())<<20), nodes.GetGuests()[n.GetId()])
		}
	})
}

// healthWord is a node's verdict about itself in a word.
func healthWord(n *vftv1.Node) string {
	switch {
	case n.GetHealth() == nil:
		return "-"
	case n.GetHealth().GetState() == vftv1.HealthState_HEALTH_STATE_UNSPECIFIED:
		return "unknown"
	}
	return word(n.GetHealth().GetState())
}

func newNodeShow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show NODE", Short: "Show one node: what it can do, how it does and why", Args: exactly("NODE"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			nodes, err := c.ListNodes(cmd.Context())
			if err != nil {
				return err
			}
			for _, n := range nodes.GetNodes() {
				switch {
				case n.GetId() != args[0]:
				case g.json:
					return printProto(cmd.OutOrStdout(), n)
				default:
					return printNode(cmd.OutOrStdout(), n, nodes.GetGuests()[n.GetId()])
				}
			}
			return fmt.Errorf("the cluster has no node %q; see `vft node ls`", args[0])
		}),
	}
}

func printNode(w io.Writer, n *vftv1.Node, guests uint32) error {
	now := time.Now()
	state := word(n.GetState()) + ", since " + ago(now, n.GetSince())
	if n.GetDrained() != "" {
		state += ", being drained: " + n.GetDrained()
	}
	h := n.GetHealth()
	health := healthWord(n)
	if h.GetSince() != 0 {
		health += ", since " + ago(now, h.GetSince())
	}
	if h.GetConfidence() > 0 {
		health += fmt.Sprintf(", confidence %.0f %%, expected within %s", 100*h.GetConfidence(), short(h.GetLead()))
	}
	for _, l := range [][2]string{
		{"node", n.GetId()},
		{"state", state},
		{"health", health},
		{"address", n.GetAddress()},
		{"domain", n.GetFailureDomain()},
		{"accelerator", n.GetAccelerator() + ": " + brief(n.GetAcceleratorWhy())},
		{"qemu", n.GetQemuVersion()},
		{"vft", n.GetVersion()},
		{"machine", fmt.Sprintf("%d processors, %s", n.GetCpus(), size(int64(n.GetMemoryMib())<<20))},
		{"guests", fmt.Sprint(guests)},
	} {
		if _, err := fmt.Fprintf(w, "%-12s %s\n", l[0], l[1]); err != nil {
			return err
		}
	}
	if len(h.GetReasons()) == 0 {
		return nil
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	return table(w, "alarm\tlevel\tconfidence\tlead\tsince\tevidence", func(row func(...any)) {
		for _, r := range h.GetReasons() {
			row(r.GetRule(), word(r.GetLevel()), fmt.Sprintf("%.2f", r.GetConfidence()), short(r.GetLead()), ago(now, r.GetSince()), r.GetEvidence())
		}
	})
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "/etc/vft/"+nodeconf.NodeFile, "the node's configuration")
}

// healthFlags are those of a node's watch over itself, for the node's daemons.
type healthFlags struct{ root, rules string }

func (h *healthFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.root, "health-root", "", "root directory of the machine that the health probes look at (default: health_root of the configuration, else /)")
	cmd.Flags().StringVar(&h.rules, "health-rules", "", "health rules file, read again on SIGHUP (default: health_rules of the configuration, else those compiled in)")
}

// args passes the flags on.
func (h *healthFlags) args() (out []string) {
	if h.root != "" {
		out = append(out, "--health-root", h.root)
	}
	if h.rules != "" {
		out = append(out, "--health-rules", h.rules)
	}
	return out
}

func (h *healthFlags) apply(conf *nodeconf.Node) {
	if h.root != "" {
		conf.HealthRoot = h.root
	}
	if h.rules != "" {
		conf.HealthRules = h.rules
	}
}

func newNodeRun(g *globals) *cobra.Command {
	var path, dir, policy string
	var health healthFlags
	cmd := &cobra.Command{
		Use: "run", Short: "Run the node's daemons and start them again when they end", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir != "" {
				path = filepath.Join(dir, nodeconf.NodeFile)
			}
			conf, err := nodeconf.LoadNode(path)
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			children := []proc.Child{{Name: "sidecar", Argv: append([]string{self, "sidecar", "--config", path}, health.args()...)}}
			if conf.Coordinator {
				argv := []string{self, "coordinator", "--config", path}
				if policy != "" {
					argv = append(argv, "--policy", policy)
				}
				children = append(children, proc.Child{Name: "coordinator", Argv: argv})
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			return proc.Supervise(cmd.Context(), g.logger(true).With("node", conf.ID), children, hup)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&dir, "dir", "", "the node's directory, instead of --config")
	cmd.MarkFlagsMutuallyExclusive("config", "dir")
	health.add(cmd)
	policyFlag(cmd, &policy)
	return cmd
}

func policyFlag(cmd *cobra.Command, policy *string) {
	cmd.Flags().StringVar(policy, "policy", "", "file with an expression that decides about alarms, read again on SIGHUP (default: policy of the configuration, else the policy built in)")
}

func newCoordinator(g *globals) *cobra.Command {
	var path, policy string
	cmd := &cobra.Command{
		Use: "coordinator", Short: "Run a coordinator replica", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := nodeconf.LoadNode(path)
			if err != nil {
				return err
			}
			if policy != "" {
				conf.Policy = policy
			}
			return daemon.RunCoordinator(cmd.Context(), conf, g.logger(true).With("node", conf.ID, "daemon", "coordinator"))
		},
	}
	configFlag(cmd, &path)
	policyFlag(cmd, &policy)
	return cmd
}

func newSidecar(g *globals) *cobra.Command {
	var path string
	var health healthFlags
	cmd := &cobra.Command{
		Use: "sidecar", Short: "Run a node's sidecar", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := nodeconf.LoadNode(path)
			if err != nil {
				return err
			}
			health.apply(&conf)
			return daemon.RunSidecar(cmd.Context(), conf, g.logger(true).With("node", conf.ID, "daemon", "sidecar"))
		},
	}
	configFlag(cmd, &path)
	health.add(cmd)
	return cmd
}

func newNodeProbe(g *globals) *cobra.Command {
	conf := nodeconf.Node{}
	var fresh bool
	cmd := &cobra.Command{
		Use: "probe", Short: "Find out by trying what this machine can do", Args: exactly(),
		Long: `Boots throw-away guests to see which accelerator runs them, which snapshot
engines and which ways of restoring work for this user, and says why. The result is kept until QEMU, the
kernel, the user or the boot of the machine changes.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			caps, err := daemon.Probe(cmd.Context(), conf, fresh, g.logger(false))
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), caps)
			}
			return printCapabilities(cmd.OutOrStdout(), caps)
		},
	}
	cmd.Flags().StringVar(&conf.QEMU, "qemu", "", "QEMU binary (default "+vm.DefaultBinary+")")
	cmd.Flags().StringVar(&conf.Images, "images", defaultImages(), "image cache")
	cmd.Flags().BoolVar(&fresh, "fresh", false, "do not use an earlier result")
	return cmd
}

// brief is a reason without what QEMU printed besides.
func brief(why string) string {
	first, _, _ := strings.Cut(why, " | ")
	return first
}

func printCapabilities(w io.Writer, c vm.Capabilities) error {
	how := "probed in " + c.Took.Round(time.Millisecond).String()
	if c.Cached {
		how = "from an earlier probe"
	}
	if _, err := fmt.Fprintf(w, "QEMU           %s\naccelerator    %s: %s\nprocessor      %s\n", c.QEMUVersion, c.Accel, brief(c.AccelWhy), c.CPUModel); err != nil {
		return err
	}
	for _, e := range c.Engines {
		state := "works: a throw-away guest was saved with it and ran on"
		if !e.OK {
			state = "does not work: " + brief(e.Why)
		}
		if _, err := fmt.Fprintf(w, "%-14s %s\n", e.Engine, state); err != nil {
			return err
		}
	}
	for _, r := range c.RestoreWays {
		state := "works: a throw-away guest ran on and was saved again"
		if !r.OK {
			state = "does not work: " + brief(r.Why)
		}
		if _, err := fmt.Fprintf(w, "%-14s %s\n", "restore "+r.Way, state); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "(%s)\n", how)
	return err
}
