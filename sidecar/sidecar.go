// Package sidecar is one node's part in vft: it boots, snapshots, restores
// and ends the node's guests as the leader tells it, carries their frames and
// their program's streams, keeps the node's share of the checkpoints, and
// renews the node's lease. It adapts the leaf packages (vm, overlay, quiesce,
// ckpt, guest) to one another; none of them knows the others.
//
// Every call of the leader names a job's incarnation. The highest incarnation
// seen of a job is remembered across restarts of the process, and what comes
// from a lower one is refused, so a late command of a past life is harmless.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level/outside"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/image"
	"github.com/mpirun-vft/vft/internal/faultpoint"
	"github.com/mpirun-vft/vft/internal/images"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/vm"
)

// Leader is the coordinator that leads, wherever that is.
type Leader interface {
	// Heartbeat renews the node's lease.
	Heartbeat(context.Context, *vftv1.HeartbeatRequest) (*vftv1.HeartbeatResponse, error)
	// AdmitExport and AdmitImport fail when somebody may not have an epoch, or
	// not bring one in.
	AdmitExport(context.Context, *vftv1.AdmitExportRequest) (*vftv1.AdmitExportResponse, error)
	AdmitImport(context.Context, *vftv1.AdmitImportRequest) (*vftv1.AdmitImportResponse, error)
}

