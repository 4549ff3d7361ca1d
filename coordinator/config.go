package coordinator

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/policy"
)

// Peer is one replica of the first configuration of the cluster.
type Peer struct {
	ID          string
	RaftAddress string
}

// Config is what a coordinator replica needs. Zero durations mean the default
// named at the field.
type Config struct {
	ID         string // of this replica, unique and stable
	APIAddress string // host:port at which this replica's CoordinatorService is reached
	Version    string // of vft, for Status

	// Dir holds the Raft log, its snapshots and a version file; never on the
	// disk that takes checkpoints. Unused with InMemory.
	Dir string
	// InMemory keeps everything in memory: for a coordinator that lives as
	// long as one job.
	InMemory bool
	// Stream carries Raft between replicas; closed by the coordinator. Nil,
	// with InMemory: this is the only replica.
	Stream      raft.StreamLayer
	RaftAddress string // of this replica, as the others dial it; empty: that of Stream

	// Peers is the first configuration: the same list at every replica that
	// is in it. It is used only where there is no state yet. Empty: this
	// replica alone, or with Join none, and an existing cluster is joined.
	Peers []Peer
	// Join are replicas of an existing cluster to be asked for admission.
	Join []vftv1connect.CoordinatorServiceClient

	// Sidecar returns a client of the sidecar at an address. It is called
	// often and should share connections.
	Sidecar func(address string) vftv1connect.SidecarServiceClient
	// VerifyDrain checks the nodes' counts of a held network, by node id, and
	// returns the proof that nothing was in flight.
	VerifyDrain func(members []*vftv1.Member, reports map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error)
	// GuestAddress returns the MAC and IP address of a guest in its job's
	// network, for people who look at the job. Nil: not recorded.
	GuestAddress func(guest uint32) (mac, ip string)

	// Authority certifies those that enrol. Nil: nobody can enrol at this replica.
	Authority *pki.Authority

	// Refuse ends connections with nodes and takes no more from them: they are
	// expelled. Nil: nothing is done.
	Refuse func(nodes []string)

	Lease       time.Duration // of a node, 3 s
	Heartbeat   time.Duration // interval at which sidecars renew, 500 ms
	ClientLease time.Duration // of the client of a client-bound job, 30 s

	StartWait   time.Duration // for nodes that can take a new job, 10 s
	RestartWait time.Duration // for nodes that can take a job that has run, 10 min
	HolderWait  time.Duration // for nodes that hold the epochs of a job, before it starts from the beginning, 1 min
	StopGrace   time.Duration // for a program that was asked to end, 5 s

	CallTimeout    time.Duration // calls that only change state on a node, 5 s
	FenceTimeout   time.Duration // killing old guests before a restart, 1 s
	PrepareTimeout time.Duration // preparing a checkpoint, 15 s
	HoldTimeout    time.Duration // nodes release by themselves after it, 5 s
	PartsTimeout   time.Duration // storing an epoch, or making one part of it safe at one level, 15 min
	RestoreTimeout time.Duration // fetching and loading an epoch, 15 min

	InspectInterval time.Duration // between comparisons of what a node has with what it should have, 10 min
	CollectInterval time.Duration // between collections at levels outside the nodes, 6 h
	LevelBackoff    time.Duration // first wait after a level could not be reached, doubled up to 5 min; 2 s
	KeepAborted     time.Duration // 1 h
	KeepJobs        time.Duration // ended jobs, 7 days
	MaxRestarts     int           // at the same time, 4
	Guard           policy.Guard  // against storms of moves on account of alarms; zero: policy.DefaultGuard
	RetryBackoff    time.Duration // first wait after a failed checkpoint, doubled up to the interval, 2 s
	RestartBackoff  time.Duration // first wait after a failed restart, doubled up to 30 s; 250 ms
	CommitDeadline  time.Duration // a leader that cannot commit for this long gives up, 10 s
	RaftTimeout     time.Duration // Raft heartbeat and election, 1 s; the leader lease is half of it
	ShutdownTimeout time.Duration // for leadership transfer and for Raft to end, 5 s

	Logger  *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
	Now     func() time.Time      // nil: time.Now

	logStore raft.LogStore // tests: in the place of the one in memory
}

func (c Config) withDefaults() (Config, error) {
	if c.ID == "" {
		return c, errors.New("coordinator: a replica needs an id")
	}
	if c.Sidecar == nil || c.VerifyDrain == nil {
		return c, errors.New("coordinator: Sidecar and VerifyDrain must be given")
	}
	if c.Stream == nil && !c.InMemory {
		return c, errors.New("coordinator: a replica with state on disk needs a stream layer")
	}
	if c.Stream == nil && (len(c.Peers) > 1 || len(c.Join) > 0) {
		return c, errors.New("coordinator: several replicas need a stream layer")
	}
	if c.Dir == "" && !c.InMemory {
		return c, errors.New("coordinator: a replica needs a directory for its state")
	}
	for i, p := range c.Peers {
		if p.ID == "" || p.RaftAddress == "" {
			return c, fmt.Errorf("coordinator: peer %d needs an id and an address", i)
		}
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.Lease, 3 * time.Second},
		{&c.Heartbeat, 500 * time.Millisecond},
		{&c.ClientLease, 30 * time.Second},
		{&c.StartWait, 10 * time.Second},
		{&c.RestartWait, 10 * time.Minute},
		{&c.HolderWait, time.Minute},
		{&c.StopGrace, 5 * time.Second},
		{&c.CallTimeout, 5 * time.Second},
		{&c.FenceTimeout, time.Second},
		{&c.PrepareTimeout, 15 * time.Second},
		{&c.HoldTimeout, 5 * time.Second},
		{&c.PartsTimeout, 15 * time.Minute},
		{&c.RestoreTimeout, 15 * time.Minute},
		{&c.KeepAborted, time.Hour},
		{&c.KeepJobs, 7 * 24 * time.Hour},
		{&c.InspectInterval, 10 * time.Minute},
		{&c.CollectInterval, 6 * time.Hour},
		{&c.LevelBackoff, 2 * time.Second},
		{&c.RetryBackoff, 2 * time.Second},
		{&c.RestartBackoff, 250 * time.Millisecond},
		{&c.CommitDeadline, 10 * time.Second},
		{&c.RaftTimeout, time.Second},
		{&c.ShutdownTimeout, 5 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.Lease < 2*c.Heartbeat {
		return c, fmt.Errorf("coordinator: a lease of %v with a heartbeat every %v loses nodes that are well: make it at least twice as long", c.Lease, c.Heartbeat)
	}
	if c.Guard == (policy.Guard{}) {
		c.Guard = policy.DefaultGuard()
	}
	if c.MaxRestarts == 0 {
		c.MaxRestarts = 4
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}
