package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// controller moves one job towards what is wanted of it. It is level-triggered:
// each step looks at the replicated job and at the heartbeats, and does the
// next thing; whatever it remembers besides is only to be gentle, and may be
// lost with the leader.
type controller struct {
	t   *term
	c   *Coordinator
	id  string
	log *slog.Logger
	bg  sync.WaitGroup // calls whose outcome nobody waits for

	avoid   map[string]int // failures of a node with this job
	waiting waiting        // for nodes

	epochFailures   map[uint64]int // restores that failed, or whose guests died, by epoch
	suspected       uint64         // last incarnation whose death was held against its epoch
	restartFailures int            // in a row
	restartAfter    time.Time
	token           bool // holds one of term.restarts
	failed          *failedAttempt

	checkpointFailures int // in a row
	checkpointAfter    time.Time

	moveFailures  int // in a row, of migrations that nobody asked for
	moveAfter     time.Time
	alarmFailures int // in a row, of migrations that the policy chose
	alarmAfter    time.Time
	moveTries     int // calls that end a migration, in a row
	loaded        loadedMove

	saidFilling uint64 // incarnation whose lack of memory a request was told of

	askedToEnd time.Time // when the program was told to end
}

// waiting is a wait for nodes that is said once and has an end.
type waiting struct {
	since time.Time
	said  bool
}

func newController(t *term, id string) *controller {
	return &controller{
		t: t, c: t.c, id: id, log: t.c.log.With("job", id),
		avoid: map[string]int{}, epochFailures: map[uint64]int{},
	}
}

// next says when to look again: at the latest after the delay, and earlier
// when the job changes. Zero: at once.
type next struct {
	after time.Duration
	any   bool // or when anything changes, such as a node that appears
}

const idle = time.Hour

func (k *controller) run(ctx context.Context) {
	defer k.bg.Wait()
	defer k.releaseToken()
	verified := false
	failures := 0
	for ctx.Err() == nil {
		changed, woken, all := k.c.store.changes.next(k.id), k.t.wake.next(k.id), k.c.store.changes.next("")
		job := k.c.store.job(k.id)
		if job == nil || job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			return
		}
		var n next
		var err error
		if !verified {
			err = k.c.verify(ctx)
			verified = err == nil
		}
		if err == nil {
			n, err = k.step(ctx, job)
		}
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return
		case errors.Is(err, fsm.ErrStale) || errors.Is(err, fsm.ErrOperation) || errors.Is(err, fsm.ErrIncarnation) || errors.Is(err, fsm.ErrPhase) || errors.Is(err, fsm.ErrFilling):
			k.log.Debug("overtaken by a change", "err", err)
			n = next{after: 20 * time.Millisecond}
		default:
			failures++
			n = next{after: backoff(50*time.Millisecond, failures, 5*time.Second)}
			k.log.Warn("step failed, will be tried again", "err", err, "after", n.after)
			verified = false
		}
		if n.after <= 0 {
			continue
		}
		if !n.any {
			all = nil
		}
		timer := time.NewTimer(n.after)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-woken:
		case <-all:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// step does the next thing for the job.
func (k *controller) step(ctx context.Context, job *vftv1.Job) (next, error) {
	op := job.GetOperation()
	if k.token && op.GetKind() != vftv1.OperationKind_OPERATION_KIND_RESTART {
		k.releaseToken()
	}
	switch {
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_STOP:
		return k.stop(ctx, job)
	case job.GetStopRequested():
		return k.beginStop(ctx, job)
	case job.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED:
		return k.suspended(ctx, job)
	case job.GetResumption().GetPending():
		return k.beginRestart(ctx, job, loss{reason: "resumed by a user", requested: true})
	case job.GetPhase() == vftv1.JobPhase_JOB_PHASE_PENDING:
		return k.beginBoot(ctx, job)
	}
	if l := k.t.lossOf(job); l != nil {
		return k.beginRestart(ctx, job, *l)
	}
	if k.failed != nil && k.failed.incarnation == job.GetIncarnation() {
		return k.beginRestart(ctx, job, k.failed.loss)
	}
	switch op.GetKind() {
	case vftv1.OperationKind_OPERATION_KIND_BOOT:
		return k.boot(ctx, job)
	case vftv1.OperationKind_OPERATION_KIND_RESTART:
		return k.restart(ctx, job)
	case vftv1.OperationKind_OPERATION_KIND_CHECKPOINT:
		return k.resumeCheckpoint(ctx, job)
	case vftv1.OperationKind_OPERATION_KIND_MIGRATE:
		return k.resumeMove(ctx, job)
	}
	if job.GetRestartRequested() {
		return k.beginRestart(ctx, job, loss{reason: "a user asked for it", requested: true})
	}
	if job.GetFilling() {
		return k.awaitMemory(ctx, job)
	}
	if job.GetSuspension() != nil {
		return k.suspend(ctx, job)
	}
	if began, n, err := k.move(ctx, job); began || err != nil {
		return n, err
	}
	answered, alarm, err := k.answerAlarms(ctx, job)
	if answered || err != nil {
		return alarm, err
	}
	n, err := k.keepSafe(ctx, job)
	if alarm.after > 0 {
		n.after = min(n.after, alarm.after)
	}
	if wait := k.moveAfter.Sub(k.c.cfg.Now()); wait > 0 { // somebody has to move then
		n.after = min(n.after, wait)
	}
	return n, err
}

