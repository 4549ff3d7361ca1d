package object

import (
	"runtime"
	"sync"
	"time"
)

// pace knows how fast encoding and the disk are, and chooses the level.
type pace struct {
	workers float64

	mu      sync.Mutex
	speed   [levels]float64 // raw bytes per second of one worker
	ratio   [levels]float64 // stored bytes per raw byte
	disk    float64         // stored bytes per second
	choices int
}

const (
	// smoothing is the weight of a new measurement.
	smoothing = 1.0 / 16
	// probeEvery is how often another level than the best is used, for its
	// figures to stay true.
	probeEvery = 64
	// nearlyBest is how much throughput is given away for a better ratio.
	nearlyBest = 0.95
)

func newPace() *pace {
	// First guesses, of a common machine.
	return &pace{
		workers: float64(runtime.GOMAXPROCS(0)),
		speed:   [levels]float64{levelFast: 300e6, levelDefault: 150e6, levelBetter: 60e6},
		ratio:   [levels]float64{levelFast: 0.45, levelDefault: 0.42, levelBetter: 0.40},
		disk:    200e6,
	}
}

func smooth(average *float64, x float64) { *average += (x - *average) * smoothing }

// encoded notes what the encoding of an extent took.
func (p *pace) encoded(l level, raw, stored int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	smooth(&p.speed[l], float64(raw)/max(took, time.Microsecond).Seconds())
	smooth(&p.ratio[l], min(float64(stored)/float64(raw), 1))
}

// wrote notes what writing took, the waiting for the device included.
func (p *pace) wrote(n int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	smooth(&p.disk, float64(n)/max(took, time.Microsecond).Seconds())
}

// choose returns the level for the next extent, when fill eighths of the memory
// for extents are used (docs/CKPT.md, "Packs").
func (p *pace) choose(fill int64) level {
	if fill >= 4 {
		return levelRaw
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	best := p.best()
	if fill == 0 {
		best = max(best, levelFast) // the source is what is waited for
	}
	p.choices++
	if p.choices%probeEvery == 0 {
		return min(best+1, levelBetter)
	}
	return best
}

// best returns the highest level that lets nearly as many bytes through as any.
func (p *pace) best() level {
	var through [levels]float64
	most := 0.0
	for l := range levels {
		through[l] = p.disk
		if l != levelRaw {
			through[l] = min(p.workers*p.speed[l], p.disk/max(p.ratio[l], 1.0/256))
		}
		most = max(most, through[l])
	}
	best := levelRaw
	for l := levelFast; l < levels; l++ {
		if through[l] >= nearlyBest*most && p.ratio[l] < 1-1.0/16 {
			best = l
		}
	}
	return best
}
