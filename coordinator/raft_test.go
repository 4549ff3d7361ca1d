package coordinator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// localClient calls a replica in this process.
type localClient struct {
	vftv1connect.CoordinatorServiceClient
	c *Coordinator
}

func (l localClient) AddReplica(ctx context.Context, r *connect.Request[vftv1.AddReplicaRequest]) (*connect.Response[vftv1.AddReplicaResponse], error) {
	return l.c.AddReplica(ctx, r)
}

func onDisk(t *testing.T, dir string, l raft.StreamLayer) Config {
	t.Helper()
	cfg := testConfig("r1")
	cfg.InMemory, cfg.Dir, cfg.Stream = false, dir, l
	cfg.Sidecar = func(string) vftv1connect.SidecarServiceClient { return nil }
	return cfg
}

// The same call bootstraps, restarts and finds everything again.
func TestStateSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t, 1, 1, func(cfg *Config) { cfg.InMemory, cfg.Dir, cfg.Stream = false, dir, newLayer(t) })
	c.submit(spec("j", 1))
	c.running("j", 1)
	if e := c.checkpoint("j"); e.GetState() != committed {
		t.Fatal(e)
	}
	first := c.reps[0]
	if err := first.node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.crash(first)
	if err := <-first.done; err != nil {
		t.Fatal(err)
	}
	first.done <- nil
	cfg := onDisk(t, dir, newLayer(t))
	cfg.Sidecar = c.sidecar
	second := c.start(cfg)
	c.mu.Lock()
	c.reps = append(c.reps, second)
	c.mu.Unlock()
	j := c.running("j", 1)
	if got := committedEpochs(j); len(got) != 1 {
		t.Errorf("epochs %v", got)
	}
	if e := c.checkpoint("j"); e.GetNumber() != 2 || e.GetState() != committed {
		t.Error(e)
	}
}

func TestStateOfAnotherVersionIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(onDisk(t, dir, newLayer(t)))
	if !errors.Is(err, fsm.ErrVersion) || !strings.Contains(err.Error(), "start with an empty directory") {
		t.Errorf("%v", err)
	}
}

// A log entry that this version cannot read ends the replica: skipping it
// would make it differ from the others.
func TestUnreadableEntryEndsTheReplica(t *testing.T) {
	cfg := testConfig("r1")
	cfg.Sidecar = func(string) vftv1connect.SidecarServiceClient { return nil }
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	deadline := time.Now().Add(10 * time.Second)
	for c.node.raft.State() != raft.Leader && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	c.node.raft.Apply([]byte{0x08, 0x63}, time.Second)
	select {
	case err := <-done:
		if !errors.Is(err, fsm.ErrVersion) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still running")
	}
}

// A replica that is in no configuration is admitted by the leader and catches up.
func TestReplicaJoins(t *testing.T) {
	l1 := newLayer(t)
	c := newCluster(t, 1, 1, func(cfg *Config) { cfg.Stream = l1 })
	c.submit(spec("j", 1))
	c.running("j", 1)
	cfg := testConfig("r2")
	cfg.Stream, cfg.Sidecar = newLayer(t), c.sidecar
	cfg.Join = []vftv1connect.CoordinatorServiceClient{localClient{c: c.reps[0].Coordinator}}
	r2 := c.start(cfg)
	c.mu.Lock()
	c.reps = append(c.reps, r2)
	c.mu.Unlock()
	c.eventually("r2 has the job", func() bool { return r2.store.job("j") != nil })
	st, err := r2.Status(c.ctx, connect.NewRequest(&vftv1.StatusRequest{}))
	if err != nil || len(st.Msg.GetReplicas()) != 2 {
		t.Errorf("%v, %v", st, err)
	}
}

// stallingStore is a log whose disk stops answering.
type stallingStore struct {
	*raft.InmemStore
	stall chan struct{}
	stuck chan struct{}
}

func (s *stallingStore) StoreLogs(logs []*raft.Log) error {
	select {
	case <-s.stall:
		<-s.stuck
	default:
	}
	return s.InmemStore.StoreLogs(logs)
}

func (s *stallingStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// A leader whose disk stalls is not voted out; it ends by itself.
func TestLeaderThatCannotCommitEnds(t *testing.T) {
	store := &stallingStore{InmemStore: raft.NewInmemStore(), stall: make(chan struct{}), stuck: make(chan struct{})}
	cfg := testConfig("r1")
	cfg.Sidecar = func(string) vftv1connect.SidecarServiceClient { return nil }
	cfg.CommitDeadline, cfg.ShutdownTimeout = 300*time.Millisecond, 200*time.Millisecond
	cfg.logStore = store
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if _, err := c.leader(); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	close(store.stall)
	select {
	case err := <-done:
		if !errors.Is(err, ErrCannotCommit) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("still leading")
	}
	close(store.stuck)
	c.waits.wait()
}
