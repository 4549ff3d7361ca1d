package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrSnapshot is wrapped by errors about a snapshot that cannot be used.
var ErrSnapshot = errors.New("bad snapshot of the health engine")

const snapshotVersion = 1

// snapshot is an engine's memory as JSON.
type snapshot struct {
	Version int           `json:"version"`
	Boot    string        `json:"boot"`
	State   State         `json:"state"`
	Since   time.Time     `json:"since"`
	Blind   bool          `json:"blind,omitempty"`
	Latest  float64       `json:"latest"`
	Series  []savedSeries `json:"series"`
	Alarms  []savedAlarm  `json:"alarms"`
}

type savedSeries struct {
	seriesKey
	series
}

type savedAlarm struct {
	alarmKey
	alarm
}

// Save returns what the engine remembers, so that a daemon that starts again
// neither forgets a verdict nor the history behind it. boot names the boot of
// the machine.
func (e *Engine) Save(boot string) ([]byte, error) {
	s := snapshot{
		Version: snapshotVersion, Boot: boot, State: e.state.State, Since: e.state.Since,
		Blind: e.state.Blind, Latest: e.latest,
	}
	for k, v := range e.state.Series {
		s.Series = append(s.Series, savedSeries{k, *v})
	}
	for k, v := range e.state.Alarms {
		s.Alarms = append(s.Alarms, savedAlarm{k, *v})
	}
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("saving the health engine: %w", err)
	}
	return data, nil
}

// Restore puts back what Save returned. Alarms of rules that are gone are left
// out, and histories of another boot too. A bad snapshot changes nothing; its
// error wraps ErrSnapshot.
func (e *Engine) Restore(data []byte, boot string) error {
	var s snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if s.Version != snapshotVersion {
		return fmt.Errorf("%w: version %d; this program reads version %d", ErrSnapshot, s.Version, snapshotVersion)
	}
	if len(s.Series) > maxSeries || len(s.Alarms) > maxSeries {
		return fmt.Errorf("%w: %d series and %d alarms", ErrSnapshot, len(s.Series), len(s.Alarms))
	}
	next := engineState{
		Series: map[seriesKey]*series{}, Alarms: map[alarmKey]*alarm{},
		State: s.State, Since: s.Since, Blind: s.Blind,
	}
	for i := range s.Series {
		v := &s.Series[i]
		if err := v.Past.check(); err != nil {
			return fmt.Errorf("%w: %s %s: %w", ErrSnapshot, v.Probe, v.Metric, err)
		}
		next.Series[v.seriesKey] = &v.series
	}
	for i := range s.Alarms {
		v := &s.Alarms[i]
		if e.named[v.Rule] != nil && (v.Phase == pending || v.Phase == raised) {
			next.Alarms[v.alarmKey] = &v.alarm
		}
	}
	e.state, e.latest = next, s.Latest
	if s.Boot != boot {
		e.reboot()
	}
	return nil
}

// check says whether samples are in order, which everything relies on.
func (h *history) check() error {
	if h == nil {
		return nil
	}
	if len(h.Samples) > maxSeries {
		return fmt.Errorf("a history of %d samples", len(h.Samples))
	}
	last := math.Inf(-1)
	for _, s := range h.Samples {
		if s.T <= last {
			return errors.New("a history that is not in order")
		}
		last = s.T
	}
	return nil
}
