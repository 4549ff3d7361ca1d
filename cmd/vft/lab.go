package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/lab"
)

func defaultLabDir() string {
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = os.TempDir()
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "vft", "lab")
}

func newLab(g *globals) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "lab", Short: "Run a whole cluster on this machine and break it",
		Long: `A lab is a cluster of real processes on this machine: every node has its own
data directory, address and process group, and can be killed, started again and
cut off from the others. The health probes of node N look at the files below
N/machine in the lab's directory, which is empty until somebody puts some there.`,
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", defaultLabDir(), "the lab's directory")
	cmd.AddCommand(newLabUp(g, &dir), newLabDown(&dir))
	one := func(use, short string, f func(context.Context, *lab.Lab, string) error) {
		cmd.AddCommand(&cobra.Command{
			Use: use + " NODE", Short: short, Args: exactly("NODE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				l, err := lab.Open(dir)
				if err != nil {
					return err
				}
				return f(cmd.Context(), l, args[0])
			},
		})
	}
	one("kill", "Kill a node like a power cut: SIGKILL to all of its processes, guests included",
		func(_ context.Context, l *lab.Lab, n string) error { return l.Kill(n) })
	one("start", "Start a node that was killed",
		func(ctx context.Context, l *lab.Lab, n string) error { return l.Start(ctx, n) })
	one("partition", "Cut a node off from all others",
		func(ctx context.Context, l *lab.Lab, n string) error { return l.Partition(ctx, n) })
	one("heal", "Undo partition",
		func(ctx context.Context, l *lab.Lab, n string) error { return l.Heal(ctx, n) })
	return cmd
}

func newLabUp(g *globals, dir *string) *cobra.Command {
	o := lab.Options{}
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "up", Short: "Start a cluster on this machine", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			if o.Dir, err = filepath.Abs(*dir); err != nil {
				return fmt.Errorf("finding the lab's directory: %w", err)
			}
			if o.Images, err = filepath.Abs(o.Images); err != nil {
				return fmt.Errorf("finding the image cache: %w", err)
			}
			if o.HealthRules != "" {
				if o.HealthRules, err = filepath.Abs(o.HealthRules); err != nil {
					return fmt.Errorf("finding the health rules: %w", err)
				}
			}
			o.Binary = self
			return labUp(cmd, g, o, wait)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	f.IntVar(&o.Replicas, "replicas", 0, "number of coordinator replicas (default 3, or 1 below 3 nodes)")
	f.BoolVar(&o.Netns, "netns", false, "give every node its own network namespace (needs root)")
	f.StringVar(&o.Images, "images", defaultImages(), "image cache that the nodes share")
	f.StringVar(&o.QEMU, "qemu", "", "QEMU binary")
	f.DurationVar(&o.Lease, "lease", 3*time.Second, "time after which a silent node is given up")
	f.Uint32Var(&o.CPUs, "cpus", 0, "processors each node claims to have (default: this machine's)")
	f.StringVar(&o.HealthRules, "health-rules", "", "the nodes' health rules file (default: the rules compiled in)")
	f.DurationVar(&wait, "wait", time.Minute, "how long to wait until all nodes are ready")
	return cmd
}

func labUp(cmd *cobra.Command, g *globals, o lab.Options, wait time.Duration) (err error) {
	ctx := cmd.Context()
	l, err := lab.Create(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Remove(context.WithoutCancel(ctx)))
		}
	}()
	for _, n := range l.Nodes() {
		if err := l.Start(ctx, n); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("not ready within %s", wait))
	defer cancel()
	g.cluster = l.ClusterFile()
	c, done, err := g.connect()
	if err != nil {
		return err
	}
	defer done()
	if err := awaitNodes(ctx, c, l); err != nil {
		return fmt.Errorf("starting the lab: %w%s", err, logTails(l))
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "lab with %d nodes is up\nexport VFT_CLUSTER=%s\n", len(l.Nodes()), l.ClusterFile())
	return err
}

// awaitNodes waits until the cluster has a leader and all nodes renew their leases.
func awaitNodes(ctx context.Context, c *client.Client, l *lab.Lab) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		nodes, err := c.ListNodes(ctx)
		if err == nil {
			alive := 0
			for _, n := range nodes.GetNodes() {
				if n.GetState() == vftv1.NodeState_NODE_STATE_ALIVE {
					alive++
				}
			}
			if alive == len(l.Nodes()) {
				return nil
			}
		}
		for _, n := range l.Nodes() {
			if !l.Running(n) {
				return fmt.Errorf("node %s ended", n)
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// logTails is the end of each node's log, for a person to find the reason in.
func logTails(l *lab.Lab) string {
	const keep = 1200
	text := ""
	for _, n := range l.Nodes() {
		data, err := os.ReadFile(l.LogFile(n))
		if err != nil || len(data) == 0 {
			continue
		}
		if len(data) > keep {
			data = data[len(data)-keep:]
		}
		text += fmt.Sprintf("\n--- end of the log of %s\n%s", n, data)
	}
	return text
}

func newLabDown(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the lab and delete all it made, checkpoints included", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return l.Remove(cmd.Context())
		},
	}
}
