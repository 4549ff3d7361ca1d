package health

import "math"

// sample is a point of a series: t in seconds of Up, v the value with resets
// taken out (a counter begins at zero).
type sample struct {
	T float64 `json:"t"`
	V float64 `json:"v"`
}

// Thinning keeps a sample when it is more than 1/thinning of its age away from
// the next one that is kept.
const (
	thinning  = 64
	thinAfter = 192
)

// history is a series' past as far as rules look back.
type history struct {
	Raw     float64  `json:"raw"` // the last value as it was read
	Counter bool     `json:"counter,omitempty"`
	Samples []sample `json:"samples"`
}

// add appends a value. Times that do not advance replace the last value;
// times that fall mean another boot: what was before does not count.
func (h *history) add(t, raw float64, counter bool, horizon float64) {
	if n := len(h.Samples); n > 0 && (t < h.Samples[n-1].T || counter != h.Counter) {
		h.Samples = h.Samples[:0]
	}
	h.Counter = counter
	n := len(h.Samples)
	v := raw
	if counter {
		switch {
		case n == 0:
			v = 0
		case raw < h.Raw: // it was reset and has counted up to raw since
			v = h.Samples[n-1].V + math.Max(raw, 0)
		default:
			v = h.Samples[n-1].V + raw - h.Raw
		}
	}
	h.Raw = raw
	switch {
	case n > 0 && h.Samples[n-1].T == t:
		h.Samples[n-1].V = v
	case n > 1 && h.Samples[n-1].V == v && h.Samples[n-2].V == v:
		h.Samples[n-1].T = t // a run of equal values needs its ends only
	default:
		h.Samples = append(h.Samples, sample{t, v})
	}
	h.trim(t, horizon)
}

// trim forgets what no rule looks back at, and thins what is old.
func (h *history) trim(now, horizon float64) {
	first := 0
	// One sample before the horizon stays: it is the value at the horizon.
	for first+1 < len(h.Samples) && h.Samples[first+1].T <= now-horizon {
		first++
	}
	if first > 0 {
		h.Samples = append(h.Samples[:0], h.Samples[first:]...)
	}
	if len(h.Samples) <= thinAfter {
		return
	}
	// From the newest to the oldest; the ends always stay.
	end := len(h.Samples) - 1
	w := end
	for i := end - 1; i >= 0; i-- {
		s := h.Samples[i]
		if i == 0 || h.Samples[w].T-s.T >= (now-s.T)/thinning {
			w--
			h.Samples[w] = s
		}
	}
	h.Samples = append(h.Samples[:0], h.Samples[w:]...)
}

// at is the value at time t, between samples linear, before the first the
// first.
func (h *history) at(t float64) float64 {
	s := h.Samples
	lo, hi := 0, len(s)-1
	if t <= s[lo].T {
		return s[lo].V
	}
	if t >= s[hi].T {
		return s[hi].V
	}
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if s[mid].T <= t {
			lo = mid
		} else {
			hi = mid
		}
	}
	f := (t - s[lo].T) / (s[hi].T - s[lo].T)
	return s[lo].V + f*(s[hi].V-s[lo].V)
}

// delta is the growth within the last window seconds; NaN when there is only
// one value.
func (h *history) delta(window float64) float64 {
	if h == nil || len(h.Samples) < 2 {
		return math.NaN()
	}
	last := h.Samples[len(h.Samples)-1]
	return last.V - h.at(last.T-window)
}

// leaky is the content of a bucket that the series fills and that lets n out
// per window seconds.
func (h *history) leaky(n, window float64) float64 {
	if h == nil || len(h.Samples) < 2 {
		return math.NaN()
	}
	level := 0.0
	for i := 1; i < len(h.Samples); i++ {
		dt := h.Samples[i].T - h.Samples[i-1].T
		level = math.Max(0, level-n*dt/window) + math.Max(0, h.Samples[i].V-h.Samples[i-1].V)
	}
	return level
}
