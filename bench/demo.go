// Package bench shows what vft does, in numbers and on real programs. It
// drives the binaries only, as a user would, and knows nothing of what is
// inside them.
package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Demo is the main job, end to end: a cluster of three nodes, a real MPI
// program, checkpoints, a node lost, and the program's own verification.
type Demo struct {
	Bin  string // directory of the binaries
	Dir  string // working directory, made and removed by Run
	App  App
	Keep bool // leave the directory, for a look at what happened
	Out  io.Writer
}

// Nodes and timing of the demo.
const (
	demoNodes = 3
	// The node is killed this long after a commit, so that work is lost.
	demoKillAfter = 2 * time.Second
	demoTimeout   = 15 * time.Minute
)

// App is a program that the demo runs and whose result it can check.
type App struct {
	Name    string
	Prepare func(dir string) error
	Options []string // of mpirun-vft, before the program
	Argv    []string // program and arguments, run in dir
	// Check reads the program's own verdict from its output and its files and
	// returns lines that show it.
	Check func(dir, stdout string) ([]string, error)
}

// event is what --vft-events writes.
type event struct {
	Time    time.Time         `json:"time"`
	Kind    string            `json:"kind"`
	Text    string            `json:"text"`
	Job     string            `json:"job"`
	Figures map[string]int64  `json:"figures"`
	Labels  map[string]string `json:"labels"`
}

// Run runs the demo; its error is the reason why it failed.
func (d Demo) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, fmt.Errorf("not finished within %s", demoTimeout))
	defer cancel()
	work := filepath.Join(d.Dir, "work")
	if err := os.MkdirAll(work, 0o755); err != nil { //nolint:gosec // a working directory like any other
		return fmt.Errorf("making the working directory: %w", err)
	}
	if !d.Keep {
		defer func() { err = errors.Join(err, os.RemoveAll(d.Dir)) }()
	}
	if d.App.Prepare != nil {
		if err := d.App.Prepare(work); err != nil {
			return fmt.Errorf("preparing %s: %w", d.App.Name, err)
		}
	}
	d.say("$ vft lab up --nodes %d", demoNodes)
	labDir := filepath.Join(d.Dir, "lab")
	if err := d.vft(ctx, "lab", "up", "--dir", labDir, "--nodes", fmt.Sprint(demoNodes)); err != nil {
		return err
	}
	defer func() {
		derr := d.vft(context.WithoutCancel(ctx), "lab", "down", "--dir", labDir)
		err = errors.Join(err, derr)
	}()
	r := &demoRun{Demo: d, work: work, lab: labDir, begun: time.Now()}
	return r.run(ctx)
}

// demoRun is one run of the job.
type demoRun struct {
	Demo
	work, lab string
	begun     time.Time

	committed, restarts int
	lost                time.Duration
	killed              string
	killedAt            time.Time
	jobID               string
}

func (r *demoRun) run(ctx context.Context) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe for events: %w", err)
	}
	defer reader.Close() //nolint:errcheck // nothing is written to it
	args := slices.Concat([]string{"--vft-cluster", r.lab, "--vft-events", "fd:3"}, r.App.Options, r.App.Argv)
	r.say("$ mpirun-vft %s", strings.Join(args, " "))
	r.begun = time.Now()
	cmd := command(ctx, filepath.Join(r.Bin, "mpirun-vft"), args...)
	cmd.Dir = r.work
	cmd.ExtraFiles = []*os.File{writer}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting mpirun-vft: %w", err)
	}
	_ = writer.Close()
	follow := make(chan error, 1)
	go func() { follow <- r.follow(ctx, reader) }()
	err = cmd.Wait()
	ferr := <-follow
	if err != nil {
		return errors.Join(fmt.Errorf("mpirun-vft: %w\n%s", err, tail(stderr.String(), 2000)), ferr)
	}
	if ferr != nil {
		return ferr
	}
	return r.judge(stdout.String())
}

// follow prints events as they come and kills a node after the first commit.
func (r *demoRun) follow(ctx context.Context, events io.Reader) error {
	var kill <-chan time.Time
	lines := make(chan event)
	failed := make(chan error, 1)
	go func() {
		defer close(lines)
		in := bufio.NewReader(events)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			var e event
			if err := json.Unmarshal(line, &e); err != nil {
				failed <- fmt.Errorf("reading an event: %w", err)
				return
			}
			lines <- e
		}
	}()
	for {
		select {
		case e, ok := <-lines:
			if !ok {
				select {
				case err := <-failed:
					return err
				default:
					return nil
				}
			}
			r.note(e)
			if e.Kind == "checkpoint" && r.committed == 1 && r.killed == "" {
				kill = time.After(demoKillAfter)
			}
		case <-kill:
			kill = nil
			if err := r.killNode(ctx); err != nil {
				return err
			}
		}
	}
}

func (r *demoRun) note(e event) {
	r.jobID = e.Job
	r.line(e.Time, e.Kind, e.Text)
	switch e.Kind {
	case "checkpoint":
		r.committed++
	case "restarted":
		r.restarts++
		r.lost += time.Duration(e.Figures["lost"])
		if !r.killedAt.IsZero() {
			r.line(e.Time, "", fmt.Sprintf("%.2f s from the kill to all guests running again", e.Time.Sub(r.killedAt).Seconds()))
		}
	}
}

// killNode ends a node that runs guests, as a power cut does.
func (r *demoRun) killNode(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, filepath.Join(r.Bin, "vft"), "--cluster", r.lab, "--json", "job", "show", r.jobID).Output()
	if err != nil {
		return fmt.Errorf("asking where the guests are: %w", err)
	}
	var job struct {
		Guests []struct {
			Index int    `json:"index"`
			Node  string `json:"node"`
		} `json:"guests"`
	}
	if err := json.Unmarshal(out, &job); err != nil {
		return fmt.Errorf("asking where the guests are: %w", err)
	}
	if len(job.Guests) == 0 {
		return errors.New("the job shows no guests to kill")
	}
	victim := job.Guests[len(job.Guests)-1]
	r.killed, r.killedAt = victim.Node, time.Now()
	r.line(r.killedAt, "KILL", fmt.Sprintf("$ vft lab kill %s   (it runs guest %d)", victim.Node, victim.Index))
	return r.vft(ctx, "lab", "kill", "--dir", r.lab, victim.Node)
}

// judge decides whether the demo showed what it set out to show.
func (r *demoRun) judge(stdout string) error {
	proof, err := r.App.Check(r.work, stdout)
	for _, l := range proof {
		r.say("  %s", l)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s's own checks: %w", r.App.Name, err)
	case r.killed == "":
		return errors.New("the program ended before a node could be killed: give it more to do")
	case r.restarts == 0:
		return fmt.Errorf("node %s was killed and the job was not restarted", r.killed)
	}
	r.say("demo: PASSED  restarts=%d  epochs=%d  lost=%.1fs", r.restarts, r.committed, r.lost.Seconds())
	return nil
}

func (r *demoRun) line(at time.Time, kind, text string) {
	r.say("%8.2fs  %-17s %s", at.Sub(r.begun).Seconds(), kind, text)
}

func (d Demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Out, format+"\n", args...)
}

func (d Demo) vft(ctx context.Context, args ...string) error {
	cmd := command(ctx, filepath.Join(d.Bin, "vft"), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("vft %s: %w\n%s", strings.Join(args, " "), err, tail(string(out), 4000))
	}
	return nil
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
