// Command vft runs vft's daemons and looks after clusters, jobs, checkpoints
// and images.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	"github.com/mpirun-vft/vft/daemon"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/proc"
	"github.com/mpirun-vft/vft/internal/transport"
	"github.com/mpirun-vft/vft/internal/version"
)

// Exit codes, documented in docs/CLI.md.
const (
	exitFailure     = 1
	exitUsage       = 64
	exitData        = 65
	exitUnavailable = 69
	exitDenied      = 77
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "vft: %v\n", err)
	var usage usageError
	switch {
	case daemon.IsConfigError(err), errors.Is(err, proc.ErrChildConfig):
		return proc.ExitConfig
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errFile):
		return exitData
	case errors.Is(err, client.ErrUnreachable):
		return exitUnavailable
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return exitDenied
	}
	return exitFailure
}

// usageError marks a command line that cannot be meant.
type usageError struct{ error }

// globals are the flags that every command has.
type globals struct {
	cluster string
	json    bool
	verbose bool
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "vft",
		Short: "Fault tolerance for MPI jobs: clusters, jobs, checkpoints, images",
		Long: `vft runs the daemons that keep MPI jobs alive on machines that fail, and looks
after clusters, jobs, checkpoints and images. Jobs are started with mpirun-vft.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&g.cluster, "cluster", os.Getenv("VFT_CLUSTER"), "cluster file or its directory (default: VFT_CLUSTER, else the lab's)")
	f.BoolVar(&g.json, "json", false, "print JSON")
	f.BoolVarP(&g.verbose, "verbose", "v", false, "log what the command does")
	root.AddCommand(
		newStatus(g), newJob(g), newGuest(g), newCkpt(g), newNode(g), newImage(g), newNet(g), newLab(g), newHealth(g), newCluster(g), newUser(g),
		newCoordinator(g), newSidecar(g),
	)
	group(root)
	for _, c := range root.Commands() {
		if c.HasSubCommands() {
			group(c)
		}
	}
	return root
}

// group makes a command that only has subcommands refuse what is none of them.
func group(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf(", did you mean %s?", strings.Join(near, " or "))
		}
		return usageError{fmt.Errorf("`%s` has no command %q%s; see --help", c.CommandPath(), args[0], hint)}
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
}

// logger writes structured logs to stderr: JSON for daemons, text for people.
func (g *globals) logger(daemon bool) *slog.Logger {
	level := slog.LevelInfo
	if g.verbose {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	if daemon {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	if !g.verbose {
		opts.Level = slog.LevelWarn
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

// connect returns a client of the cluster that the flags, the environment or
// the default lab name.
func (g *globals) connect() (*client.Client, func(), error) {
	c, _, done, err := g.connectNodes()
	return c, done, err
}

// connectNodes is connect with clients of the nodes' sidecars besides.
func (g *globals) connectNodes() (*client.Client, sidecars, func(), error) {
	path := g.cluster
	if path == "" {
		path = defaultLabDir()
		if _, err := os.Stat(path); err != nil {
			return nil, nil, nil, usageError{errors.New("no cluster named: give --cluster FILE or set VFT_CLUSTER, or start one here with `vft lab up`")}
		}
	}
	conf, err := nodeconf.LoadCluster(path)
	if err != nil {
		return nil, nil, nil, usageError{err}
	}
	id, err := conf.Identity()
	if err != nil {
		return nil, nil, nil, err
	}
	tlsConf, err := id.TLS()
	if err != nil {
		return nil, nil, nil, err
	}
	ep := transport.New(tlsConf, nil)
	c := client.New(client.Config{
		Coordinators: conf.Coordinators, Dial: daemon.CoordinatorClient(ep), Patience: clientPatience, Log: g.logger(false),
	})
	return c, daemon.SidecarClient(ep), ep.Close, nil
}

// exactly checks the number of arguments and says what they are.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("`%s` takes %s; see --help", c.CommandPath(), strings.Join(names, " "))}
		}
		return nil
	}
}
