package vm

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrFilling says that the guest's memory is not complete yet; wait for
	// Machine.Filled.
	ErrFilling = errors.New("the guest's memory is still being restored")
	// ErrUnfilled says that the guest was lost because the process that
	// restored its memory ended too early.
	ErrUnfilled = errors.New("the process that restored the guest ended before the guest had all of its memory")
)

// filling is the state of a lazy restore.
type filling struct {
	server *pageServer
	begin  time.Time
	done   chan struct{} // closed at the end

	mu   sync.Mutex
	lost error // why the guest was killed
	err  error // why it failed
	took time.Duration
}

func (f *filling) end(err error) {
	f.mu.Lock()
	f.err, f.took = err, time.Since(f.begin)
	f.mu.Unlock()
	close(f.done)
}

func (f *filling) setLost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = err
}

func (f *filling) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Filled is closed when all memory of a lazily restored guest is there, or
// will never be; FillError tells which. For all other guests it is closed.
// Before that there can be no snapshot, and the guest is lost when this
// process ends.
func (m *Machine) Filled() <-chan struct{} {
	if f := m.fill.Load(); f != nil {
		return f.done
	}
	c := make(chan struct{})
	close(c)
	return c
}

// FillError says why the memory of a lazily restored guest could not be
// completed; it wraps a *PageError when a page could not be had. The guest is
// then killed, since it could never be sure of its memory. It is nil while the
// memory is being restored and when all is there.
func (m *Machine) FillError() error {
	if f := m.fill.Load(); f != nil {
		return f.failed()
	}
	return nil
}

// filling tells whether memory is still missing.
func (m *Machine) filling() bool {
	select {
	case <-m.Filled():
		return false
	default:
		return true
	}
}

// cause is why the machine was given up, for ExitError.
func (m *Machine) cause() error {
	f := m.fill.Load()
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// FillStats says how a lazy restore went, or goes.
type FillStats struct {
	// Requests is how many pages the guest waited for.
	Requests int64
	// Mean, P99 and Max are times between a request and its answer; P99 is a
	// bound that is at most twice the real one.
	Mean, P99, Max time.Duration
	// Demanded pages were sent because they were asked for, Ahead because
	// they are next to one that was, Background by and by. Zero pages that
	// nobody asked for are not sent.
	Demanded, Ahead, Background int64
	// Took is the time until all memory was there; 0 before.
	Took time.Duration
}

// FillStats returns the figures of a lazy restore, zero for other machines.
func (m *Machine) FillStats() FillStats {
	f := m.fill.Load()
	if f == nil {
		return FillStats{}
	}
	c := &f.server.count
	s := FillStats{
		Demanded: c.demanded.Load(), Ahead: c.ahead.Load(), Background: c.background.Load(),
	}
	s.Requests, s.Mean, s.P99, s.Max = c.latency.figures()
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Took = f.took
	return s
}

// fillCounters count what a page server sends.
type fillCounters struct {
	demanded, ahead, background atomic.Int64
	latency                     latencies
}

// latencies keeps times in classes of microseconds that double.
type latencies struct {
	mu    sync.Mutex
	class [40]int64
	n     int64
	sum   time.Duration
	max   time.Duration
}

func (l *latencies) note(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.class[min(bits.Len64(uint64(d.Microseconds())), len(l.class)-1)]++
	l.n++
	l.sum += d
	l.max = max(l.max, d)
}

func (l *latencies) figures() (n int64, mean, p99, most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		return 0, 0, 0, 0
	}
	var seen int64
	for i, k := range l.class {
		if seen += k; seen*100 >= l.n*99 {
			p99 = min(time.Microsecond<<i, l.max)
			break
		}
	}
	return l.n, l.sum / time.Duration(l.n), p99, l.max
}

// fillMark is a locked file in the machine's directory. It is there while
// memory is missing, and locked while the process lives that restores it.
type fillMark struct{ f *os.File }

func markFilling(dir string) (*fillMark, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileFilling), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mark the restore: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("mark the restore: %w", err), f.Close())
	}
	return &fillMark{f}, nil
}

// errRestoring says that the process that restores a guest is alive.
var errRestoring = errors.New("another process is restoring its memory")

// findMark is nil when a machine's memory is not being restored.
func findMark(dir string) (*fillMark, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileFilling), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errRestoring, f.Close())
	}
	return &fillMark{f}, nil
}

// clear says that all memory is there.
func (m *fillMark) clear() error { return errors.Join(os.Remove(m.f.Name()), m.f.Close()) }

// leave keeps the mark for whoever adopts the machine.
func (m *fillMark) leave() { _ = m.f.Close() }
