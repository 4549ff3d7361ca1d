package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// Engine names a way of taking a snapshot of a running guest.
type Engine string

// The engines; docs/VM.md compares them.
const (
	// EngineBackground write-protects RAM and copies while the guest runs.
	EngineBackground Engine = "background"
	// EnginePreCopy copies RAM while the guest runs, and what it dirtied
	// meanwhile while it is stopped.
	EnginePreCopy Engine = "pre-copy"
	// EngineStopCopy copies everything while the guest is stopped.
	EngineStopCopy Engine = "stop-copy"
)

// Engines lists all engines, the one with the shortest pause first.
func Engines() []Engine { return []Engine{EngineBackground, EnginePreCopy, EngineStopCopy} }

var (
	// ErrBusy says that the machine has a snapshot in progress.
	ErrBusy = errors.New("a snapshot is in progress")
	// ErrAborted is the result of a snapshot that was aborted.
	ErrAborted = errors.New("snapshot aborted")
	// ErrNotRunning says that the guest was not running at the cut.
	ErrNotRunning = errors.New("guest is not running")
	// ErrSequence says that a Snapshot's methods were called out of order.
	ErrSequence = errors.New("snapshot method called out of order")
)

// Snapshot is one snapshot of one guest in progress. The order of calls is
// Prepare, Cut, Wait; Abort may be called at any time and by any goroutine,
// and must be called when the others are given up. When Prepare, Cut or Wait
// returns an error the snapshot is over, and the guest runs if it is alive and
// Machine.Pause was not called.
type Snapshot interface {
	// Engine is the engine in use.
	Engine() Engine
	// Prepare does what can be done before the network is held. With
	// pre-copy most of RAM is copied to the sink, after a pause of some
	// milliseconds; the others only set up.
	Prepare(ctx context.Context) error
	// EarlyStop delivers the time at which the guest stopped by itself
	// before Cut. Only pre-copy of a nearly idle guest does so. The guest
	// stays stopped until Cut or Abort.
	EarlyStop() <-chan time.Time
	// Cut stops the guest, calls atCut (which may be nil) while it is
	// stopped, and returns as soon as the guest's state is fixed: what
	// reaches the guest from then on is not in the snapshot. With the
	// background engine the guest runs again at that time; with the others
	// it runs again before Wait returns.
	Cut(ctx context.Context, atCut func(context.Context) error) (CutTimes, error)
	// Wait returns when the sink has the complete snapshot, is closed, and
	// the guest runs. When ctx ends first the snapshot goes on.
	Wait(ctx context.Context) (Result, error)
	// Abort ends the snapshot and leaves the guest running. The sink is
	// closed with ErrAborted. A background snapshot is not cancelled, its
	// stream is read to the end and thrown away. No error when the snapshot
	// is over already.
	Abort(ctx context.Context) error
}

// SnapshotOptions tune a snapshot; the zero value is good.
type SnapshotOptions struct {
	// BufferBytes bounds the memory between QEMU and the sink,
	// DefaultBuffer if 0. A guest under a background snapshot is slowed to
	// the sink's speed once it is full.
	BufferBytes int
	// HandOver is for a guest that is to go on elsewhere: from the end of
	// atCut on it stays stopped, also when the snapshot fails or is aborted,
	// until Machine.TakeBack. Result.Resumed and Pause are zero then.
	HandOver bool
}

// CutTimes says when things happened in Cut.
type CutTimes struct {
	// Stopped is when the guest stopped, by QEMU's clock.
	Stopped time.Time
	// AtCut is how long atCut took.
	AtCut time.Duration
	// Fixed is when the guest's state was fixed.
	Fixed time.Time
	// Resumed is when the guest ran again; zero when it does not yet.
	Resumed time.Time
}

