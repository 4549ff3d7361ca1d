package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/notice"
	"github.com/mpirun-vft/vft/health/probeset"
)

func newHealth(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "health", Short: "See how a machine does, and how that is decided"}
	cmd.AddCommand(newHealthProbe(g), newHealthReplay(g), newHealthRules(g), newHealthScores(g))
	return cmd
}

// probing is what `vft health probe` was asked to do.
type probing struct {
	g      *globals
	out    io.Writer
	root   string
	rules  string
	record string
	watch  bool
	grace  time.Duration
}

func newHealthProbe(g *globals) *cobra.Command {
	p := &probing{g: g}
	cmd := &cobra.Command{
		Use: "probe", Short: "Read the probes; print readings, verdict and why", Args: exactly(),
		Long: `Reads every probe once and prints what they read, the verdict and why. With
--watch it goes on at the probes' intervals and prints what changes; SIGHUP
reads the rules again. What needs a past (rates, conditions that have to last)
shows with --watch, or from a recording with ` + "`vft health replay`" + `.

With --root another machine is read, from a recorded tree; see docs/HEALTH.md.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.out = cmd.OutOrStdout()
			return p.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.root, "root", "/", "root directory of the machine")
	f.StringVar(&p.rules, "rules", "", "rules file (default: those compiled in)")
	f.StringVar(&p.record, "record", "", "append the readings to a file, for `FILE` in vft health replay")
	f.BoolVar(&p.watch, "watch", false, "go on until interrupted")
	f.DurationVar(&p.grace, "grace", 0, "with --watch: time that this process has after SIGTERM, which is then a notice")
	return cmd
}

func (p *probing) run(ctx context.Context) (err error) {
	rules, err := health.LoadRules(p.rules)
	if err != nil {
		return err
	}
	machine := host.New(p.root)
	conf := health.Config{
		Probes: probeset.New(machine, rules), Rules: rules, Log: p.g.logger(false), Uptime: machine.Uptime(),
	}
	recording, done, err := p.recording()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if p.watch {
		return p.follow(ctx, conf, recording)
	}
	conf.OnReport = func(r health.Report) { recording(r.Readings) }
	runner := health.NewRunner(conf)
	reports := runner.Once(ctx)
	if err := runner.Close(); err != nil {
		return err
	}
	seen := seenOnce{reports, runner.Verdict(), runner.Pending(), cost(conf.Probes, reports)}
	if p.g.json {
		return printJSON(p.out, seen)
	}
	return seen.print(p.out)
}

// recording returns where readings go. done says whether all of it got there.
func (p *probing) recording() (write func([]health.Reading), done func() error, err error) {
	if p.record == "" {
		return func([]health.Reading) {}, func() error { return nil }, nil
	}
	f, err := os.OpenFile(p.record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // for others to read
	if err != nil {
		return nil, nil, fmt.Errorf("recording readings: %w", err)
	}
	rec := health.NewRecorder(f)
	var first error
	write = func(r []health.Reading) {
		if err := rec.Write(r); err != nil && first == nil {
			first = err
		}
	}
	return write, func() error { return errors.Join(first, f.Close()) }, nil
}

// follow runs the probes at their intervals and prints what changes.
func (p *probing) follow(ctx context.Context, conf health.Config, recording func([]health.Reading)) error {
	told := notice.NewSignal("signal")
	if p.grace > 0 {
		conf.Probes = append(conf.Probes, health.Scheduled{Probe: told, Every: time.Hour, Limit: time.Second, Urgent: true})
	}
	outcomes := map[string]health.Outcome{}
	conf.OnReport = func(r health.Report) {
		recording(r.Readings)
		if before, ran := outcomes[r.Probe]; !p.g.json && (!ran || before != r.Outcome) {
			printOutcome(p.out, r)
		}
		outcomes[r.Probe] = r.Outcome
	}
	conf.OnChange = func(c health.Change) { p.printChange(c) }
	runner := health.NewRunner(conf)
	ctx, end := context.WithCancel(p.outlive(ctx))
	defer end()
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(sigs)
	var wg sync.WaitGroup
	wg.Go(func() { p.signals(ctx, end, sigs, runner, told) })
	err := runner.Run(ctx)
	end()
	wg.Wait()
	return errors.Join(err, runner.Close())
}

// outlive is ctx, or where SIGTERM is a notice, one that it does not end.
func (p *probing) outlive(ctx context.Context) context.Context {
	if p.grace > 0 {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// signals reads the rules again on SIGHUP, and with a grace time announces
// SIGTERM and ends when the time is over.
func (p *probing) signals(ctx context.Context, end func(), sigs <-chan os.Signal, runner *health.Runner, told *notice.Signal) {
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-over:
			end()
		case s := <-sigs:
			switch {
			case s == syscall.SIGHUP:
				p.reload(runner)
			case s == syscall.SIGTERM && p.grace > 0:
				told.Announce(s, time.Now(), p.grace)
				runner.Poke(told.Name())
				if over == nil {
					over = time.After(p.grace)
				}
			default:
				end()
			}
		}
	}
}

func (p *probing) reload(runner *health.Runner) {
	rules, err := health.LoadRules(p.rules)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vft: %v; the rules stay as they are\n", err)
		return
	}
	runner.Reload(rules)
}

func newHealthReplay(g *globals) *cobra.Command {
	var rulesFile string
	cmd := &cobra.Command{
		Use: "replay FILE", Short: "Show what would have been decided when, from recorded readings", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := health.LoadRules(rulesFile)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("opening the recording: %w", err)
			}
			defer f.Close() //nolint:errcheck // only read
			p := &probing{g: g, out: cmd.OutOrStdout()}
			engine, n, err := health.Replay(f, rules, p.printChange)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if g.json {
				return nil
			}
			_, err = fmt.Fprintf(p.out, "%d readings; at the end %s\n", n, engine.Verdict().State)
			return err
		},
	}
	cmd.Flags().StringVar(&rulesFile, "rules", "", "rules file (default: those compiled in)")
	return cmd
}

func newHealthRules(g *globals) *cobra.Command {
	var rulesFile, check string
	cmd := &cobra.Command{
		Use: "rules", Short: "Print the rules in force, or check a rules file", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := rulesFile
			if check != "" {
				path = check
			}
			rules, err := health.LoadRules(path)
			switch {
			case err != nil:
				return err
			case check != "":
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is right: %d rules are in force with it\n", check, len(rules.List()))
			case g.json:
				err = printJSON(cmd.OutOrStdout(), rules.List())
			default:
				_, err = rules.WriteTo(cmd.OutOrStdout())
			}
			return err
		},
	}
	cmd.Flags().StringVar(&rulesFile, "rules", "", "rules file (default: those compiled in)")
	cmd.Flags().StringVar(&check, "check", "", "only say whether this file is right")
	return cmd
}
