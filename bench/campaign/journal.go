package campaign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mpirun-vft/vft/bench/experiment"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// Files of a campaign.
const (
	experimentFile = "experiment.yaml"
	resultsFile    = "results.jsonl"
)

// ErrOther says that a directory holds the campaign of another experiment.
var ErrOther = errors.New("it holds the campaign of another experiment")

// Campaign is an experiment and what has been measured of it.
type Campaign struct {
	Experiment   experiment.Experiment
	Environments []Environment
	Runs         []Run // in the order in which they were made
	dir          string
}

// line is one line of the results: exactly one is there.
type line struct {
	Environment *Environment `json:"environment,omitempty"`
	Run         *Run         `json:"run,omitempty"`
}

// Open begins a campaign of the experiment that text declares in a directory,
// or goes on with the one there. With other repetitions, or shown in another
// way, an experiment is still the same.
func Open(dir string, text []byte) (*Campaign, error) {
	x, err := experiment.Parse(text)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // results anybody may read
		return nil, fmt.Errorf("making the campaign's directory: %w", err)
	}
	path := filepath.Join(dir, experimentFile)
	switch was, err := os.ReadFile(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("reading the campaign: %w", err)
	default:
		old, err := experiment.Parse(was)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if !old.Same(x) {
			return nil, fmt.Errorf("%s: %w (%s): choose another --out", dir, ErrOther, old.Name)
		}
	}
	if err := atomicfile.WriteFile(path, text, 0o644); err != nil {
		return nil, fmt.Errorf("writing the experiment: %w", err)
	}
	return read(dir, x, true)
}

// Load reads a campaign, finished or not.
func Load(dir string) (*Campaign, error) {
	text, err := os.ReadFile(filepath.Join(dir, experimentFile))
	if err != nil {
		return nil, fmt.Errorf("%s holds no campaign: %w", dir, err)
	}
	x, err := experiment.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, experimentFile), err)
	}
	return read(dir, x, false)
}

// read reads the results. What an interruption left of a last line is not a
// result; mend removes it, so that the next line is whole.
func read(dir string, x experiment.Experiment, mend bool) (*Campaign, error) {
	c := &Campaign{Experiment: x, dir: dir}
	path := filepath.Join(dir, resultsFile)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	if mend && whole < len(data) {
		if err := os.Truncate(path, int64(whole)); err != nil {
			return nil, fmt.Errorf("removing half a line of results: %w", err)
		}
	}
	for i, text := range bytes.Split(data[:whole], []byte("\n")) {
		if len(text) == 0 {
			continue
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
		switch {
		case l.Environment != nil:
			c.Environments = append(c.Environments, *l.Environment)
		case l.Run != nil:
			// What follows from events is as this version of vft-bench sees it.
			l.Run.Derive()
			c.Runs = append(c.Runs, *l.Run)
		default:
			return nil, fmt.Errorf("%s, line %d: neither a run nor an environment", path, i+1)
		}
	}
	return c, nil
}

// append adds a line, safe against a crash of the machine when it returns.
func (c *Campaign) append(l line) error {
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encoding a result: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(c.dir, resultsFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644) //nolint:gosec // results anybody may read
	if err != nil {
		return fmt.Errorf("opening results: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing a result: %w", err)
	}
	return nil
}

// Enter sets where the runs to come take place and returns its number.
func (c *Campaign) Enter(e Environment) (int, error) {
	for _, o := range c.Environments {
		if o.Same(e) {
			return o.Number, nil
		}
	}
	e.Number = len(c.Environments) + 1
	if err := c.append(line{Environment: &e}); err != nil {
		return 0, err
	}
	c.Environments = append(c.Environments, e)
	return e.Number, nil
}

// Add records a run.
func (c *Campaign) Add(r Run) error {
	if err := c.append(line{Run: &r}); err != nil {
		return err
	}
	c.Runs = append(c.Runs, r)
	return nil
}

// Pending are the runs that have not been made, in order.
func (c *Campaign) Pending() []experiment.Run {
	done := map[string]bool{}
	for _, r := range c.Runs {
		done[r.Key] = true
	}
	var out []experiment.Run
	for _, r := range c.Experiment.Schedule() {
		if !done[r.Key] {
			out = append(out, r)
		}
	}
	return out
}

// Of are the records of a variant.
func (c *Campaign) Of(v experiment.Variant) []Run {
	var out []Run
	for _, r := range c.Runs {
		if r.Variant == v {
			out = append(out, r)
		}
	}
	return out
}
