package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// layer is a loopback stream layer that can be cut off.
type layer struct {
	net.Listener
	mu    sync.Mutex
	off   bool
	conns map[net.Conn]bool
}

func newLayer(t testing.TB) *layer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &layer{Listener: l, conns: map[net.Conn]bool{}}
}

func (l *layer) track(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off {
		_ = c.Close()
	}
	l.conns[c] = true
	return c, nil
}

func (l *layer) Accept() (net.Conn, error) { return l.track(l.Listener.Accept()) }

func (l *layer) Dial(a raft.ServerAddress, d time.Duration) (net.Conn, error) {
	l.mu.Lock()
	off := l.off
	l.mu.Unlock()
	if off {
		return nil, errors.New("cut off")
	}
	return l.track(net.DialTimeout("tcp", string(a), d))
}

// cutOff severs the replica from the others.
func (l *layer) cutOff(off bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.off = off
	if off {
		for c := range l.conns {
			_ = c.Close()
			delete(l.conns, c)
		}
	}
}

type replica struct {
	*Coordinator
	layer  *layer
	cancel context.CancelFunc
	done   chan error
	dead   bool
}

// cluster is replicas and fake nodes in one process.
type cluster struct {
	t     testing.TB
	mu    sync.Mutex
	reps  []*replica
	nodes map[string]*fakeSidecar
	beats sync.WaitGroup
	stop  context.CancelFunc
	ctx   context.Context
}

func testConfig(id string) Config {
	return Config{
		ID: id, APIAddress: id + ".example:7700", Version: "test", InMemory: true,
		VerifyDrain: verifyDrain,
		Lease:       700 * time.Millisecond, Heartbeat: 40 * time.Millisecond, ClientLease: 600 * time.Millisecond,
		StartWait: 500 * time.Millisecond, RestartWait: 3 * time.Second, HolderWait: 400 * time.Millisecond, StopGrace: 300 * time.Millisecond,
		CallTimeout: 500 * time.Millisecond, FenceTimeout: 200 * time.Millisecond, PrepareTimeout: time.Second,
		HoldTimeout: time.Second, PartsTimeout: 10 * time.Second, RestoreTimeout: 10 * time.Second,
		LevelBackoff: 30 * time.Millisecond, RetryBackoff: 50 * time.Millisecond, RestartBackoff: 20 * time.Millisecond,
		RaftTimeout: 400 * time.Millisecond, ShutdownTimeout: 2 * time.Second, Logger: testLogger(),
	}
}

func testLogger() *slog.Logger {
	w := io.Discard
	if os.Getenv("VFT_TEST_LOG") != "" {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func verifyDrain(_ []*vftv1.Member, reports map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error) {
	proof := &vftv1.DrainProof{}
	for _, pairs := range reports {
		for _, p := range pairs {
			if p.GetSent() != p.GetDelivered()+p.GetDropped() {
				return nil, fmt.Errorf("guest %d to %d: in flight", p.GetSource(), p.GetDestination())
			}
			proof.Pairs = append(proof.Pairs, p)
		}
	}
	return proof, nil
}

func newCluster(t testing.TB, replicas, nodes int, adjust ...func(*Config)) *cluster {
	c := &cluster{t: t, nodes: map[string]*fakeSidecar{}}
	c.ctx, c.stop = context.WithCancel(t.Context())
	outside := &fakeOutside{parts: map[string]string{}}
	for i := range nodes {
		id := fmt.Sprintf("n%d", i+1)
		c.nodes[id] = newFake(id, "rack"+id)
		c.nodes[id].peers, c.nodes[id].outside = c.nodes, outside
	}
	var peers []Peer
	var layers []*layer
	if replicas > 1 {
		for i := range replicas {
			layers = append(layers, newLayer(t))
			peers = append(peers, Peer{ID: fmt.Sprintf("r%d", i+1), RaftAddress: layers[i].Addr().String()})
		}
	}
	for i := range replicas {
		cfg := testConfig(fmt.Sprintf("r%d", i+1))
		cfg.Peers = peers
		if replicas > 1 {
			cfg.Stream = layers[i]
		}
		cfg.Sidecar = c.sidecar
		for _, f := range adjust {
			f(&cfg)
		}
		r := c.start(cfg)
		if replicas > 1 {
			r.layer = layers[i]
		}
		c.reps = append(c.reps, r)
	}
	for _, n := range c.nodes {
		c.beats.Go(func() { c.heartbeats(n) })
	}
	t.Cleanup(c.close)
	return c
}

func (c *cluster) start(cfg Config) *replica {
	co, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{Coordinator: co, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- co.Run(ctx) }()
	return r
}

func (c *cluster) sidecar(address string) vftv1connect.SidecarServiceClient {
	return c.nodes[address[:len(address)-2]]
}

func (c *cluster) close() {
	c.stop()
	c.beats.Wait()
	for _, r := range c.reps {
		r.cancel()
	}
	for _, r := range c.reps {
		if err := <-r.done; err != nil {
			c.t.Logf("replica: %v", err)
		}
	}
}

func (c *cluster) heartbeats(n *fakeSidecar) {
	for c.ctx.Err() == nil {
		if req := n.heartbeat(); req != nil {
			if l := c.tryLeader(); l != nil {
				ctx, cancel := context.WithTimeout(c.ctx, time.Second)
				resp, err := l.Heartbeat(ctx, connect.NewRequest(proto.CloneOf(req)))
				cancel()
				if err == nil {
					n.told(resp.Msg)
				}
			}
		}
		_ = sleep(c.ctx, 40*time.Millisecond)
	}
}

func (c *cluster) tryLeader() *replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reps {
		if !r.dead {
			if _, err := r.leader(); err == nil {
				return r
			}
		}
	}
	return nil
}

func (c *cluster) leader() *replica {
	c.t.Helper()
	var l *replica
	c.eventually("a leader", func() bool { l = c.tryLeader(); return l != nil })
	return l
}

// crash cuts the leader off from its peers, then ends it.
func (c *cluster) crash(r *replica) {
	c.mu.Lock()
	r.dead = true
	c.mu.Unlock()
	if r.layer != nil {
		r.layer.cutOff(true)
	}
	r.cancel()
}

func (c *cluster) eventually(what string, cond func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not reached in time: %s\n%s", what, c.describe())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *cluster) describe() string {
	s := ""
	if l := c.tryLeader(); l != nil {
		for _, j := range l.store.jobs() {
			s += fmt.Sprintf("job %s %v incarnation %d op %v\n", j.GetSpec().GetId(), j.GetPhase(), j.GetIncarnation(), j.GetOperation())
			for _, e := range j.GetEvents() {
				s += fmt.Sprintf("  %d %s: %s\n", e.GetNumber(), e.GetKind(), e.GetText())
			}
		}
	} else {
		s = "no leader\n"
	}
	for _, n := range c.nodes {
		n.mu.Lock()
		s += fmt.Sprintf("node %s held %v calls %v\n", n.id, n.held, n.calls)
		n.mu.Unlock()
	}
	return s
}

func spec(id string, guests int) *vftv1.JobSpec {
	s := &vftv1.JobSpec{
		Id: id, Name: "bt-mz", Argv: []string{"mpirun", "./bt-mz"}, MemoryMib: 1024, Cpus: 2, Image: "img",
		RestartLimit: 5, Levels: []string{"local", "partner"}, Commit: "partner",
	}
	for range guests {
		s.Guests = append(s.Guests, &vftv1.GuestSpec{Slots: 1})
	}
	return s
}

// submit waits for as many nodes as there are, then submits.
func (c *cluster) submit(s *vftv1.JobSpec) {
	c.t.Helper()
	c.nodesAlive(len(c.nodes))
	l := c.leader()
	if _, err := l.SubmitJob(c.ctx, connect.NewRequest(&vftv1.SubmitJobRequest{Spec: s})); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) nodesAlive(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d nodes alive", n), func() bool {
		l := c.tryLeader()
		return l != nil && len(l.reachable()) == n
	})
}

