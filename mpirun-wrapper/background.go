package wrapper

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// watch keeps the view of the job fresh and tells its events.
func (r *run) watch(ctx context.Context) {
	err := r.client.WatchJob(ctx, r.id, 0, func(m *vftv1.WatchJobResponse) error {
		job := m.GetJob()
		s := &snapshot{job: job, incarnation: job.GetIncarnation(), addresses: m.GetNodeAddresses()}
		for _, e := range job.GetEvents() {
			r.report.event(e, s.incarnation)
		}
		r.view.set(s)
		r.trim(s)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.view.fail(err)
	}
}

// renew keeps the client's lease.
func (r *run) renew(ctx context.Context) {
	ticker := time.NewTicker(r.deps.Timing.Renew)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		// Without an answer the watch gives up in time, and the lease does in the cluster.
		if _, err := r.client.RenewClient(ctx, r.id); err != nil {
			r.deps.Log.Debug("the client's lease was not renewed", "err", err)
		}
		if r.stdout.kept()+r.stderr.kept()+r.stdin.size() > r.deps.Timing.SpoolLimit {
			r.mark(ctx)
		}
	}
}

// marks remembers how far the streams had come when certain epochs had not
// begun: a restart from those epochs or later ones needs nothing from before.
type marks struct {
	mu   sync.Mutex
	want int64 // input the program asked for last
	list []mark
}

type mark struct {
	incarnation           uint64
	epoch                 uint64 // epochs from this one on began later
	stdout, stderr, stdin int64
}

func (r *run) noteWant(off int64) {
	r.marks.mu.Lock()
	defer r.marks.mu.Unlock()
	r.marks.want = off
}

// mark notes where the streams are. They are looked at before the coordinator
// is asked for the number of the next epoch, so that its cut comes later.
func (r *run) mark(ctx context.Context) {
	m := mark{incarnation: r.view.now().incarnation, stdout: r.stdout.position(), stderr: r.stderr.position()}
	r.marks.mu.Lock()
	m.stdin = r.marks.want
	r.marks.mu.Unlock()
	job, err := r.client.GetJob(ctx, r.id)
	if err != nil || job.GetIncarnation() != m.incarnation || job.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING {
		return
	}
	m.epoch = job.GetNextEpoch()
	r.marks.mu.Lock()
	defer r.marks.mu.Unlock()
	if n := len(r.marks.list); n == 0 || r.marks.list[n-1].epoch < m.epoch || r.marks.list[n-1].incarnation != m.incarnation {
		r.marks.list = append(r.marks.list, m)
	}
}

// trim lets go of what no restart can need any more: all committed epochs
// that there are began after a mark of this incarnation.
func (r *run) trim(s *snapshot) {
	oldest := uint64(0)
	for _, e := range s.job.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			oldest = e.GetNumber()
			break
		}
	}
	r.marks.mu.Lock()
	var passed *mark
	left := r.marks.list[:0]
	for _, m := range r.marks.list {
		switch {
		case m.incarnation != s.incarnation: // the streams went back since
		case oldest >= m.epoch && oldest > 0:
			passed = &m
		default:
			left = append(left, m)
		}
	}
	r.marks.list = left
	r.marks.mu.Unlock()
	if passed != nil {
		r.stdout.trim(passed.stdout)
		r.stderr.trim(passed.stderr)
		r.stdin.trim(passed.stdin)
	}
}

// collectEpochs brings files back whenever an epoch is committed.
func (r *run) collectEpochs(ctx context.Context) {
	var done uint64
	for {
		s, err := r.view.wait(ctx, func(s *snapshot) bool {
			return s.attachable() && s.lastEpoch().GetNumber() > done
		})
		if err != nil {
			return
		}
		done = s.lastEpoch().GetNumber()
		during, cancel := r.during(ctx, s)
		err = r.files.collect(during, s.placement())
		cancel()
		r.tellProblem(err)
	}
}

// tellProblem says once that files cannot be written here.
func (r *run) tellProblem(err error) {
	var local *fileError
	if !errors.As(err, &local) {
		if err != nil {
			r.deps.Log.Debug("files were not brought back", "err", err)
		}
		return
	}
	r.filesMu.Lock()
	told := r.fileProblem
	r.fileProblem = true
	r.filesMu.Unlock()
	if !told {
		r.report.notice("files-lost", "some files cannot be written here: "+local.Error(), nil)
	}
}

// collectFinally brings files back after the program ended in s. Guests may
// change their nodes meanwhile, so each attempt asks where they are now. A node
// that does not answer may turn out lost, which gives a newer incarnation;
// until then it is asked again.
func (r *run) collectFinally(ctx context.Context, s *snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, r.deps.Timing.Collect)
	defer cancel()
	pause := 50 * time.Millisecond
	err := errors.New("the guests are gone")
	for now := r.view.now(); !now.ended() && now.incarnation == s.incarnation && ctx.Err() == nil; now = r.view.now() {
		attempt, end := r.during(ctx, now)
		err = r.files.collect(attempt, now.placement())
		end()
		var local *fileError
		if err == nil || errors.As(err, &local) {
			r.filesMu.Lock()
			defer r.filesMu.Unlock()
			if err == nil && r.fileProblem {
				err = &fileError{errors.New("see above")}
			}
			return err
		}
		r.view.waitChange(ctx, pause)
		pause = min(2*pause, r.deps.Timing.Retry)
	}
	return err
}

// showProgress keeps the last line of a terminal up to date.
func (r *run) showProgress(ctx context.Context) {
	if !r.screen.errTTY || r.cmd.Quiet {
		return
	}
	began := time.Now()
	ticker := time.NewTicker(r.deps.Timing.Progress)
	defer ticker.Stop()
	for {
		r.screen.progress(r.progressLine(r.view.now(), time.Since(began), time.Now()))
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

var phaseNames = map[vftv1.JobPhase]string{
	vftv1.JobPhase_JOB_PHASE_UNSPECIFIED: "submitted",
	vftv1.JobPhase_JOB_PHASE_PENDING:     "waiting for nodes",
	vftv1.JobPhase_JOB_PHASE_STARTING:    "booting",
	vftv1.JobPhase_JOB_PHASE_RUNNING:     "running",
	vftv1.JobPhase_JOB_PHASE_RESTARTING:  "restarting",
	vftv1.JobPhase_JOB_PHASE_STOPPING:    "stopping",
	vftv1.JobPhase_JOB_PHASE_ENDED:       "ended",
	vftv1.JobPhase_JOB_PHASE_SUSPENDED:   "suspended",
}

func (r *run) progressLine(s *snapshot, elapsed time.Duration, now time.Time) string {
	nodes := map[string]bool{}
	for _, g := range s.job.GetGuests() {
		nodes[g.GetNode()] = true
	}
	parts := []string{
		"vft: " + phaseNames[s.job.GetPhase()],
		plural(r.plan.Ranks, "rank"),
		plural(len(r.plan.Guests), "guest"),
	}
	if len(nodes) > 0 {
		parts[2] += " on " + plural(len(nodes), "node")
	}
	parts = append(parts, clock(elapsed))
	if e := s.lastEpoch(); e != nil {
		age := max(0, now.Sub(time.Unix(0, e.GetEndedAt())))
		parts = append(parts, fmt.Sprintf("checkpoint %d, %s ago", e.GetNumber(), clock(age)))
	}
	if n := s.job.GetRestarts(); n > 0 {
		parts = append(parts, plural(int(n), "restart"))
	}
	return strings.Join(parts, ", ")
}
