// Package quiesce is the consistent cut: the state machine that one node goes
// through for each epoch, and the check of the drain proof. docs/CUT.md has
// the protocol and why it is right.
package quiesce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Errors that callers decide on.
var (
	// ErrStale says that a later epoch has been seen; the call had no effect.
	ErrStale = errors.New("quiesce: a later epoch has begun")
	// ErrOrder says that the call does not fit the epoch's state; it had no effect.
	ErrOrder = errors.New("quiesce: out of order")
	// ErrPoisoned says that the epoch can never commit.
	ErrPoisoned = errors.New("quiesce: epoch is poisoned")
	// ErrExpired is the reason of an epoch whose hold lasted too long.
	ErrExpired = errors.New("hold time-out")
	// ErrAborted is the reason of an epoch that was aborted.
	ErrAborted = errors.New("aborted")
	// ErrClosed says that the participant has been closed.
	ErrClosed = errors.New("quiesce: closed")
)

// Network is the held network on this node.
type Network interface {
	// Hold stops forwarding frames of local guests and marks all links.
	Hold(ctx context.Context, epoch uint64) error
	// Drained waits until no frame is on its way to a local guest.
	Drained(ctx context.Context, epoch uint64) ([]*vftv1.PairCount, error)
	// PauseDelivery stops writing to a guest until Release.
	PauseDelivery(guest int)
	// DrainPort returns the frames of a stopped guest that are held.
	DrainPort(ctx context.Context, guest int) ([][]byte, error)
	// Release ends holds up to the epoch; it does not wait for anybody.
	Release(epoch uint64)
}

// Snapshot is the snapshot of one guest for one epoch.
type Snapshot interface {
	// Prepare does what can be done before the network is held.
	Prepare(ctx context.Context) error
	// EarlyStop delivers something, or is closed, when the guest stopped by
	// itself before Cut. It may be nil.
	EarlyStop() <-chan time.Time
	// Cut stops the guest, calls atCut while it is stopped, and returns when
	// nothing that reaches the guest from then on is in the snapshot.
	Cut(ctx context.Context, atCut func(ctx context.Context) error) error
	// Abort gives the snapshot up; the guest runs on. It may be repeated.
	Abort(ctx context.Context) error
}

// CutResult is what is known of a guest when it has been cut.
type CutResult struct {
	Frames  [][]byte      // channel state: sent by the guest before the cut, delivered to nobody
	Stopped time.Time     // when the guest stood still
	Took    time.Duration // from the order to stop until the state was fixed
}

// Outcome is the answer to Release.
type Outcome struct {
	ByOrder bool          // false: this node had released by itself, the epoch cannot commit
	Held    time.Duration // from hold to release
}

// State is where an epoch is on this node.
type State int

// States of an epoch, in the order in which a good one goes through them.
const (
	Idle State = iota
	Preparing
	Holding
	Drained
	Cutting
	Cut
	Released
	Poisoned
)

func (s State) String() string {
	return [...]string{"idle", "preparing", "holding", "drained", "cutting", "cut", "released", "poisoned"}[s]
}

// Config is what a participant needs.
type Config struct {
	Network Network
	// Log is told about poisoned epochs; nil: nobody is.
	Log *slog.Logger
	// AbortTimeout bounds the aborting of snapshots; 0: 10 s.
	AbortTimeout time.Duration
}

// Participant takes part in the cuts of one incarnation of a job, for the
// guests of one node. Its methods may be called at any time, repeatedly and
// at once; work that a call has begun goes on when the caller gives up.
type Participant struct {
	network      Network
	log          *slog.Logger
	abortTimeout time.Duration
	ctx          context.Context // ends in Close
	cancel       context.CancelFunc
	wg           sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	current *epoch // nil: none yet
}

// epoch is guarded by the participant's mu.
type epoch struct {
	number    uint64
	state     State
	why       error // of being poisoned
	ctx       context.Context
	cancel    context.CancelFunc
	snapshots map[int]Snapshot
	timer     *time.Timer
	heldAt    time.Time
	held      time.Duration

	prepare *step[struct{}]
	hold    *step[[]*vftv1.PairCount]
	cut     *step[map[int]CutResult]
	release *step[Outcome]
	undo    *step[struct{}]
	before  *step[struct{}] // undo of the epoch before
}

