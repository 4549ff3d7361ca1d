package sidecar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

// incarnation is one life of a job's guests on this node.
type incarnation struct {
	s       *Sidecar
	log     *slog.Logger
	job     string
	number  uint64
	spec    *vftv1.JobSpec
	members []*vftv1.Member // guarded by mu
	work    *scope          // everything that runs on behalf of this incarnation
	net     *overlay.Network
	cut     *quiesce.Participant

	mu      sync.Mutex
	phase   phase
	guests  map[uint32]*guestVM
	boot    *future[*vftv1.BootGuestsResponse]
	restore *future[*vftv1.RestoreGuestsResponse]
	epochs  map[uint64]*epochWork
	applied uint64
	ended   bool
	once    sync.Once // guests killed or left

	move     *move    // latest migration
	arrived  *guestVM // loaded here, its place is still elsewhere
	arriving []uint32 // guests that may come, and that may be about to leave
	leaving  []uint32

	way *gatewayRun // the job's gateway, if it is here
}

// phase is what a process that adopts the guests must know of them.
type phase string

const (
	phaseBooting   phase = "booting"   // not yet ready: a repeated call boots them again
	phaseRestoring phase = "restoring" // paused, channel state not delivered: a repeated call restores them again
	phaseRunning   phase = "running"
	phaseArriving  phase = "arriving" // no guest is here yet, one may come
	phaseFenced    phase = "fenced"   // no guests; lower incarnations are refused
)

// guestVM is one guest on this node.
type guestVM struct {
	index   uint32
	machine *vm.Machine
	agent   *guest.Client

	steering *steering // has the machine obey the lease; nil without one

	mu     sync.Mutex
	state  vftv1.GuestState
	detail string
	left   bool // its end is no loss
	gone   bool // it died because no level has something of what it was restored from
}

func (g *guestVM) set(state vftv1.GuestState, detail string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != vftv1.GuestState_GUEST_STATE_DEAD {
		g.state, g.detail = state, detail
	}
}

// leave notes that the guest is elsewhere, or will be.
func (g *guestVM) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = true
}

func (g *guestVM) hasLeft() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.left
}

// alive is the guest's machine, nil for one that could not be adopted.
func (g *guestVM) alive() *vm.Machine {
	if state, _ := g.get(); state == vftv1.GuestState_GUEST_STATE_DEAD {
		return nil
	}
	return g.machine
}

// follows returns what has the guest obey the lease, nil for one that is dead or
// has no machine.
func (g *guestVM) follows() *steering {
	if state, _ := g.get(); state == vftv1.GuestState_GUEST_STATE_DEAD {
		return nil
	}
	return g.steering
}

// goesOn notes that the guest runs: with its program, unless that has not been
// started yet.
func (g *guestVM) goesOn() {
	switch state, _ := g.get(); state {
	case vftv1.GuestState_GUEST_STATE_BOOTING, vftv1.GuestState_GUEST_STATE_READY:
	default:
		g.set(vftv1.GuestState_GUEST_STATE_RUNNING, "")
	}
}

// kill ends the guest's machine, if it has one.
func (g *guestVM) kill(ctx context.Context) error {
	if g.machine == nil {
		return nil
	}
	return g.machine.Kill(ctx)
}

// hangUp closes the connection to the agent.
func (g *guestVM) hangUp() {
	if g.agent != nil {
		_ = g.agent.Close()
	}
}

func (g *guestVM) get() (vftv1.GuestState, string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state, g.detail
}

// newIncarnation makes the node's side of a job's incarnation, without guests.
// held keeps its network from carrying frames until the first release.
func (s *Sidecar) newIncarnation(c *vftv1.Context, spec *vftv1.JobSpec, members []*vftv1.Member, p phase) *incarnation {
	log := s.log.With("job", c.GetJob(), "incarnation", c.GetIncarnation())
	return &incarnation{
		s: s, log: log, job: c.GetJob(), number: c.GetIncarnation(), spec: spec, members: members,
		work: newScope(s.life.ctx), phase: p, applied: c.GetApplied(),
		guests: map[uint32]*guestVM{}, epochs: map[uint64]*epochWork{},
	}
}

// open joins the job's network and makes the node's side of the cut.
func (inc *incarnation) open() error {
	members := networkMembers(inc.memberList())
	id := overlay.NetworkID{Job: inc.job, Incarnation: inc.number}
	open := inc.s.net.Open
	if inc.phase == phaseRestoring || inc.phase == phaseArriving {
		open = inc.s.net.OpenHeld
	}
	network, err := open(id, members)
	if err != nil {
		return fmt.Errorf("opening the network of job %s: %w", inc.job, err)
	}
	cut := quiesce.NewParticipant(quiesce.Config{Network: network, Log: inc.log})
	inc.mu.Lock() // the lease may be looking
	inc.net, inc.cut = network, cut
	inc.mu.Unlock()
	if inc.s.suspended.Load() {
		network.Suspend("the lease is in doubt")
		if !inc.s.suspended.Load() {
			network.Resume() // renewed meanwhile, perhaps before it could be suspended
		}
	}
	return nil
}