// Result describes a complete snapshot.
type Result struct {
	// Engine that made it.
	Engine Engine
	// Bytes of the stream, and those of them written after the cut.
	Bytes, BytesAfterCut int64
	// Stopped and Resumed are QEMU's times of the pause.
	Stopped, Resumed time.Time
	// Pause is Resumed - Stopped, atCut included; AtCut is atCut's share.
	Pause, AtCut time.Duration
	// Total is the time from Prepare until the sink had everything.
	Total time.Duration
	// Passes over RAM (pre-copy).
	Passes int
	// DirtyPagesPerSecond is QEMU's last estimate (pre-copy), PageSize the
	// size of these pages in bytes.
	DirtyPagesPerSecond int64
	PageSize            int64
	// ZeroPages and DataPages that QEMU wrote.
	ZeroPages, DataPages int64
}

// driver is what differs between engines.
type driver interface {
	engine() Engine
	// setup returns capabilities and parameters.
	setup() (caps map[string]bool, params map[string]any)
	prepare(ctx context.Context, s *session) error
	// cut stops the guest, calls s.atCut, and gets the guest's state fixed.
	cut(ctx context.Context, s *session) error
	// finish completes the copy and lets the guest run.
	finish(ctx context.Context, s *session) error
	// cancel makes QEMU end the copy, if that can be done safely.
	cancel(ctx context.Context, s *session) error
}

type phase int

const (
	phaseNew phase = iota
	phasePreparing
	phasePrepared
	phaseCutting
	phaseCopying
	phaseOver
)

// session implements Snapshot over a driver.
type session struct {
	m    *Machine
	d    driver
	opts SnapshotOptions
	pump *pump
	ev   *eventLog
	ctx  context.Context //nolint:containedctx // bounds the copy, which outlives the call of Cut

	mu      sync.Mutex
	phase   phase
	aborted bool
	started bool // the migrate command was accepted
	ran     bool // pre-copy: the guest ran while it was being copied

	begin    time.Time
	hook     func(context.Context) error
	times    CutTimes
	cutBytes int64
	result   Result
	err      error
	over     chan struct{}
}

// Snapshot begins a snapshot with the given engine into sink. Nothing happens
// to the guest before Prepare. ctx bounds the whole snapshot: when it ends the
// snapshot is aborted. A machine has at most one snapshot at a time.
func (m *Machine) Snapshot(ctx context.Context, engine Engine, sink Sink, opts SnapshotOptions) (Snapshot, error) {
	var d driver
	switch engine {
	case EngineBackground:
		d = backgroundDriver{}
	case EnginePreCopy:
		d = preCopyDriver{}
	case EngineStopCopy:
		d = stopCopyDriver{}
	default:
		return nil, fmt.Errorf("unknown snapshot engine %q", engine)
	}
	if m.filling() {
		return nil, wrap(m.spec.Name, ErrFilling)
	}
	s := &session{m: m, d: d, opts: opts, ctx: ctx, over: make(chan struct{})}
	if !m.snap.CompareAndSwap(nil, s) {
		return nil, wrap(m.spec.Name, ErrBusy)
	}
	p, err := newPump(ctx, filepath.Join(m.spec.Dir, sockSnap), sink, opts.BufferBytes)
	if err != nil {
		m.snap.Store(nil)
		close(s.over)
		return nil, wrap(m.spec.Name, err)
	}
	s.pump, s.ev = p, newEventLog(m.Events())
	return s, nil
}

// AwaitSnapshot returns when the snapshot in progress is over, at once without
// one. A snapshot that was given up may take its time: what QEMU still sends is
// read to the end. The error wraps ErrBusy when ctx ends first.
func (m *Machine) AwaitSnapshot(ctx context.Context) error {
	s := m.snap.Load()
	if s == nil {
		return nil
	}
	select {
	case <-s.over:
		return nil
	case <-m.done:
		return wrap(m.spec.Name, m.exit)
	case <-ctx.Done():
		return wrap(m.spec.Name, fmt.Errorf("%w: %w", ErrBusy, ctx.Err()))
	}
}

// Engine implements Snapshot.
func (s *session) Engine() Engine { return s.d.engine() }

// EarlyStop implements Snapshot.
func (s *session) EarlyStop() <-chan time.Time { return s.ev.early }

