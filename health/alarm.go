package health

import (
	"math"
	"time"
)

// phase is where an alarm is between idle and raised.
type phase int

const (
	idle phase = iota
	pending
	raised
)

// alarm is the state of one rule for one subject. Times are seconds of Up,
// except since, which is for people.
type alarm struct {
	Phase    phase     `json:"phase"`
	TrueFrom float64   `json:"true_from"` // pending: when the condition began to hold
	LastTrue float64   `json:"last_true"` // raised: when it was not clear last
	LastSeen float64   `json:"last_seen"`
	Since    time.Time `json:"since"` // raised
	Lead     float64   `json:"lead"`  // seconds
	Evidence string    `json:"evidence"`
	Reading  Reading   `json:"reading"`
}

// step applies a reading. It says whether the alarm was raised or cleared.
func (a *alarm) step(c *compiled, s *scope, r *Reading) (rose, fell bool) {
	a.restarted(r.Up)
	a.LastSeen = r.Up
	when := c.when.truth(s)
	switch a.Phase {
	case idle:
		if !when {
			return false, false
		}
		a.Phase, a.TrueFrom = pending, r.Up
		fallthrough
	case pending:
		if !when {
			a.Phase = idle
			return false, false
		}
		a.note(c, s, r)
		if r.Up-a.TrueFrom < c.For.Seconds() {
			return false, false
		}
		a.Phase, a.LastTrue, a.Since = raised, r.Up, r.At
		return true, false
	case raised:
		clear := !when
		if c.until != nil {
			clear = !when && c.until.truth(s)
		}
		if !clear {
			a.LastTrue = r.Up
			a.note(c, s, r)
			return false, false
		}
		if r.Up-a.LastTrue < c.Hold.Seconds() {
			return false, false
		}
		a.Phase = idle
		return false, true
	}
	return false, false
}

// restarted shifts the times of an alarm that outlived the machine's restart.
func (a *alarm) restarted(up float64) {
	if up >= a.LastSeen {
		return
	}
	a.TrueFrom, a.LastTrue, a.LastSeen = min(a.TrueFrom, up), min(a.LastTrue, up), up
}

// note keeps what the alarm is about.
func (a *alarm) note(c *compiled, s *scope, r *Reading) {
	a.Reading = *r
	a.Evidence = clip(c.evidence.fill(s), maxText)
	a.Lead = c.leadConst.Seconds()
	if c.lead != nil {
		a.Lead = 0
		if v := c.lead.number(s); v > 0 { // NaN is not
			a.Lead = math.Min(v, maxWindow.Seconds())
		}
	}
}

// reason shows the alarm.
func (a *alarm) reason(c *compiled, subject string) Reason {
	return Reason{
		Rule: c.Name, Subject: subject, Level: c.Level,
		Confidence: c.Confidence,
		Lead:       time.Duration(a.Lead * float64(time.Second)),
		Window:     time.Duration(c.Window),
		Since:      a.Since, Evidence: a.Evidence, Reading: a.Reading,
	}
}
