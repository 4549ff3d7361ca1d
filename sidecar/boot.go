package sidecar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/vm"
)

// programID names mpirun inside guest 0. Each incarnation that begins anew
// has fresh guests, so one name is enough for a process that starts once.
const programID = "mpirun"

// longest keeps the maximum of durations measured side by side.
type longest struct {
	mu sync.Mutex
	d  time.Duration
}

func (l *longest) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.d = max(l.d, d)
}

// bootGuests boots this node's guests once; repeated calls wait for the same work.
func (s *Sidecar) bootGuests(ctx context.Context, req *vftv1.BootGuestsRequest) (*vftv1.BootGuestsResponse, error) {
	c := req.GetContext()
	inc, err := s.enter(c.GetJob(), c.GetIncarnation(), func() *incarnation {
		return s.newIncarnation(c, req.GetSpec(), req.GetMembers(), phaseBooting)
	})
	if err != nil {
		return nil, err
	}
	inc.mu.Lock()
	if inc.boot == nil {
		if inc.phase != phaseBooting {
			inc.mu.Unlock()
			return &vftv1.BootGuestsResponse{}, nil // adopted: they booted in an earlier process
		}
		inc.boot = begin(inc.work, func(ctx context.Context) (*vftv1.BootGuestsResponse, error) {
			return inc.bootAll(ctx, req.GetPeers())
		})
	}
	boot := inc.boot
	inc.mu.Unlock()
	return boot.wait(ctx)
}

func (inc *incarnation) bootAll(ctx context.Context, peers []string) (*vftv1.BootGuestsResponse, error) {
	if err := inc.open(); err != nil {
		return nil, err
	}
	inc.tendGateway()
	if err := inc.save(); err != nil {
		return nil, err
	}
	if err := inc.s.fetchBlob(ctx, inc.spec.GetStage(), peers); err != nil {
		return nil, err
	}
	if t := time.Duration(inc.spec.GetBootTimeout()); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("not ready within %s (raise --vft-boot-timeout on a slow node)", t))
		defer cancel()
	}
	var boot, stage longest
	err := inc.each(ctx, func(ctx context.Context, index uint32) error {
		begun := time.Now()
		spec, err := inc.machineSpec(index)
		if err != nil {
			return err
		}
		m, err := vm.Start(ctx, spec, inc.s.machineOptions())
		if err != nil {
			return err
		}
		g, err := inc.connect(ctx, index, m, vftv1.GuestState_GUEST_STATE_BOOTING)
		if err != nil {
			return err
		}
		if err := inc.ready(ctx, g); err != nil {
			return err
		}
		boot.add(time.Since(begun))
		begun = time.Now()
		if err := inc.stage(ctx, g); err != nil {
			return err
		}
		stage.add(time.Since(begun))
		g.set(vftv1.GuestState_GUEST_STATE_READY, "")
		inc.log.Info("guest ready", "guest", index, "pid", m.PID())
		return nil
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err) // wherever the time ran out, what to do about it
		}
		return nil, err
	}
	inc.mu.Lock()
	inc.phase = phaseRunning
	inc.mu.Unlock()
	if err := inc.save(); err != nil {
		return nil, err
	}
	return &vftv1.BootGuestsResponse{Boot: int64(boot.d), Stage: int64(stage.d)}, nil
}

// ready waits until the agent answers or the guest is lost.
func (inc *incarnation) ready(ctx context.Context, g *guestVM) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	inc.work.run(func(context.Context) {
		select {
		case <-g.machine.Done():
			cancel(fmt.Errorf("QEMU ended while booting: %w", g.machine.ExitError()))
		case <-stop:
		}
	})
	if _, err := g.agent.WaitReady(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			return fmt.Errorf("the guest did not boot: %w", cause)
		}
		return fmt.Errorf("the guest did not boot: %w", err)
	}
	return nil
}

// stage unpacks the job's archive inside the guest.
func (inc *incarnation) stage(ctx context.Context, g *guestVM) (err error) {
	if inc.spec.GetStage().GetDigest() == "" {
		return nil
	}
	r, err := inc.s.blobs.Open(ctx, inc.spec.GetStage().GetDigest())
	if err != nil {
		return fmt.Errorf("reading the staged files: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := g.agent.StageTar(ctx, r); err != nil {
		return fmt.Errorf("staging into the guest: %w", err)
	}
	return nil
}

// startProgram starts mpirun in guest 0, once.
func (s *Sidecar) startProgram(ctx context.Context, req *vftv1.StartProgramRequest) error {
	inc, err := s.admit(req.GetContext())
	if err != nil {
		return err
	}
	g, err := inc.guest(0)
	if err != nil {
		return err
	}
	spec := req.GetSpec()
	var groups []*agentv1.Group
	for _, gid := range spec.GetGroups() {
		groups = append(groups, &agentv1.Group{Gid: gid, Name: fmt.Sprintf("g%d", gid)})
	}
	if _, err := g.agent.StartProcess(ctx, connect.NewRequest(&agentv1.StartProcessRequest{
		Id: programID, Argv: spec.GetArgv(), Env: spec.GetEnv(), Dir: spec.GetDir(),
		Uid: spec.GetUid(), Gid: spec.GetGid(), UserName: spec.GetUser(), Groups: groups, Umask: spec.GetUmask(),
	})); err != nil {
		return fmt.Errorf("starting mpirun in guest 0: %w", err)
	}
	for _, g := range inc.all() {
		g.set(vftv1.GuestState_GUEST_STATE_RUNNING, "")
	}
	return nil
}