// enter moves from one phase to the next.
func (s *session) enter(from, to phase) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		return ErrAborted
	}
	if s.phase != from {
		if s.phase == phaseOver && s.err != nil {
			return s.err
		}
		return ErrSequence
	}
	s.phase = to
	return nil
}

// Prepare implements Snapshot.
func (s *session) Prepare(ctx context.Context) error {
	if err := s.enter(phaseNew, phasePreparing); err != nil {
		return s.fault("prepare", err)
	}
	s.begin = time.Now()
	err := s.prepare(ctx)
	if err == nil {
		err = s.enter(phasePreparing, phasePrepared)
	}
	if err != nil {
		return s.fault("prepare", s.giveUp(ctx, err))
	}
	return nil
}

func (s *session) prepare(ctx context.Context) error {
	ctx, cancel := s.join(ctx)
	defer cancel()
	caps, params := s.d.setup()
	if err := s.m.migrationSetup(ctx, caps, params); err != nil {
		return err
	}
	return s.d.prepare(ctx, s)
}

// join is ctx that also ends when the snapshot's context does.
func (s *session) join(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// Cut implements Snapshot.
func (s *session) Cut(ctx context.Context, atCut func(context.Context) error) (CutTimes, error) {
	if err := s.enter(phasePrepared, phaseCutting); err != nil {
		return CutTimes{}, s.fault("cut", err)
	}
	s.hook = atCut
	s.ev.cutBegins()
	jctx, cancel := s.join(ctx)
	err := s.d.cut(jctx, s)
	cancel()
	if err == nil {
		err = s.enter(phaseCutting, phaseCopying)
	}
	if err != nil {
		return s.times, s.fault("cut", s.giveUp(ctx, err))
	}
	s.times.Fixed = time.Now()
	s.times.Stopped, s.times.Resumed = s.ev.pause()
	s.cutBytes = s.pump.bytes.Load()
	times := s.times
	go s.copy()
	return times, nil
}

// atCut runs the caller's hook; drivers call it with the guest stopped.
func (s *session) atCut(ctx context.Context) error {
	if s.hook == nil {
		s.handOver()
		return nil
	}
	t := time.Now()
	err := s.hook(ctx)
	s.times.AtCut = time.Since(t)
	if err != nil {
		return fmt.Errorf("at cut: %w", err)
	}
	s.handOver()
	return nil
}

// handOver makes the guest stay stopped, if that is wanted.
func (s *session) handOver() {
	if s.opts.HandOver {
		s.m.runMu.Lock()
		s.m.handed = true
		s.m.runMu.Unlock()
	}
}

// copy drives the snapshot from the cut to its end.
func (s *session) copy() {
	// A sink that stalls must not keep a copy going that nobody wants.
	stop := context.AfterFunc(s.ctx, func() {
		s.pump.discard()
		s.pump.release()
	})
	defer stop()
	err := s.d.finish(s.ctx, s)
	if err == nil {
		err = s.drained(s.ctx)
	}
	if err != nil {
		_ = s.giveUp(s.ctx, err)
		return
	}
	s.end(nil)
}

// drained waits until the sink has the whole stream.
func (s *session) drained(ctx context.Context) error {
	select {
	case <-s.pump.done:
	case <-s.pump.drop:
	}
	select {
	case <-s.pump.drop: // by Abort, or because ctx ended
		if err := ctx.Err(); err != nil {
			return err
		}
		return ErrAborted
	default:
		return s.pump.err()
	}
}

// giveUp ends the snapshot after cause: QEMU's copy is brought to its end and
// the guest runs. It works in a context of its own since the caller's may be
// what ended.
func (s *session) giveUp(ctx context.Context, cause error) error {
	s.pump.discard()
	s.pump.release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	errs := []error{cause}
	if s.isAborted() {
		errs = []error{ErrAborted}
	}
	if s.isStarted() {
		errs = append(errs, s.d.cancel(ctx, s))
	}
	errs = append(errs, s.m.resume(ctx))
	err := errors.Join(errs...)
	s.end(err)
	return err
}

// end closes everything; err nil means a complete snapshot.
func (s *session) end(err error) {
	s.pump.closeListener()
	if cerr := s.pump.closeSink(err); cerr != nil && err == nil {
		err = fmt.Errorf("close snapshot sink: %w", cerr)
	}
	select {
	case <-s.pump.done:
	case <-time.After(cleanupTimeout): // the sink's Write did not end
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), cleanupTimeout)
	defer cancel()
	info, qerr := s.m.queryMigrate(ctx)
	if qerr == nil && err == nil && !s.opts.HandOver {
		s.ev.awaitResume(ctx)
	}
	if nerr := s.m.migrationReset(ctx); nerr != nil && err == nil {
		err = nerr
	}
	stopped, resumed := s.ev.pause()
	s.ev.close()

	s.mu.Lock()
	s.err = err
	s.result = Result{
		Engine: s.d.engine(), Bytes: s.pump.bytes.Load(), Stopped: stopped, Resumed: resumed,
		AtCut: s.times.AtCut, Total: time.Since(s.begin), Passes: info.RAM.Passes,
		DirtyPagesPerSecond: info.RAM.DirtyPagesRate, PageSize: info.RAM.PageSize,
		ZeroPages: info.RAM.Duplicate, DataPages: info.RAM.Normal,
	}
	s.result.BytesAfterCut = s.result.Bytes - s.cutBytes
	if !resumed.IsZero() {
		s.result.Pause = resumed.Sub(stopped)
	}
	s.phase = phaseOver
	s.mu.Unlock()
	s.m.snap.Store(nil)
	close(s.over)
}