// participant is this node's side of the job's cuts.
func (inc *incarnation) participant() (*quiesce.Participant, error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.cut == nil {
		return nil, fmt.Errorf("job %s: its network is not open yet: %w", inc.job, errUnknown)
	}
	return inc.cut, nil
}

// network is the job's network, nil before it is open.
func (inc *incarnation) network() *overlay.Network {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	return inc.net
}

// local returns the indices of the guests placed on this node.
func (inc *incarnation) local() []uint32 {
	var mine []uint32
	for _, m := range inc.memberList() {
		if m.GetNode() == inc.s.cfg.Node.GetId() {
			mine = append(mine, m.GetGuest())
		}
	}
	return mine
}

// guestDir is the short runtime directory of a guest: QEMU's sockets are in
// it and a socket's path has at most 107 bytes.
func (inc *incarnation) guestDir(index uint32) string {
	return filepath.Join(inc.runDir(), fmt.Sprint(index))
}

func (inc *incarnation) runDir() string {
	sum := sha256.Sum256([]byte(inc.job))
	return filepath.Join(inc.s.cfg.Run, fmt.Sprintf("%s.%d", hex.EncodeToString(sum[:4]), inc.number))
}

// machineSpec describes guest index to QEMU.
func (inc *incarnation) machineSpec(index uint32) (vm.Spec, error) {
	spec, err := inc.s.machineSpec(inc.spec, index)
	spec.Name, spec.Dir, spec.KillWithParent = fmt.Sprintf("vft-%s-%d", inc.job, index), inc.guestDir(index), inc.s.cfg.KillWithParent
	return spec, err
}

// machineSpec describes a guest of a job but for its name, its directory and
// what becomes of it when this process ends.
func (s *Sidecar) machineSpec(job *vftv1.JobSpec, index uint32) (vm.Spec, error) {
	img, err := s.openImage(job.GetImage())
	if err != nil {
		return vm.Spec{}, err
	}
	kernel := guest.KernelConfig{Index: int(index), Size: len(job.GetGuests()), DNS: guest.GatewayAddr().String()}
	if job.GetNetOut() {
		kernel.Gateway = guest.GatewayAddr().String()
	}
	return vm.Spec{
		MemoryMiB: int(job.GetMemoryMib()),
		CPUs:      int(job.GetCpus()),
		Accel:     s.cfg.Capabilities.Accel,
		CPUModel:  s.cfg.Capabilities.CPUModel,
		Kernel:    img.Kernel(),
		Initrd:    img.Initrd(),
		Append:    guest.KernelArgs(kernel),
		Disks:     []vm.Disk{{Path: img.Root(), ReadOnly: true}},
		MAC:       guest.MAC(int(index)).String(),
		MTU:       guest.DefaultMTU,
	}, nil
}

func (s *Sidecar) machineOptions() vm.Options {
	return vm.Options{Binary: s.cfg.QEMU, Log: s.log}
}