// Config is what a sidecar needs to know of its node and its cluster.
type Config struct {
	// Node describes this node; the sidecar fills in session and images.
	Node *vftv1.Node
	// Data holds checkpoints, staged archives and the state of jobs.
	Data string
	// Run holds sockets; paths below it must stay within 107 bytes.
	Run string
	// LevelDirectories are those at or below which jobs may have checkpoints
	// kept (levels dir:/PATH); "/" allows any. Empty: there are none.
	LevelDirectories []string
	// Images is the image cache directory.
	Images string
	// QEMU is the binary's name or path.
	QEMU string
	// Capabilities are the probe's answer for this node.
	Capabilities vm.Capabilities
	// Leader renews the lease, and knows whose jobs are.
	Leader Leader
	// Peer returns a client of another node's sidecar.
	Peer func(address string) vftv1connect.SidecarServiceClient
	// DialLink connects to another node's switch.
	DialLink func(ctx context.Context, address string) (net.Conn, error)
	// CheckPeer tells whether a link's connection leads to that node; nil: it
	// is taken at its word.
	CheckPeer func(conn net.Conn, node string) error
	// Refuse ends connections with nodes that are expelled and takes no more
	// from them; nil: nothing is done.
	Refuse func(nodes []string)
	// Heartbeat is the interval of renewals, Lease the time after which the
	// leader gives the node up. The sidecar stops its guests earlier, see lease.go.
	Heartbeat, Lease time.Duration
	// MonitorTimeout is how long a QEMU may leave its monitor unanswered
	// before it is taken for dead.
	MonitorTimeout time.Duration
	// KillWithParent ends guests with this process; otherwise they outlive it
	// and are adopted by the next one.
	KillWithParent bool
	// Session tells this process from earlier ones of the node.
	Session uint64
	// FreeMemory is how much memory the machine still gives, in MiB; nil: nobody asks.
	FreeMemory func() (mib uint64, err error)
	// Health watches over the machine; nil: nobody does.
	Health  *Health
	Faults  *faultpoint.Set
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Sidecar serves one node. Create it with New, then Run it.
type Sidecar struct {
	cfg   Config
	log   *slog.Logger
	net   *overlay.Switch
	parts *ckpt.Store
	blobs *ckpt.Blobs
	// outside are levels that are not on nodes.
	outside *outsideLevels
	watch   *healthWatch // nil: none

	ready chan struct{}
	// kick makes the next heartbeat go out at once.
	kick chan struct{}
	// garbage says that the store may have objects that nothing needs.
	garbage chan struct{}
	// suspended: the lease is in doubt, guests stand still.
	suspended atomic.Bool

	mu   sync.Mutex
	jobs map[string]*job
	life *scope
	// uploads are archives that clients sent lately, and imports epochs.
	uploads map[string]time.Time
	imports map[epochOf]time.Time
	// trial is held by who has a guest that is thrown away.
	trial chan struct{}

	imagesMu sync.Mutex
	verified map[string]bool // images whose bytes this process has checked
}

// job is what the node remembers of one job.
type job struct {
	id string
	// fence is the lowest incarnation that may still act here.
	fence uint64
	// current is the incarnation with guests here, nil for none.
	current *incarnation
}

// New opens the node's stores and adopts nothing yet; Run does.
func New(cfg Config) (*Sidecar, error) {
	for _, dir := range []string{cfg.Data, cfg.Run, filepath.Join(cfg.Data, jobsDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the sidecar's directory: %w", err)
		}
	}
	if cfg.MonitorTimeout == 0 {
		cfg.MonitorTimeout = 8 * time.Second
	}
	s := &Sidecar{
		cfg:  cfg,
		log:  cfg.Log,
		kick: make(chan struct{}, 1),

		garbage: make(chan struct{}, 1),

		ready: make(chan struct{}),
		jobs:  map[string]*job{},

		uploads: map[string]time.Time{},
		imports: map[epochOf]time.Time{},
		trial:   make(chan struct{}, 1),

		verified: map[string]bool{},
	}
	// Guests that are adopted stand still until the first renewal.
	s.suspended.Store(true)
	var err error
	if s.parts, err = ckpt.Open(filepath.Join(cfg.Data, "store"), ckpt.Options{Log: s.log, Faults: cfg.Faults}); err != nil {
		return nil, err
	}
	s.blobs = s.parts.Blobs()
	s.outside = &outsideLevels{
		dirs: cfg.LevelDirectories, node: cfg.Node.GetId(), opt: outside.Options{Log: s.log, Faults: cfg.Faults},
	}
	s.net, err = overlay.New(overlay.Config{
		Node: cfg.Node.GetId(), Session: cfg.Session, Dial: cfg.DialLink, CheckPeer: cfg.CheckPeer, MAC: guest.MAC, Logger: s.log,
	})
	if err != nil {
		return nil, errors.Join(err, s.parts.Close())
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(s.net); err != nil {
			return nil, errors.Join(fmt.Errorf("registering metrics: %w", err), s.parts.Close())
		}
		if err := cfg.Metrics.Register(&collector{s}); err != nil {
			return nil, errors.Join(fmt.Errorf("registering metrics: %w", err), s.parts.Close())
		}
	}
	if s.watch, err = s.watchHealth(); err != nil {
		return nil, errors.Join(err, s.parts.Close())
	}
	return s, nil
}

// Run serves until ctx ends. Shutdown goes from the outside in: the lease is
// no longer renewed, work in progress ends, guests are killed or left for the
// next process, then the switch and the stores close.
func (s *Sidecar) Run(ctx context.Context) error {
	s.mu.Lock()
	s.life = newScope(context.WithoutCancel(ctx))
	s.mu.Unlock()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.net.Run(gctx) })
	if s.watch != nil {
		g.Go(func() error { return s.watch.run(gctx) })
	}
	if err := s.adopt(gctx); err != nil {
		s.log.Error("adopting guests of an earlier process", "err", err)
	}
	close(s.ready)
	g.Go(func() error { return s.keepLease(gctx) })
	g.Go(func() error { return s.keepCollecting(gctx) })
	s.collectSoon() // what a process that was killed may have left
	err := g.Wait()

	s.mu.Lock()
	var open []*incarnation
	for _, j := range s.jobs {
		if j.current != nil {
			open = append(open, j.current)
		}
	}
	s.mu.Unlock()
	for _, inc := range open {
		if s.cfg.KillWithParent {
			inc.end()
		} else {
			inc.leave()
		}
	}
	s.life.end()
	err = errors.Join(err, s.outside.close(), s.parts.Close())
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Ready is closed when guests of an earlier process have been adopted and
// calls may be answered.
func (s *Sidecar) Ready() <-chan struct{} { return s.ready }

