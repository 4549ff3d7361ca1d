package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/atomicfile"
	"github.com/mpirun-vft/vft/vm"
)

// jobsDir holds one file per job with guests here.
const jobsDir = "jobs"

// stateVersion of the files in jobsDir.
const stateVersion = 2

// saved is what a process leaves behind for the next one of the node.
type saved struct {
	Version     int               `json:"version"`
	Job         string            `json:"job"`
	Incarnation uint64            `json:"incarnation"`
	Applied     uint64            `json:"applied"`
	Phase       phase             `json:"phase"`
	Spec        json.RawMessage   `json:"spec"`
	Members     []json.RawMessage `json:"members"`
	Arriving    []uint32          `json:"arriving,omitempty"`
	Leaving     []uint32          `json:"leaving,omitempty"`
}

func (s *Sidecar) statePath(job string) string {
	return filepath.Join(s.cfg.Data, jobsDir, job+".json")
}

// save records the incarnation so that another process can adopt its guests.
func (inc *incarnation) save() error {
	inc.mu.Lock()
	st := saved{
		Version: stateVersion, Job: inc.job, Incarnation: inc.number, Applied: inc.applied, Phase: inc.phase,
		Arriving: inc.arriving, Leaving: inc.leaving,
	}
	members := inc.members
	inc.mu.Unlock()
	var err error
	if st.Spec, err = protojson.Marshal(inc.spec); err != nil {
		return fmt.Errorf("encoding the job: %w", err)
	}
	for _, m := range members {
		raw, err := protojson.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding the job: %w", err)
		}
		st.Members = append(st.Members, raw)
	}
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encoding the job: %w", err)
	}
	if err := atomicfile.WriteFile(inc.s.statePath(inc.job), data, 0o600); err != nil {
		return fmt.Errorf("recording the job's guests: %w", err)
	}
	return nil
}

func (s *Sidecar) removeState(job string) error {
	if err := os.Remove(s.statePath(job)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the record of job %s: %w", job, err)
	}
	return nil
}

// saveFence records the lowest incarnation that may still act here, for the
// next process, unless guests of such a one are recorded already.
func (s *Sidecar) saveFence(job string, fence uint64) error {
	old, err := readState(s.statePath(job))
	if err == nil && old.Incarnation >= fence {
		return nil
	}
	return s.writeFence(job, fence)
}

func (s *Sidecar) writeFence(job string, fence uint64) error {
	data, err := json.Marshal(saved{Version: stateVersion, Job: job, Incarnation: fence, Phase: phaseFenced})
	if err != nil {
		return fmt.Errorf("encoding the job's fence: %w", err)
	}
	return atomicfile.WriteFile(s.statePath(job), data, 0o600)
}

func readState(path string) (saved, error) {
	var st saved
	data, err := os.ReadFile(path) //nolint:gosec // our own file
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("reading %s: %w", path, err)
	}
	if st.Version != stateVersion {
		return st, fmt.Errorf("%s is of version %d, this vft reads %d", path, st.Version, stateVersion)
	}
	return st, nil
}

// adopt takes over the guests that an earlier process of this node left.
func (s *Sidecar) adopt(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(s.cfg.Data, jobsDir, "*.json"))
	if err != nil {
		return fmt.Errorf("looking for jobs: %w", err)
	}
	var errs []error
	for _, f := range files {
		st, err := readState(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := s.adoptJob(ctx, st); err != nil {
			errs = append(errs, fmt.Errorf("job %s: %w", st.Job, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Sidecar) adoptJob(ctx context.Context, st saved) error {
	if st.Phase == phaseFenced {
		s.mu.Lock()
		s.jobs[st.Job] = &job{id: st.Job, fence: st.Incarnation}
		s.mu.Unlock()
		return nil
	}
	spec := &vftv1.JobSpec{}
	if err := protojson.Unmarshal(st.Spec, spec); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	var members []*vftv1.Member
	for _, raw := range st.Members {
		m := &vftv1.Member{}
		if err := protojson.Unmarshal(raw, m); err != nil {
			return fmt.Errorf("reading the job: %w", err)
		}
		members = append(members, m)
	}
	c := &vftv1.Context{Job: st.Job, Incarnation: st.Incarnation, Applied: st.Applied}
	inc := s.newIncarnation(c, spec, members, st.Phase)
	inc.arriving = st.Arriving
	inc.killLeftovers(ctx, st.Arriving)
	if st.Phase != phaseRunning {
		// Half-made guests are made anew when the leader asks again.
		inc.killLeftovers(ctx, inc.local())
		_ = os.RemoveAll(inc.runDir())
		s.mu.Lock()
		s.jobs[st.Job] = &job{id: st.Job, fence: st.Incarnation}
		s.mu.Unlock()
		return nil
	}
	if err := inc.open(); err != nil {
		return err
	}
	inc.tendGateway()
	s.mu.Lock()
	s.jobs[st.Job] = &job{id: st.Job, fence: st.Incarnation, current: inc}
	s.mu.Unlock()
	for _, index := range inc.local() {
		m, err := vm.Adopt(ctx, inc.guestDir(index), s.machineOptions())
		if err != nil {
			inc.log.Error("a guest could not be adopted", "guest", index, "err", err)
			g := &guestVM{index: index}
			g.set(vftv1.GuestState_GUEST_STATE_DEAD, fmt.Sprintf("not adopted after a restart of the sidecar: %v", err))
			inc.mu.Lock()
			inc.guests[index] = g
			inc.mu.Unlock()
			continue
		}
		g, err := inc.connect(ctx, index, m, vftv1.GuestState_GUEST_STATE_RUNNING)
		if err != nil {
			return err
		}
		err = nil
		if slices.Contains(st.Leaving, index) {
			err = stillHere(ctx, m)
		}
		if err == nil {
			err = inc.settle(ctx, m) // the earlier process may have died in a cut
		}
		if err != nil {
			inc.lost(g, fmt.Sprintf("not taken over after a restart of the sidecar: %v", err))
			if err := m.Kill(ctx); err != nil {
				inc.log.Error("killing a guest", "guest", index, "err", err)
			}
			continue
		}
		inc.log.Info("guest adopted", "guest", index, "pid", m.PID())
	}
	return nil
}

// errLeft says that a guest may run on another node by now.
var errLeft = errors.New("the sidecar ended while the guest was being moved, and it may have left")

// stillHere tells whether a guest that was about to leave has not been handed
// over: one that has stands still.
func stillHere(ctx context.Context, m *vm.Machine) error {
	st, err := m.Status(ctx)
	if err == nil && st != vm.StateRunning {
		err = errLeft
	}
	return err
}

// settle readies an adopted guest. It stands still until the lease is renewed:
// nobody knows how long it has run without one.
func (inc *incarnation) settle(ctx context.Context, m *vm.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, inc.s.cfg.MonitorTimeout)
	defer cancel()
	if err := m.Settle(ctx); err != nil {
		return err
	}
	return m.Pause(ctx)
}

// killLeftovers ends machines that an earlier process had not finished making.
func (inc *incarnation) killLeftovers(ctx context.Context, guests []uint32) {
	for _, index := range guests {
		m, err := vm.Adopt(ctx, inc.guestDir(index), inc.s.machineOptions())
		if err != nil {
			continue // never started, or gone
		}
		if err := m.Kill(ctx); err != nil {
			inc.log.Error("killing a half-made guest", "guest", index, "err", err)
		}
	}
}