// each runs f for every guest of this node side by side and returns the
// first failure.
func (inc *incarnation) each(ctx context.Context, f func(context.Context, uint32) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, index := range inc.local() {
		g.Go(func() error {
			if err := f(gctx, index); err != nil {
				return fmt.Errorf("guest %d: %w", index, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// newGuest is a guest with a machine.
func (inc *incarnation) newGuest(index uint32, m *vm.Machine, state vftv1.GuestState) *guestVM {
	g := &guestVM{index: index, machine: m, state: state}
	g.steering = inc.steer(g, m)
	return g
}

// steer has a guest's machine obey the lease.
func (inc *incarnation) steer(g *guestVM, m stopper) *steering {
	return &steering{
		machine: m, timeout: inc.s.cfg.MonitorTimeout, log: inc.log.With("guest", g.index),
		wanted:  func() bool { return !inc.s.suspended.Load() && inc.runs() },
		running: g.goesOn,
	}
}

// connect joins a started machine to the network and to its agent, and
// watches over it.
func (inc *incarnation) connect(ctx context.Context, index uint32, m *vm.Machine, state vftv1.GuestState) (*guestVM, error) {
	g := inc.newGuest(index, m, state)
	inc.mu.Lock()
	if inc.ended {
		inc.mu.Unlock()
		return nil, errors.Join(context.Canceled, m.Kill(context.WithoutCancel(ctx)))
	}
	inc.guests[index] = g
	inc.mu.Unlock()
	return g, inc.join(ctx, g)
}

// join gives a guest its port and its agent, and watches over it.
func (inc *incarnation) join(ctx context.Context, g *guestVM) error {
	if _, err := inc.net.AttachPort(ctx, int(g.index), g.machine.Spec().NetSocket); err != nil {
		return fmt.Errorf("attaching the network: %w", err)
	}
	inc.mu.Lock()
	g.agent = guest.DialUnix(g.machine.Spec().AgentSocket)
	inc.mu.Unlock()
	inc.work.run(func(ctx context.Context) { inc.watch(ctx, g) })
	inc.tellWhenFilled(g)
	return nil
}

// monitorInterval is how often a QEMU is asked whether it still answers.
const monitorInterval = 2 * time.Second

// watch reports a guest dead when its QEMU ends or no longer answers. A QEMU
// that hangs is killed first: what does not answer must not come back later.
func (inc *incarnation) watch(ctx context.Context, g *guestVM) {
	tick := time.NewTicker(monitorInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.machine.Done():
			g.mu.Lock()
			g.gone = lostForGood(g.machine.FillError())
			g.mu.Unlock()
			inc.lost(g, fmt.Sprintf("QEMU ended: %v", g.machine.ExitError()))
			return
		case <-tick.C:
		}
		qctx, cancel := context.WithTimeout(ctx, inc.s.cfg.MonitorTimeout)
		_, err := g.machine.Status(qctx)
		hung := qctx.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !hung || lacksMemory(g.machine) {
			continue // one that waits for a page may not answer; who brings the pages decides
		}
		inc.log.Error("QEMU does not answer its monitor; killing it", "guest", g.index, "timeout", inc.s.cfg.MonitorTimeout)
		if kerr := g.machine.Kill(ctx); kerr != nil {
			inc.log.Error("killing a hung QEMU", "guest", g.index, "err", kerr)
		}
		inc.lost(g, fmt.Sprintf("QEMU did not answer its monitor for %s", inc.s.cfg.MonitorTimeout))
		return
	}
}

func (inc *incarnation) lost(g *guestVM, why string) {
	if g.hasLeft() {
		return
	}
	inc.log.Error("guest lost", "guest", g.index, "reason", why)
	g.set(vftv1.GuestState_GUEST_STATE_DEAD, why)
	inc.s.heartbeatNow()
}

// guest returns a guest of this node.
func (inc *incarnation) guest(index uint32) (*guestVM, error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	g := inc.guests[index]
	if g == nil || g.agent == nil {
		return nil, fmt.Errorf("job %s guest %d: %w", inc.job, index, errUnknown)
	}
	return g, nil
}

func (inc *incarnation) all() []*guestVM {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	var gs []*guestVM
	for _, g := range inc.guests {
		gs = append(gs, g)
	}
	return gs
}

// allAndArrived is all and a guest that was loaded but has its place elsewhere.
func (inc *incarnation) allAndArrived() []*guestVM {
	gs := inc.all()
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.arrived != nil {
		gs = append(gs, inc.arrived)
	}
	if inc.move == nil || inc.arrived != nil || inc.guests[inc.move.order.GetGuest()] != nil {
		return gs
	}
	if _, coming, over := inc.move.parts(); coming != nil && !over {
		select {
		case <-coming.loaded.done:
			if came := coming.loaded.value; came != nil {
				gs = append(gs, &guestVM{index: inc.move.order.GetGuest(), machine: came.machine, state: vftv1.GuestState_GUEST_STATE_PAUSED})
			}
		default: // it ends with the incarnation's work
		}
	}
	return gs
}

// close takes the incarnation off the network for good: nothing of it leaves
// or enters the node any more. It may be called again.
func (inc *incarnation) close() {
	inc.mu.Lock()
	first := !inc.ended
	inc.ended = true
	network, cut := inc.net, inc.cut
	inc.mu.Unlock()
	if first && network != nil {
		network.Close()
	}
	if first && cut != nil {
		cut.Close()
	}
	inc.work.cancel()
}

// over says whether the incarnation was closed.
func (inc *incarnation) over() bool {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	return inc.ended
}

// end kills the guests and waits for everything done on their behalf. The
// network goes first, so that nothing of a killed incarnation leaves the node.
func (inc *incarnation) end() {
	inc.close()
	inc.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(inc.work.ctx), endTimeout)
		defer cancel()
		kill := func() {
			for _, g := range inc.allAndArrived() {
				if err := g.kill(ctx); err != nil {
					inc.log.Error("killing a guest", "guest", g.index, "err", err)
				}
				g.hangUp()
			}
		}
		kill()
		inc.work.end()
		kill() // one that came meanwhile
		if err := os.RemoveAll(inc.runDir()); err != nil {
			inc.log.Error("removing the guests' runtime directory", "err", err)
		}
	})
}

// endTimeout bounds the wait for killed guests to disappear.
const endTimeout = 15 * time.Second

// leave lets the guests run on without this process.
func (inc *incarnation) leave() {
	inc.close()
	inc.once.Do(func() {
		inc.awaitMemory()
		inc.work.end()
		for _, g := range inc.allAndArrived() {
			g.hangUp()
			if g.machine == nil {
				continue
			}
			if err := g.machine.Close(); err != nil {
				inc.log.Warn("leaving a guest", "guest", g.index, "err", err)
			}
		}
	})
}
