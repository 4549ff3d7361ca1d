package wrapper

import (
	"context"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// snapshot is the job as last heard of. It is not changed after it is made.
type snapshot struct {
	job         *vftv1.Job
	incarnation uint64
	addresses   map[string]string // of nodes
	err         error             // nothing more will be heard
	at          time.Time
}

func (s *snapshot) ended() bool { return s.job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED }

// attachable tells whether the program runs or is being ended.
func (s *snapshot) attachable() bool {
	switch s.job.GetPhase() {
	case vftv1.JobPhase_JOB_PHASE_RUNNING:
		return s.address(0) != ""
	case vftv1.JobPhase_JOB_PHASE_STOPPING:
		return s.address(0) != "" && s.job.GetStartedAt() != 0
	default:
		return false
	}
}

// address is that of guest i's sidecar, empty when not known.
func (s *snapshot) address(i int) string {
	for _, g := range s.job.GetGuests() {
		if int(g.GetIndex()) == i {
			return s.addresses[g.GetNode()]
		}
	}
	return ""
}

func (s *snapshot) placement() placement {
	p := placement{incarnation: s.incarnation, sidecars: make([]string, len(s.job.GetGuests()))}
	for i := range p.sidecars {
		p.sidecars[i] = s.address(i)
	}
	return p
}

// lastEpoch is the newest committed epoch, nil when there is none.
func (s *snapshot) lastEpoch() *vftv1.Epoch {
	var last *vftv1.Epoch
	for _, e := range s.job.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			last = e
		}
	}
	return last
}

// view is what is known about the job, and wakes those who wait for a change.
type view struct {
	mu     sync.Mutex
	last   *snapshot
	change chan struct{}
}

func newView() *view {
	return &view{last: &snapshot{job: &vftv1.Job{}}, change: make(chan struct{})}
}

func (v *view) now() *snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

func (v *view) set(s *snapshot) {
	s.at = time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = s
	close(v.change)
	v.change = make(chan struct{})
}

func (v *view) fail(err error) {
	s := *v.now()
	s.err = err
	v.set(&s)
}

// wait returns the first view that is as wanted.
func (v *view) wait(ctx context.Context, wanted func(*snapshot) bool) (*snapshot, error) {
	for {
		v.mu.Lock()
		s, change := v.last, v.change
		v.mu.Unlock()
		if wanted(s) {
			return s, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// waitChange waits for a change, at most limit.
func (v *view) waitChange(ctx context.Context, limit time.Duration) {
	v.mu.Lock()
	change := v.change
	v.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-change:
	case <-timer.C:
	case <-ctx.Done():
	}
}