// Wait implements Snapshot.
func (s *session) Wait(ctx context.Context) (Result, error) {
	s.mu.Lock()
	ok := s.phase == phaseCopying || s.phase == phaseOver
	s.mu.Unlock()
	if !ok {
		return Result{}, s.fault("wait", ErrSequence)
	}
	select {
	case <-s.over:
	case <-ctx.Done():
		return Result{}, s.fault("wait", ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result, s.fault("wait", s.err)
}

// Abort implements Snapshot.
func (s *session) Abort(ctx context.Context) error {
	s.mu.Lock()
	ph := s.phase
	s.aborted = ph != phaseOver
	if ph == phaseNew || ph == phasePrepared {
		s.phase = phaseCutting // giveUp belongs to us
	}
	s.mu.Unlock()
	s.pump.discard()
	s.pump.release()
	switch ph {
	case phaseNew, phasePrepared:
		err := s.giveUp(ctx, ErrAborted)
		if errors.Is(err, ErrAborted) && !hasOther(err) {
			return nil
		}
		return s.fault("abort", err)
	case phasePreparing, phaseCutting, phaseCopying:
		if s.isStarted() {
			if err := s.d.cancel(ctx, s); err != nil {
				return s.fault("abort", err)
			}
		}
	case phaseOver:
	}
	select {
	case <-s.over:
		return nil
	case <-ctx.Done():
		return s.fault("abort", ctx.Err())
	}
}

// hasOther tells whether a joined error holds more than ErrAborted.
func hasOther(err error) bool {
	var j interface{ Unwrap() []error }
	if !errors.As(err, &j) {
		return false
	}
	for _, e := range j.Unwrap() {
		if !errors.Is(e, ErrAborted) {
			return true
		}
	}
	return false
}

func (s *session) isStarted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

func (s *session) isAborted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}

// migrate starts QEMU's copy into the pump.
func (s *session) migrate(ctx context.Context) error {
	err := s.m.execute(ctx, "migrate", map[string]any{"uri": "unix:" + s.pump.path}, nil)
	// Even a command whose reply we did not get may have been carried out.
	s.mu.Lock()
	s.started = true
	s.mu.Unlock()
	return err
}

func (s *session) fault(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s snapshot of guest %q: %s: %w", s.d.engine(), s.m.spec.Name, op, err)
}
