package health

import (
	"sync"
	"time"
)

// Budget of probing: a share of one core, and how much may be spent at once.
// The first round of all probes is within the burst.
const (
	budgetShare = 0.001
	budgetBurst = 2 * time.Second
)

// budget is an account of processor time that fills by itself.
type budget struct {
	mu   sync.Mutex
	at   time.Time
	left time.Duration
}

func newBudget(now time.Time) *budget { return &budget{at: now, left: budgetBurst} }

// fill adds what has come in since. The caller holds mu.
func (b *budget) fill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		// Whoever was away for long has the burst, not more.
		b.left = min(b.left+time.Duration(float64(d)*budgetShare), budgetBurst)
	}
	b.at = now
}

// spend takes d off the account, which may be overdrawn.
func (b *budget) spend(now time.Time, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	b.left -= d
}

// wait is how long the account stays overdrawn.
func (b *budget) wait(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if b.left >= 0 {
		return 0
	}
	return time.Duration(float64(-b.left) / budgetShare)
}
