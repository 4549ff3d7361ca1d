package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Result is one figure, with its baseline of the same run where there is one.
type Result struct {
	Bench    string  `json:"bench"`
	Case     string  `json:"case"`
	Metric   string  `json:"metric"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	Baseline float64 `json:"baseline,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"` // value ÷ baseline
}

// against gives a result its baseline.
func (r Result) against(baseline float64) Result {
	r.Baseline = baseline
	if baseline != 0 {
		r.Ratio = r.Value / baseline
	}
	return r
}

// cluster is a lab that a benchmark starts and ends.
type cluster struct {
	bin, dir string
	env      []string // of its commands and daemons, besides our own
}

func startCluster(ctx context.Context, bin, dir string, nodes int) (*cluster, error) {
	c := &cluster{bin: bin, dir: dir}
	return c, c.up(ctx, nodes)
}

// up starts the lab, with further options of `vft lab up`.
func (c *cluster) up(ctx context.Context, nodes int, options ...string) error {
	_, err := c.run(ctx, append([]string{"lab", "up", "--dir", c.dir, "--nodes", fmt.Sprint(nodes)}, options...)...)
	return err
}

func (c *cluster) stop(ctx context.Context) error {
	_, err := c.run(context.WithoutCancel(ctx), "lab", "down", "--dir", c.dir)
	return err
}

// command is a command that is asked to end when ctx ends, so that it clears up
// what it has begun, and killed only if that takes long.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// run runs a vft command and returns its output.
func (c *cluster) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := command(ctx, filepath.Join(c.bin, "vft"), args...)
	cmd.Env = append(os.Environ(), c.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("vft %s: %w\n%s", strings.Join(args, " "), err, tail(stderr.String()+string(out), 4000))
	}
	return out, nil
}

// ask runs a vft command against the cluster and decodes what it prints.
func (c *cluster) ask(ctx context.Context, answer any, args ...string) error {
	out, err := c.run(ctx, append([]string{"--cluster", c.dir, "--json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return fmt.Errorf("vft %s: reading its answer: %w", strings.Join(args, " "), err)
	}
	return nil
}

// job is a running mpirun-vft.
type job struct {
	cmd    *exec.Cmd
	events chan event // closed at the end
	ended  chan struct{}
	err    error // after ended

	stdout transcript
	stderr bytes.Buffer
}

// transcript keeps what a program prints, and when its lines were complete.
type transcript struct {
	mu    sync.Mutex
	text  bytes.Buffer
	times []time.Time   // of each newline
	more  chan struct{} // closed when something is added; nil: nobody waits
}

// Write keeps p.
func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for range bytes.Count(p, []byte("\n")) {
		t.times = append(t.times, now)
	}
	if t.more != nil {
		close(t.more)
		t.more = nil
	}
	return t.text.Write(p)
}

// growth is closed when something is added to what has been printed by now.
func (t *transcript) growth() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more == nil {
		t.more = make(chan struct{})
	}
	return t.more
}

// String is what has been printed so far.
func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// lines yields the whole lines and when they came.
func (t *transcript) lines(yield func(time.Time, string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(t.text.String(), "\n")
	for i, at := range t.times {
		if !yield(at, lines[i]) {
			return
		}
	}
}

// start runs a job in the cluster, in a directory below the cluster's.
func (c *cluster) start(ctx context.Context, args ...string) (*job, error) {
	work, err := os.MkdirTemp(filepath.Dir(c.dir), "work-")
	if err != nil {
		return nil, fmt.Errorf("making a working directory: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for events: %w", err)
	}
	defer w.Close() //nolint:errcheck // the child has its own
	j := &job{events: make(chan event, 4096), ended: make(chan struct{})}
	j.cmd = command(ctx, filepath.Join(c.bin, "mpirun-vft"), append([]string{"--vft-cluster", c.dir, "--vft-events", "fd:3"}, args...)...)
	j.cmd.Dir, j.cmd.ExtraFiles = work, []*os.File{w}
	j.cmd.Stdout, j.cmd.Stderr = &j.stdout, &j.stderr
	if err := j.cmd.Start(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("starting mpirun-vft: %w", err)
	}
	go func() {
		defer close(j.events)
		defer r.Close() //nolint:errcheck // read only
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			var e event
			if json.Unmarshal(line, &e) == nil {
				j.events <- e
			}
		}
	}()
	go func() {
		defer close(j.ended)
		j.err = j.cmd.Wait()
	}()
	return j, nil
}

// await returns the next event of a kind.
func (j *job) await(ctx context.Context, kind string) (event, error) {
	for {
		select {
		case e, ok := <-j.events:
			if !ok {
				<-j.ended
				return event{}, fmt.Errorf("the job ended before the event %q: %w\n%s", kind, errors.Join(j.err, errEnded), tail(j.stderr.String(), 2000))
			}
			if e.Kind == kind {
				return e, nil
			}
		case <-ctx.Done():
			return event{}, ctx.Err()
		}
	}
}

// printed waits until the program has printed a line that wanted accepts.
func (j *job) printed(ctx context.Context, wanted func(at time.Time, line string) bool) error {
	for {
		growth := j.stdout.growth()
		for at, line := range j.stdout.lines {
			if wanted(at, line) {
				return nil
			}
		}
		select {
		case <-growth:
		case <-j.ended:
			return fmt.Errorf("the job ended before the program had printed what was waited for: %w\n%s", errors.Join(j.err, errEnded), tail(j.stderr.String(), 2000))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var errEnded = errors.New("mpirun-vft has ended")

// wait returns when the job has ended well.
func (j *job) wait() error {
	<-j.ended
	if j.err != nil {
		return fmt.Errorf("mpirun-vft: %w\n%s", j.err, tail(j.stderr.String(), 2000))
	}
	return nil
}

// interrupt ends the job as Ctrl-C does.
func (j *job) interrupt() {
	_ = j.cmd.Process.Signal(os.Interrupt)
	<-j.ended
}

// value finds the number after a word at the beginning of a line of output.
func (j *job) value(word string) (float64, error) {
	for line := range strings.Lines(j.stdout.String()) {
		var v float64
		if n, err := fmt.Sscanf(line, word+" %g", &v); n == 1 && err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("the program did not print %q:\n%s", word, tail(j.stdout.String(), 1000))
}