// ServeLink carries an accepted link from a peer's switch until it ends.
func (s *Sidecar) ServeLink(ctx context.Context, conn net.Conn) error {
	return s.net.ServeLink(ctx, conn)
}

// errFenced refuses what an older incarnation asks for.
var errFenced = errors.New("a newer incarnation of the job is known here")

// errUnknown says that the node has no such guests.
var errUnknown = errors.New("no guests of this incarnation here")

// admit returns the incarnation a call belongs to.
func (s *Sidecar) admit(c *vftv1.Context) (*incarnation, error) {
	return s.enter(c.GetJob(), c.GetIncarnation(), nil)
}

// enter finds the incarnation, or with create makes it when there is none; a
// newer one than was known ends the older first.
func (s *Sidecar) enter(id string, number uint64, create func() *incarnation) (*incarnation, error) {
	if err := ckpt.ValidateJob(id); err != nil {
		return nil, err // it names files
	}
	if number == 0 {
		return nil, errors.New("the call names no incarnation")
	}
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil {
		j = &job{id: id}
		s.jobs[id] = j
	}
	if number < j.fence {
		s.mu.Unlock()
		return nil, fmt.Errorf("job %s incarnation %d: %w (%d)", id, number, errFenced, j.fence)
	}
	old := j.current
	if old != nil && old.number == number {
		s.mu.Unlock()
		return old, nil
	}
	if create == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("job %s incarnation %d: %w", id, number, errUnknown)
	}
	j.fence, j.current = number, nil
	s.mu.Unlock()

	s.net.Fence(id, number)
	if old != nil {
		old.end()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case number < j.fence:
		return nil, fmt.Errorf("job %s incarnation %d: %w (%d)", id, number, errFenced, j.fence)
	case j.current == nil:
		j.current = create()
	}
	return j.current, nil
}

// killUpTo ends the job's guests of incarnation number and below and refuses
// them from now on.
func (s *Sidecar) killUpTo(id string, number uint64) {
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil {
		j = &job{id: id}
		s.jobs[id] = j
	}
	j.fence = max(j.fence, number+1)
	fence := j.fence
	var old *incarnation
	if j.current != nil && j.current.number <= number {
		old, j.current = j.current, nil
	}
	s.mu.Unlock()
	s.net.Fence(id, number+1)
	if old != nil {
		old.end()
	}
	if err := s.saveFence(id, fence); err != nil {
		s.log.Error("remembering which incarnations are over", "job", id, "fence", fence, "err", err)
	}
}

// forget removes what the node keeps for a job that is over, but for parts of
// its epochs, which the leader decides on.
func (s *Sidecar) forget(id string) error {
	s.mu.Lock()
	j := s.jobs[id]
	if j != nil && j.current != nil {
		s.mu.Unlock()
		return fmt.Errorf("job %s still has guests here", id)
	}
	s.mu.Unlock() // the job's fence stays: late calls must not bring it back
	s.net.Forget(id)
	return s.removeState(id)
}

// incarnations returns those that have guests here now.
func (s *Sidecar) incarnations() []*incarnation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*incarnation
	for _, j := range s.jobs {
		if j.current != nil {
			all = append(all, j.current)
		}
	}
	return all
}

// openImage opens the image a job runs on. The first time its bytes are
// compared with their hashes: a guest that boots from a damaged image fails in
// ways that nobody can explain.
func (s *Sidecar) openImage(id string) (image.Image, error) {
	img, err := images.Open(s.cfg.Images, id)
	if err != nil {
		return img, err
	}
	s.imagesMu.Lock()
	defer s.imagesMu.Unlock()
	if s.verified[id] {
		return img, nil
	}
	if err := image.Verify(img); err != nil {
		return img, err
	}
	s.verified[id] = true
	return img, nil
}
