package coordinator

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

const versionFile = "version"

// node is the Raft half of a replica and what it keeps open.
type node struct {
	raft      *raft.Raft
	transport raft.Transport
	close     []func() error // in this order, after raft has ended
}

// openNode opens the state of a replica, bootstraps the cluster where there is
// none, and starts Raft.
func openNode(cfg Config, f raft.FSM) (_ *node, err error) {
	n := &node{}
	defer func() {
		if err != nil {
			_ = n.closeStores()
		}
	}()
	logger := raftLogger(cfg.Logger)
	var address raft.ServerAddress
	if cfg.Stream == nil {
		var t *raft.InmemTransport
		address, t = raft.NewInmemTransport(raft.ServerAddress(cfg.ID))
		n.transport = t
		n.close = append(n.close, t.Close)
	} else {
		address = raft.ServerAddress(cfg.RaftAddress)
		if address == "" {
			address = raft.ServerAddress(cfg.Stream.Addr().String())
		}
		t := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: cfg.Stream, MaxPool: 3, Timeout: 10 * time.Second, Logger: logger,
		})
		n.transport = t
		n.close = append(n.close, func() error { t.CloseStreams(); return t.Close() })
	}

	var logs raft.LogStore
	var stable raft.StableStore
	var snaps raft.SnapshotStore
	if cfg.InMemory {
		s := raft.NewInmemStore()
		logs, stable, snaps = s, s, raft.NewInmemSnapshotStore()
		if cfg.logStore != nil {
			logs = cfg.logStore
		}
	} else {
		if err := checkDir(cfg.Dir); err != nil {
			return nil, err
		}
		s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(cfg.Dir, "log.db"), BoltOptions: &bbolt.Options{Timeout: 2 * time.Second}})
		if err != nil {
			return nil, fmt.Errorf("opening the coordinator's log in %s (is another coordinator running there?): %w", cfg.Dir, err)
		}
		n.close = append(n.close, s.Close)
		fs, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, logger)
		if err != nil {
			return nil, fmt.Errorf("opening the coordinator's snapshots in %s: %w", cfg.Dir, err)
		}
		logs, stable, snaps = s, s, fs
	}

	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.ID)
	rc.Logger = logger
	rc.HeartbeatTimeout = cfg.RaftTimeout
	rc.ElectionTimeout = cfg.RaftTimeout
	rc.LeaderLeaseTimeout = cfg.RaftTimeout / 2
	rc.CommitTimeout = min(50*time.Millisecond, cfg.RaftTimeout/10)
	rc.SnapshotThreshold = 4096
	rc.TrailingLogs = 2048

	has, err := raft.HasExistingState(logs, stable, snaps)
	if err != nil {
		return nil, fmt.Errorf("reading the coordinator's state: %w", err)
	}
	if !has {
		peers := cfg.Peers
		if len(peers) == 0 && len(cfg.Join) == 0 {
			peers = []Peer{{ID: cfg.ID, RaftAddress: string(address)}}
		}
		if first, ok := firstConfiguration(cfg.ID, peers); ok {
			if err := raft.BootstrapCluster(rc, logs, stable, snaps, n.transport, first); err != nil {
				return nil, fmt.Errorf("bootstrapping the coordinator: %w", err)
			}
		}
	}
	if n.raft, err = raft.NewRaft(rc, f, logs, stable, snaps, n.transport); err != nil {
		return nil, fmt.Errorf("starting raft: %w", err)
	}
	return n, nil
}

func firstConfiguration(self string, peers []Peer) (raft.Configuration, bool) {
	var c raft.Configuration
	member := false
	for _, p := range peers {
		member = member || p.ID == self
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.RaftAddress)})
	}
	return c, member
}

// checkDir makes the state directory, or checks that it is of this version.
func checkDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the coordinator's directory: %w", err)
	}
	path := filepath.Join(dir, versionFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "log.db")); err == nil {
			return fmt.Errorf("%s has a log but no version file: %w", dir, fsm.ErrVersion)
		}
		return atomicfile.WriteFile(path, []byte(strconv.Itoa(fsm.Version)+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("reading the version of the coordinator's state: %w", err)
	}
	if v := strings.TrimSpace(string(data)); v != strconv.Itoa(fsm.Version) {
		return fmt.Errorf("%s is of version %q, this coordinator reads version %d; let all jobs end with the old version, then start with an empty directory: %w",
			dir, v, fsm.Version, fsm.ErrVersion)
	}
	return nil
}

// stop ends Raft, waiting no longer than the limit: a log store that hangs
// must not keep the process from exiting.
func (n *node) stop(limit time.Duration) error {
	done := make(chan error, 1)
	go func() {
		err := n.raft.Shutdown().Error()
		done <- errors.Join(err, n.closeStores())
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("raft did not end in %v", limit)
	}
}

func (n *node) closeStores() error {
	var errs []error
	for _, f := range n.close {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// raftLogger passes Raft's own log on, one level quieter than it names itself:
// what matters of it is logged by the coordinator.
func raftLogger(l *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "raft", Level: hclog.Info, DisableTime: true, Output: slogLines{l},
	})
}

type slogLines struct{ l *slog.Logger }

func (w slogLines) Write(p []byte) (int, error) {
	level, line, _ := strings.Cut(strings.TrimSpace(string(p)), "]")
	line = strings.TrimSpace(line)
	switch strings.TrimPrefix(level, "[") {
	case "ERROR":
		w.l.Warn(line)
	case "WARN":
		w.l.Info(line)
	default:
		w.l.Debug(line)
	}
	return len(p), nil
}

var _ io.Writer = slogLines{}
