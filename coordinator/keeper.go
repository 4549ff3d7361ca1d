package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// keeper makes a job's committed epochs safe at every level asked for, restores
// what was lost with a node, and gives up epochs that need not be kept. It runs
// beside the job's controller, and beyond the job's end as long as epochs are
// left, so that nothing it waits for holds the job up. Like the controller it
// is level-triggered: what it remembers besides is only to be gentle.
type keeper struct {
	t   *term
	c   *Coordinator
	id  string
	log *slog.Logger

	calls    sync.WaitGroup
	outcomes chan outcome
	active   map[taskKey]context.CancelFunc
	levels   map[string]*attempts // of late, by level
	tries    map[epochLevel]int   // failures
	avoid    map[string]int       // failures of nodes that were to keep a copy
	verified bool
}

// attempts are those to reach a level.
type attempts struct {
	failures int // in a row
	after    time.Time
}

// outcome is the end of a task.
type outcome struct {
	task  task
	bytes int64
	err   error
}

func newKeeper(t *term, id string) *keeper {
	return &keeper{
		t: t, c: t.c, id: id, log: t.c.log.With("job", id), outcomes: make(chan outcome),
		active: map[taskKey]context.CancelFunc{}, levels: map[string]*attempts{}, tries: map[epochLevel]int{}, avoid: map[string]int{},
	}
}

// maxLevelBackoff bounds the wait before a level that failed is tried again.
const maxLevelBackoff = 5 * time.Minute

// retentionInterval is how often epochs may lose their hour.
const retentionInterval = time.Minute

// keeping says whether there is something for a keeper to do.
func keeping(job *vftv1.Job) bool {
	if job == nil || job.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
		return job != nil
	}
	for _, e := range job.GetEpochs() {
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_ABORTED || e.GetLeftovers() {
			return true
		}
	}
	return false
}

func (k *keeper) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer k.calls.Wait()
	defer cancel()
	failures := 0
	for ctx.Err() == nil {
		changed, all, freed := k.c.store.changes.next(k.id), k.c.store.changes.next(""), k.t.slots.freed.next("")
		job := k.c.store.job(k.id)
		if !keeping(job) {
			return
		}
		n, err := k.step(ctx, job)
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return
		default:
			failures++
			n = next{after: backoff(50*time.Millisecond, failures, 5*time.Second)}
			k.verified = k.verified && !errors.Is(err, errNotLeader)
			k.log.Debug("keeping epochs, will be tried again", "err", err, "after", n.after)
		}
		if n.after <= 0 {
			continue
		}
		if !n.any {
			all, freed = nil, nil
		}
		timer := time.NewTimer(n.after)
		select {
		case <-ctx.Done():
		case o := <-k.outcomes:
			k.conclude(ctx, o)
		case <-changed:
		case <-all:
		case <-freed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// step does what there is to do now.
func (k *keeper) step(ctx context.Context, job *vftv1.Job) (next, error) {
	if !k.verified {
		if err := k.c.verify(ctx); err != nil {
			return next{}, err
		}
		k.verified = true
	}
	busy := map[uint64]bool{}
	for key, cancel := range k.active {
		e := fsm.FindEpoch(job, key.epoch)
		if e == nil || key.level != "" && e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
			cancel()
		}
		busy[key.epoch] = true
	}
	now := k.c.cfg.Now()
	if gone := retired(job, now, busy); len(gone) > 0 {
		return next{}, k.retire(ctx, gone)
	}
	wait := next{after: idle}
	if job.GetSpec().GetKeepHourly() > 0 {
		wait.after = retentionInterval
	}
	p := planning{job: job, nodes: k.c.store.nodes(), alive: k.c.alive, tries: k.tries, avoid: k.avoid}
	for _, t := range p.tasks() {
		if k.active[t.taskKey] != nil || t.remove && busy[t.epoch] {
			continue // what is being stored there would be left
		}
		wait.any = true
		if a := k.levels[t.level]; a != nil && a.after.After(now) {
			wait.after = min(wait.after, a.after.Sub(now))
			continue
		}
		k.start(ctx, job, t)
	}
	return wait, nil
}