// loss is why a job must be restarted.
type loss struct {
	reason    string
	guests    []uint32  // that died by themselves
	seen      time.Time // of the last sign of life, zero: now
	dataLost  bool      // a guest died because its epoch cannot be read
	requested bool      // by a user: not a failure
	avoid     []string  // nodes to leave if others can be had
}

func (l *loss) lostGuests() []uint32 {
	if l == nil {
		return nil
	}
	return l.guests
}

// failedAttempt is an incarnation that did not come up.
type failedAttempt struct {
	incarnation uint64
	loss        loss
}

// lossOf looks for lost nodes, dead guests of the job's present incarnation,
// and nodes that frames do not pass between.
func (t *term) lossOf(job *vftv1.Job) *loss {
	var found *loss
	op := job.GetOperation()
	comingUp := op.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_BEGUN &&
		(op.GetKind() == vftv1.OperationKind_OPERATION_KIND_BOOT || op.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART)
	for _, g := range job.GetGuests() {
		n := t.c.store.node(g.GetNode())
		if n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE {
			return &loss{reason: fmt.Sprintf("node %s is lost", g.GetNode()), seen: t.leases.seen(g.GetNode())}
		}
		if comingUp {
			continue // the calls that bring guests up tell
		}
		if why, dataLost := t.leases.lostGuest(job, g); why != "" {
			if found == nil || dataLost && !found.dataLost {
				found = &loss{
					reason: fmt.Sprintf("guest %d on %s %s", g.GetIndex(), g.GetNode(), why), seen: t.leases.seen(g.GetNode()),
					guests: found.lostGuests(), dataLost: dataLost,
				}
			}
			found.guests = append(found.guests, g.GetIndex())
		}
	}
	if found == nil && !comingUp {
		stay, leave, since := t.leases.cutOff(nodesOf(job), t.c.cfg.Now(), 2*t.c.cfg.Lease)
		if leave != "" {
			return &loss{reason: fmt.Sprintf("nodes %s and %s cannot reach each other", stay, leave), seen: since, avoid: []string{leave}}
		}
	}
	return found
}

// nodesOf returns the nodes that have guests of the job.
func nodesOf(job *vftv1.Job) []string {
	var out []string
	for _, g := range job.GetGuests() {
		if !slices.Contains(out, g.GetNode()) {
			out = append(out, g.GetNode())
		}
	}
	slices.Sort(out)
	return out
}

// errInterrupted ends the calls of an operation that has been overtaken.
var errInterrupted = errors.New("interrupted")

// guard returns a context for the calls of the operation under way, which ends
// when the job is to be stopped or has lost something. release waits for the
// watcher to end.
func (k *controller) guard(ctx context.Context, job *vftv1.Job) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	id, incarnation := job.GetOperation().GetId(), job.GetIncarnation()
	go func() {
		defer close(done)
		for {
			changed, woken := k.c.store.changes.next(k.id), k.t.wake.next(k.id)
			now := k.c.store.job(k.id)
			switch {
			case now == nil || now.GetStopRequested():
				cancel(fmt.Errorf("%w: the job is being stopped", errInterrupted))
				return
			case now.GetIncarnation() != incarnation || now.GetOperation().GetId() != id:
				cancel(fmt.Errorf("%w: another operation has begun", errInterrupted))
				return
			}
			if l := k.t.lossOf(now); l != nil {
				cancel(fmt.Errorf("%w: %s", errInterrupted, l.reason))
				return
			}
			select {
			case <-changed:
			case <-woken:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// background starts calls that nothing depends on; the controller waits for
// them when it ends.
func (k *controller) background(f func()) { k.bg.Go(f) }

// say appends a line to the job's history, once per number.
func (k *controller) say(ctx context.Context, kind, text string, figures map[string]int64, labels map[string]string) {
	for range 5 {
		_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AppendEvent{AppendEvent: &vftv1.AppendEvent{
			Job:   k.id,
			Event: &vftv1.Event{Number: fsm.LastEvent(k.c.store.job(k.id)) + 1, Kind: kind, Text: text, Figures: figures, Labels: labels},
		}}})
		if !errors.Is(err, fsm.ErrStale) {
			if err != nil {
				k.log.Debug("event not recorded", "kind", kind, "err", err)
			}
			return
		}
	}
}

// fail ends the job because vft cannot go on with it.
func (k *controller) fail(ctx context.Context, message string) (next, error) {
	k.log.Error("job failed", "reason", message)
	_, err := k.c.apply(ctx, requestStop(k.id, message, vftv1.ExitCause_EXIT_CAUSE_FAILED, 1, true))
	return next{}, err
}

func (k *controller) begin(ctx context.Context, job *vftv1.Job, b *vftv1.BeginOperation) (*vftv1.Job, error) {
	b.Job, b.Operation = k.id, job.GetNextOperation()
	res, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: b}})
	return res.Job, err
}

func (k *controller) advance(ctx context.Context, job *vftv1.Job, phase vftv1.OperationPhase, figures map[string]int64) error {
	_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: &vftv1.AdvanceOperation{
		Job: k.id, Operation: job.GetOperation().GetId(), Incarnation: job.GetIncarnation(), Phase: phase, Figures: figures,
	}}})
	return err
}

func (k *controller) finish(ctx context.Context, job *vftv1.Job, figures map[string]int64) error {
	_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
		Job: k.id, Operation: job.GetOperation().GetId(), Incarnation: job.GetIncarnation(), Figures: figures,
	}}})
	return err
}

// backoff doubles from first to limit.
func backoff(first time.Duration, failures int, limit time.Duration) time.Duration {
	d := first
	for i := 1; i < failures && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}
