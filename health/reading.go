package health

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Reading is one value that a probe read.
type Reading struct {
	Probe   string  `json:"probe"`
	Metric  string  `json:"metric"`
	Subject string  `json:"subject,omitempty"` // which DIMM, disk, interface; empty for the machine
	Value   float64 `json:"value"`
	Unit    string  `json:"unit,omitempty"`
	Text    string  `json:"text,omitempty"` // label, message or reason, for people
	// Counter says that the value only grows until it is reset.
	Counter bool `json:"counter,omitempty"`
	// At is the time of the wall clock, for people.
	At time.Time `json:"at"`
	// Up is the time in seconds of a clock that is never set and starts with
	// the machine. Rates use it.
	Up float64 `json:"up,omitempty"`
}

// Bounds of what a reading carries: texts come from outside.
const (
	maxSubject = 128
	maxText    = 256
)

// ErrReading is wrapped by errors about a reading that cannot be one.
var ErrReading = errors.New("bad reading")

// Check says whether the reading can be used.
func (r *Reading) Check() error {
	switch {
	case r.Probe == "" || r.Metric == "":
		return fmt.Errorf("%w: it needs a probe and a metric", ErrReading)
	case math.IsNaN(r.Value) || math.IsInf(r.Value, 0):
		return fmt.Errorf("%w: %s %s: value %v", ErrReading, r.Probe, r.Metric, r.Value)
	case math.IsNaN(r.Up) || math.IsInf(r.Up, 0) || r.Up < 0:
		return fmt.Errorf("%w: %s %s: up %v", ErrReading, r.Probe, r.Metric, r.Up)
	case len(r.Probe) > maxSubject || len(r.Metric) > maxSubject:
		return fmt.Errorf("%w: a name of more than %d bytes", ErrReading, maxSubject)
	}
	return nil
}

// clip makes the texts of a reading printable and bounds them.
func (r *Reading) clip() {
	r.Subject = clip(r.Subject, maxSubject)
	r.Text = clip(r.Text, maxText)
}

func clip(s string, limit int) string {
	ok := len(s) <= limit && utf8.ValidString(s)
	for i := 0; ok && i < len(s); i++ {
		ok = s[i] >= ' ' && s[i] != 0x7f
	}
	if ok {
		return s
	}
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// ID names the series that the reading belongs to, for people.
func (r *Reading) ID() string {
	if r.Subject == "" {
		return r.Probe + " " + r.Metric
	}
	return r.Probe + " " + r.Metric + " " + r.Subject
}
