package client

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// replica is one coordinator; all of a cluster share the state behind it.
type replica struct {
	vftv1connect.UnimplementedCoordinatorServiceHandler
	c       *cluster
	address string
}

type cluster struct {
	mu       sync.Mutex
	leader   string // address, empty: none
	replicas []*replica
	asked    map[string]int
	events   []*vftv1.Event
	ended    bool
	perWatch int // messages before a watch breaks off, 0: it does not
}

func (c *cluster) lead(r *replica) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[r.address]++
	if c.leader == r.address {
		return nil
	}
	err := connect.NewError(connect.CodeUnavailable, errors.New("not the leader"))
	if d, derr := connect.NewErrorDetail(&vftv1.LeaderHint{Address: c.leader}); derr == nil {
		err.AddDetail(d)
	}
	return err
}

func (r *replica) RenewClient(context.Context, *connect.Request[vftv1.RenewClientRequest]) (*connect.Response[vftv1.RenewClientResponse], error) {
	return connect.NewResponse(&vftv1.RenewClientResponse{Lease: int64(3 * time.Second)}), r.c.lead(r)
}

func (r *replica) GetJob(context.Context, *connect.Request[vftv1.GetJobRequest]) (*connect.Response[vftv1.GetJobResponse], error) {
	if err := r.c.lead(r); err != nil {
		return nil, err
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("no such job"))
}

func (r *replica) WatchJob(ctx context.Context, req *connect.Request[vftv1.WatchJobRequest], stream *connect.ServerStream[vftv1.WatchJobResponse]) error {
	since := req.Msg.GetSince()
	for sent := 0; ; sent++ {
		if err := r.c.lead(r); err != nil {
			return err
		}
		r.c.mu.Lock()
		job := &vftv1.Job{Events: r.c.events[since:]}
		since = uint64(len(r.c.events))
		limit := r.c.perWatch
		if r.c.ended {
			job.Phase = vftv1.JobPhase_JOB_PHASE_ENDED
		}
		r.c.mu.Unlock()
		if limit > 0 && sent == limit {
			return nil // a replica that shuts down
		}
		if err := stream.Send(&vftv1.WatchJobResponse{Job: job}); err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func start(t *testing.T, n int) (*cluster, Config) {
	c := &cluster{asked: map[string]int{}}
	cfg := Config{Patience: 300 * time.Millisecond, Attempt: time.Second}
	var httpClient *http.Client
	for range n {
		r := &replica{c: c}
		mux := http.NewServeMux()
		mux.Handle(vftv1connect.NewCoordinatorServiceHandler(r))
		s := httptest.NewUnstartedServer(mux)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		httpClient = s.Client()
		t.Cleanup(httpClient.CloseIdleConnections)
		r.address = s.Listener.Addr().String()
		c.replicas = append(c.replicas, r)
		cfg.Coordinators = append(cfg.Coordinators, r.address)
	}
	cfg.Dial = func(a string) vftv1connect.CoordinatorServiceClient {
		return vftv1connect.NewCoordinatorServiceClient(httpClient, "https://"+a)
	}
	c.leader = c.replicas[0].address
	return c, cfg
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFollowsTheLeader(t *testing.T) {
	c, cfg := start(t, 3)
	c.leader = c.replicas[2].address
	cfg.Coordinators = cfg.Coordinators[:1] // only a follower is known
	client := New(cfg)
	for range 3 {
		if lease, err := client.RenewClient(t.Context(), "j"); err != nil || lease != 3*time.Second {
			t.Fatal(lease, err)
		}
	}
	if c.asked[c.replicas[0].address] != 1 || c.asked[c.replicas[2].address] != 3 || client.Address() != c.leader {
		t.Errorf("asked %v; want the follower once and the leader three times", c.asked)
	}
}

func TestWaitsForALeader(t *testing.T) {
	c, cfg := start(t, 2)
	cfg.Patience = 10 * time.Second
	c.leader = ""
	go func() {
		time.Sleep(150 * time.Millisecond)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.leader = c.replicas[1].address
	}()
	if _, err := New(cfg).RenewClient(t.Context(), "j"); err != nil {
		t.Fatal(err)
	}
}

func TestUnreachable(t *testing.T) {
	c, cfg := start(t, 2)
	c.leader = ""
	began := time.Now()
	_, err := New(cfg).RenewClient(t.Context(), "j")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.replicas[1].address) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
	if _, err := New(Config{}).RenewClient(t.Context(), "j"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("without addresses: %v", err)
	}
}

func TestDeadReplicaIsPassedOver(t *testing.T) {
	c, cfg := start(t, 1)
	cfg.Coordinators = append([]string{"127.0.0.1:1"}, cfg.Coordinators...)
	if _, err := New(cfg).RenewClient(t.Context(), "j"); err != nil {
		t.Fatal(err, c.asked)
	}
}

func TestAnAnswerIsAnAnswer(t *testing.T) {
	c, cfg := start(t, 1)
	_, err := New(cfg).GetJob(t.Context(), "j")
	if connect.CodeOf(err) != connect.CodeNotFound || c.asked[c.leader] != 1 {
		t.Errorf("error %v after %v questions", err, c.asked)
	}
}

func TestCancelled(t *testing.T) {
	c, cfg := start(t, 1)
	c.leader = ""
	cfg.Patience = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(cfg).RenewClient(ctx, "j"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// Every event is seen once and in order while streams break off and leaders change.
func TestWatchResumes(t *testing.T) {
	c, cfg := start(t, 2)
	cfg.Patience = 10 * time.Second
	c.perWatch = 2
	const events = 30
	go func() {
		for i := range events {
			c.mu.Lock()
			c.events = append(c.events, &vftv1.Event{Number: uint64(i + 1)})
			c.leader = c.replicas[i%2].address
			c.mu.Unlock()
			time.Sleep(4 * time.Millisecond)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = true
	}()
	var seen []uint64
	err := New(cfg).WatchJob(t.Context(), "j", 0, func(m *vftv1.WatchJobResponse) error {
		for _, e := range m.GetJob().GetEvents() {
			seen = append(seen, e.GetNumber())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range seen {
		if n != uint64(i+1) {
			t.Fatalf("events %v", seen)
		}
	}
	if len(seen) != events {
		t.Errorf("%d events, want %d", len(seen), events)
	}
}

func TestWatchStopsWithItsReader(t *testing.T) {
	_, cfg := start(t, 1)
	enough := errors.New("enough")
	if err := New(cfg).WatchJob(t.Context(), "j", 0, func(*vftv1.WatchJobResponse) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}
