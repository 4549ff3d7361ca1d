// Package cputime adds up the processor time that one run of a probe costs,
// with that of the programs it starts.
package cputime

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Meter adds up processor time. It may be used by several goroutines.
type Meter struct{ ns atomic.Int64 }

type key struct{}

// With returns a context that carries a new meter.
func With(ctx context.Context) (context.Context, *Meter) {
	m := &Meter{}
	return context.WithValue(ctx, key{}, m), m
}

// Add charges d to the meter of ctx, if it has one.
func Add(ctx context.Context, d time.Duration) {
	if m, ok := ctx.Value(key{}).(*Meter); ok && d > 0 {
		m.ns.Add(int64(d))
	}
}

// Total is what was charged so far.
func (m *Meter) Total() time.Duration { return time.Duration(m.ns.Load()) }

// Thread is the processor time that the calling thread has used. The caller
// has locked its goroutine to the thread.
func Thread() time.Duration {
	var ts unix.Timespec // getrusage would be a clock tick behind
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