// NewParticipant returns a participant that works until it is closed.
func NewParticipant(cfg Config) *Participant {
	p := &Participant{network: cfg.Network, log: cfg.Log, abortTimeout: cfg.AbortTimeout}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.abortTimeout <= 0 {
		p.abortTimeout = 10 * time.Second
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close poisons an epoch under way and waits for everything the participant
// started. It may be repeated.
func (p *Participant) Close() {
	p.mu.Lock()
	if p.current != nil && !p.closed {
		p.poison(p.current, ErrClosed)
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// State returns the highest epoch seen, 0 if none, and its state.
func (p *Participant) State() (epoch uint64, state State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return 0, Idle
	}
	return p.current.number, p.current.state
}

// at returns the epoch that a call is about. A new one aborts the one before.
// Called with mu held.
func (p *Participant) at(number uint64) (*epoch, error) {
	old := p.current
	switch {
	case p.closed:
		return nil, ErrClosed
	case old != nil && number < old.number:
		return nil, fmt.Errorf("epoch %d: %w: %d", number, ErrStale, old.number)
	case old != nil && number == old.number:
		return old, nil
	}
	e := &epoch{number: number}
	e.ctx, e.cancel = context.WithCancel(p.ctx)
	if old != nil {
		p.poison(old, fmt.Errorf("%w by epoch %d", ErrAborted, number))
		e.before = old.undo
	}
	p.current = e
	return e, nil
}

// refuse is the error of a call that does not fit.
func (e *epoch) refuse(call string) error {
	if e.state == Poisoned {
		return e.poisoned()
	}
	return fmt.Errorf("%s of epoch %d, which is %s: %w", call, e.number, e.state, ErrOrder)
}

func (e *epoch) poisoned() error {
	return fmt.Errorf("epoch %d: %w: %w", e.number, ErrPoisoned, e.why)
}

// Prepare begins an epoch with the snapshots of all local guests and returns
// when they are ready to be cut. An error poisons the epoch. The snapshots of
// a call that is refused or repeated are not touched.
func (p *Participant) Prepare(ctx context.Context, number uint64, snapshots map[int]Snapshot) error {
	p.mu.Lock()
	e, err := p.at(number)
	if err == nil && e.prepare == nil {
		if e.state == Idle {
			e.state, e.snapshots = Preparing, snapshots
			e.prepare = begin(p, func() (struct{}, error) { return struct{}{}, p.doPrepare(e) })
		} else {
			err = e.refuse("prepare")
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = e.prepare.wait(ctx)
	return err
}

// Hold holds the network and returns this node's counts when it has drained.
// After timeout from now the node releases by itself unless it was told to,
// and the epoch is poisoned. An error poisons the epoch too.
func (p *Participant) Hold(ctx context.Context, number uint64, timeout time.Duration) ([]*vftv1.PairCount, error) {
	p.mu.Lock()
	e, err := p.at(number)
	if err == nil && e.hold == nil {
		switch {
		case timeout <= 0:
			err = fmt.Errorf("hold of epoch %d without a time-out: %w", number, ErrOrder)
		case e.state == Preparing && e.prepare.done():
			e.state, e.heldAt = Holding, time.Now()
			e.timer = time.AfterFunc(timeout, func() { p.expire(e, timeout) })
			e.hold = begin(p, func() ([]*vftv1.PairCount, error) { return p.doHold(e) })
		default:
			err = e.refuse("hold")
		}
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return e.hold.wait(ctx)
}

// Cut cuts all local guests at once, and returns when each is past its cut.
// An error poisons the epoch, releases the network and lets all guests go on.
func (p *Participant) Cut(ctx context.Context, number uint64) (map[int]CutResult, error) {
	p.mu.Lock()
	e, err := p.at(number)
	if err == nil && e.cut == nil {
		if e.state == Drained {
			e.state = Cutting
			e.cut = begin(p, func() (map[int]CutResult, error) { return p.doCut(e) })
		} else {
			err = e.refuse("cut")
		}
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return e.cut.wait(ctx)
}

// Release lets the network flow again after the cut. It does not fail for an
// epoch that is poisoned: the outcome says so.
func (p *Participant) Release(ctx context.Context, number uint64) (Outcome, error) {
	p.mu.Lock()
	e, err := p.at(number)
	if err == nil && e.release == nil {
		switch e.state {
		case Cut:
			e.end(Released)
			outcome := Outcome{ByOrder: true, Held: e.held}
			e.release = begin(p, func() (Outcome, error) {
				p.network.Release(number)
				return outcome, nil
			})
		case Poisoned:
			p.mu.Unlock()
			return Outcome{Held: e.held}, nil
		default:
			err = e.refuse("release")
		}
	}
	p.mu.Unlock()
	if err != nil {
		return Outcome{}, err
	}
	return e.release.wait(ctx)
}

// Abort gives the epoch up: the network is released, all guests go on, and
// the snapshots are aborted, even those of an epoch released by order. It
// returns when that is done. Later calls for the epoch are refused.
func (p *Participant) Abort(ctx context.Context, number uint64) error {
	p.mu.Lock()
	e, err := p.at(number)
	if err == nil {
		p.poison(e, ErrAborted)
		if e.undo == nil { // released
			e.undo = begin(p, func() (struct{}, error) { return struct{}{}, p.abortSnapshots(e) })
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = e.undo.wait(ctx)
	return err
}

// end notes that the network is held no longer. Called with mu held.
func (e *epoch) end(state State) {
	e.state = state
	if e.timer != nil {
		e.timer.Stop()
		e.held = time.Since(e.heldAt)
	}
	e.cancel()
}

// poison ends an epoch that can never commit and undoes what it did. It does
// nothing if the epoch has ended. Called with mu held.
func (p *Participant) poison(e *epoch, why error) {
	if e.state == Released || e.state == Poisoned {
		return
	}
	began := e.state
	e.end(Poisoned)
	e.why = why
	if began != Idle {
		p.log.Warn("epoch poisoned", "epoch", e.number, "state", began, "reason", why)
	}
	e.undo = begin(p, func() (struct{}, error) { return struct{}{}, p.doUndo(e, began) })
}

func (p *Participant) expire(e *epoch, timeout time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.poison(e, fmt.Errorf("%w after %s", ErrExpired, timeout))
	}
}
