package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// leader answers as the test wants.
type leader struct {
	Leader

	mu     sync.Mutex
	asked  []*vftv1.HeartbeatRequest
	answer func(ctx context.Context, n int) (*vftv1.HeartbeatResponse, error)
}

// Heartbeat implements Heartbeater.
func (l *leader) Heartbeat(ctx context.Context, req *vftv1.HeartbeatRequest) (*vftv1.HeartbeatResponse, error) {
	l.mu.Lock()
	l.asked = append(l.asked, req)
	n, answer := len(l.asked), l.answer
	l.mu.Unlock()
	if answer == nil {
		return &vftv1.HeartbeatResponse{}, nil
	}
	return answer(ctx, n)
}

func (l *leader) set(answer func(ctx context.Context, n int) (*vftv1.HeartbeatResponse, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer = answer
}

func (l *leader) requests() []*vftv1.HeartbeatRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*vftv1.HeartbeatRequest(nil), l.asked...)
}

const (
	testLease     = 3 * time.Second
	testHeartbeat = testLease / 6
)

func testConfig(t *testing.T, node string, l *leader) Config {
	t.Helper()
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "sc") // sockets need short names
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	return Config{
		Node: &vftv1.Node{Id: node, Address: node + ":1"}, Data: filepath.Join(dir, "data"), Run: run,
		Images: filepath.Join(dir, "images"), Leader: l,
		DialLink:  func(context.Context, string) (net.Conn, error) { return nil, errors.New("no network here") },
		Heartbeat: testHeartbeat, Lease: testLease, Session: 1, Log: slog.New(slog.DiscardHandler),
	}
}

// idle returns a sidecar that does what it is called for, without Run.
func idle(t *testing.T, cfg Config) *Sidecar {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	s.life = newScope(context.Background())
	t.Cleanup(func() {
		for _, inc := range s.incarnations() {
			inc.end()
		}
		s.life.end()
		s.net.Close()
		require.NoError(t, s.outside.close())
		require.NoError(t, s.parts.Close())
	})
	return s
}

// making returns a create function for enter and says how often it was called.
func making(s *Sidecar, job string, number uint64, members ...*vftv1.Member) (create func() *incarnation, calls *int) {
	calls = new(int)
	return func() *incarnation {
		*calls++
		return s.newIncarnation(&vftv1.Context{Job: job, Incarnation: number}, &vftv1.JobSpec{Id: job}, members, phaseRunning)
	}, calls
}

// place makes an incarnation with one guest that has no machine.
func place(t *testing.T, s *Sidecar, job string, number uint64) *incarnation {
	t.Helper()
	create, _ := making(s, job, number, &vftv1.Member{Guest: 0, Node: s.cfg.Node.GetId(), Address: s.cfg.Node.GetAddress()})
	inc, err := s.enter(job, number, create)
	require.NoError(t, err)
	require.NoError(t, inc.open())
	inc.mu.Lock()
	inc.guests[0] = &guestVM{index: 0, state: vftv1.GuestState_GUEST_STATE_RUNNING}
	inc.mu.Unlock()
	return inc
}