// start has a node do its share, unless it is busy with the same for another
// part or job.
func (k *keeper) start(ctx context.Context, job *vftv1.Job, t task) {
	slot := t.node + " " + t.level
	if !k.t.slots.take(slot) {
		return
	}
	call, cancel := context.WithCancel(ctx)
	k.active[t.taskKey] = cancel
	e := fsm.FindEpoch(job, t.epoch)
	k.calls.Go(func() {
		defer cancel()
		o := outcome{task: t}
		if t.remove {
			o.err = k.remove(call, t.node, e)
		} else {
			o.bytes, o.err = k.c.securePart(call, t.node, securing{
				job: k.id, epoch: e, part: e.GetParts()[t.guest], level: t.level, targets: t.targets, bandwidth: job.GetSpec().GetBandwidth(),
			})
		}
		k.t.slots.put(slot)
		select {
		case k.outcomes <- o:
		case <-ctx.Done():
		}
	})
}

// remove has a node remove what is left of an epoch at all levels outside.
func (k *keeper) remove(ctx context.Context, node string, e *vftv1.Epoch) error {
	for _, l := range e.GetLevels() {
		if !l.GetOutside() {
			continue
		}
		_, err := each(ctx, k.c, []target{{node: node, address: k.c.store.node(node).GetAddress()}}, "removal from "+l.GetLevel(), k.c.cfg.PartsTimeout, true,
			func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
				_, err := s.RemoveEpochs(ctx, connect.NewRequest(&vftv1.RemoveEpochsRequest{Job: k.id, Epochs: []uint64{e.GetNumber()}, Level: l.GetLevel()}))
				return struct{}{}, err
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// conclude records what became of a task.
func (k *keeper) conclude(ctx context.Context, o outcome) {
	t := o.task
	k.active[t.taskKey]()
	delete(k.active, t.taskKey)
	at := k.levels[t.level]
	if at == nil {
		at = &attempts{}
		k.levels[t.level] = at
	}
	failure := ""
	switch {
	case o.err == nil:
		*at = attempts{}
		delete(k.avoid, t.node)
		delete(k.tries, epochLevel{t.epoch, t.level})
	case errors.Is(o.err, errNodeLost) || errors.Is(o.err, context.Canceled):
		return
	default:
		at.failures++
		at.after = k.c.cfg.Now().Add(backoff(k.c.cfg.LevelBackoff, at.failures, maxLevelBackoff))
		k.avoid[t.node]++
		k.tries[epochLevel{t.epoch, t.level}]++
		failure = o.err.Error()
		k.log.Warn("an epoch did not reach or leave a level, will be tried again", "epoch", t.epoch, "level", t.level, "err", o.err, "after", at.after)
	}
	var err error
	switch {
	case !t.remove:
		err = k.record(ctx, o, failure)
	case o.err == nil:
		_, err = k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_ClearEpoch{ClearEpoch: &vftv1.ClearEpoch{Job: k.id, Epoch: t.epoch}}})
	}
	if err != nil && !errors.Is(err, fsm.ErrEpoch) {
		k.log.Info("not recorded where a part is", "epoch", t.epoch, "guest", t.guest, "level", t.level, "err", err)
	}
}

// record says in the log where a part is by now, or why it is not.
func (k *keeper) record(ctx context.Context, o outcome, failure string) error {
	t := o.task
	return k.c.change(k.id, t.epoch, func(e *vftv1.Epoch) error {
		u := &vftv1.UpdateLevel{Job: k.id, Epoch: t.epoch, Revision: e.GetRevision(), Level: t.level, Failure: failure}
		if failure == "" {
			p := e.GetParts()[t.guest]
			part := &vftv1.PartUpdate{Guest: t.guest, Manifest: p.GetManifest(), Nodes: t.targets, Bytes: o.bytes}
			if fsm.WholeCopies(fsm.FindLevel(e, t.level)) {
				part.Nodes = with(p.GetNodes(), t.node)
			}
			u.Parts = []*vftv1.PartUpdate{part}
		}
		_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: u}})
		return err
	})
}

// slots lets a node do one thing at a time for each level.
type slots struct {
	mu    sync.Mutex
	busy  map[string]bool
	freed *changes
}

func newSlots() *slots { return &slots{busy: map[string]bool{}, freed: newChanges()} }

func (s *slots) take(slot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[slot] {
		return false
	}
	s.busy[slot] = true
	return true
}

func (s *slots) put(slot string) {
	s.mu.Lock()
	delete(s.busy, slot)
	s.mu.Unlock()
	s.freed.notify("")
}