func (c *cluster) job(id string) *vftv1.Job {
	if l := c.tryLeader(); l != nil {
		return l.store.job(id)
	}
	return nil
}

func (c *cluster) waitPhase(id string, p vftv1.JobPhase) *vftv1.Job {
	c.t.Helper()
	c.eventually(fmt.Sprintf("job %s %v", id, p), func() bool { return c.job(id).GetPhase() == p })
	return c.job(id)
}

func (c *cluster) running(id string, incarnation uint64) *vftv1.Job {
	c.t.Helper()
	c.eventually(fmt.Sprintf("job %s running in incarnation %d", id, incarnation), func() bool {
		j := c.job(id)
		return j.GetPhase() == vftv1.JobPhase_JOB_PHASE_RUNNING && j.GetIncarnation() == incarnation && j.GetOperation() == nil
	})
	return c.job(id)
}

// runsAgain waits for any incarnation after the first to run.
func (c *cluster) runsAgain(id string) *vftv1.Job {
	c.t.Helper()
	c.eventually("job "+id+" running again", func() bool {
		j := c.job(id)
		return j.GetPhase() == vftv1.JobPhase_JOB_PHASE_RUNNING && j.GetIncarnation() > 1 && j.GetOperation() == nil
	})
	return c.job(id)
}

// checkpoint asks for an epoch and returns it, whatever became of it. Like any
// client it asks again when the leader changes.
func (c *cluster) checkpoint(id string) *vftv1.Epoch {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 15*time.Second)
	defer cancel()
	r, err := c.leader().TakeCheckpoint(ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: id}))
	for connect.CodeOf(err) == connect.CodeUnavailable && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		r, err = c.leader().TakeCheckpoint(ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: id}))
	}
	if err != nil {
		c.t.Fatalf("checkpoint: %v\n%s", err, c.describe())
	}
	return r.Msg.GetEpoch()
}

func (c *cluster) nothingHeld() {
	c.t.Helper()
	c.eventually("no network held", func() bool {
		for _, n := range c.nodes {
			n.mu.Lock()
			held := len(n.held)
			n.mu.Unlock()
			if held > 0 {
				return false
			}
		}
		return true
	})
}

// finish reports the program's end and, like any client, does so again when
// the leader changes.
func (c *cluster) finish(id string, incarnation uint64, code int32) bool {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 15*time.Second)
	defer cancel()
	request := &vftv1.FinishJobRequest{
		Id: id, Incarnation: incarnation, Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM, Code: code},
	}
	r, err := c.leader().FinishJob(ctx, connect.NewRequest(request))
	for connect.CodeOf(err) == connect.CodeUnavailable && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		r, err = c.leader().FinishJob(ctx, connect.NewRequest(request))
	}
	if err != nil {
		c.t.Fatalf("finish: %v", err)
	}
	return r.Msg.GetAccepted()
}

func events(j *vftv1.Job, kind string) []*vftv1.Event {
	var out []*vftv1.Event
	for _, e := range j.GetEvents() {
		if e.GetKind() == kind {
			out = append(out, e)
		}
	}
	return out
}

func committedEpochs(j *vftv1.Job) []uint64 {
	var out []uint64
	for _, e := range j.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			out = append(out, e.GetNumber())
		}
	}
	return out
}
