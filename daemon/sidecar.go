package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/faultpoint"
	"github.com/mpirun-vft/vft/internal/images"
	"github.com/mpirun-vft/vft/internal/lab"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/transport"
	"github.com/mpirun-vft/vft/internal/version"
	"github.com/mpirun-vft/vft/sidecar"
	"github.com/mpirun-vft/vft/vm"
)

// Defaults of a node's lease.
const (
	defaultLease     = 3 * time.Second
	defaultHeartbeat = 500 * time.Millisecond
)

// RunSidecar runs the node's sidecar until ctx ends. Guests outlive it.
func RunSidecar(ctx context.Context, conf nodeconf.Node, log *slog.Logger) error {
	gate := &transport.Gate{}
	ep, err := endpoint(conf, gate)
	if err != nil {
		return configError{err}
	}
	defer ep.Close()
	ln, err := ep.Listen(ctx, conf.Sidecar, log, transport.ProtoRPC, transport.ProtoLink)
	if err != nil {
		return configError{fmt.Errorf("%w; end what uses the port, or choose another", err)}
	}
	var coordinators []string
	for _, r := range conf.Replicas {
		coordinators = append(coordinators, r.Address)
	}
	watch, err := watchMachine(ctx, conf, log)
	if err != nil {
		return errors.Join(configError{err}, ln.Close())
	}
	defer watch.stop()
	return runSidecar(ctx, conf, log, sidecarWiring{
		endpoint: ep, listener: ln, gate: gate, coordinators: coordinators, health: watch.health,
	})
}

// sidecarWiring is how a sidecar reaches others and is reached.
type sidecarWiring struct {
	endpoint       *transport.Endpoint
	listener       *transport.Listener
	gate           *transport.Gate
	coordinators   []string
	killWithParent bool
	health         *sidecar.Health // nil: the machine is not watched
}

func runSidecar(ctx context.Context, conf nodeconf.Node, log *slog.Logger, w sidecarWiring) error {
	defer w.listener.Close() //nolint:errcheck // nothing is left to be said at the end
	node, err := describeNode(conf)
	if err != nil {
		return err
	}
	caps, err := Probe(ctx, conf, false, log)
	if err != nil {
		return configError{err}
	}
	faults, err := faultpoint.FromEnv()
	if err != nil {
		return configError{err}
	}
	session, err := newSession()
	if err != nil {
		return err
	}
	lease, beat := time.Duration(conf.Lease), time.Duration(conf.Heartbeat)
	if lease == 0 {
		lease = defaultLease
	}
	if beat == 0 {
		beat = min(defaultHeartbeat, lease/4)
	}
	reg := registry()
	s, err := sidecar.New(sidecar.Config{
		Node: node, Data: conf.Data, Run: conf.Run, Images: conf.Images, QEMU: conf.QEMU, Capabilities: caps,
		LevelDirectories: conf.LevelDirectories,
		Leader:           client.New(client.Config{Coordinators: w.coordinators, Dial: CoordinatorClient(w.endpoint), Attempt: time.Second}), Peer: SidecarClient(w.endpoint),
		DialLink: func(ctx context.Context, address string) (net.Conn, error) {
			return w.endpoint.Dial(ctx, address, transport.ProtoLink)
		},
		FreeMemory: freeMemory,
		CheckPeer:  transport.CheckNode, Refuse: w.endpoint.RefuseNodes,
		Heartbeat: beat, Lease: lease, KillWithParent: w.killWithParent,
		Session: session, Health: w.health, Faults: faults, Log: log, Metrics: reg,
	})
	if errors.Is(err, ckpt.ErrVersion) || errors.Is(err, ckpt.ErrNotStore) {
		return configError{err}
	}
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(sidecarHandler(s))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(gctx) })
	g.Go(func() error {
		select {
		case <-s.Ready(): // callers wait in the listener's queue until then
			return serve(gctx, w.listener.Lane(transport.ProtoRPC), mux)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return serveLinks(gctx, log, w.listener.Lane(transport.ProtoLink), s) })
	g.Go(func() error { return observe(gctx, conf.SidecarHTTP, reg, s.Healthy) })
	if conf.LabControl {
		g.Go(func() error { return control(gctx, filepath.Join(conf.Run, lab.SidecarControl), w.gate) })
	}
	return g.Wait()
}

// sidecarHandler serves a sidecar to those who may call it.
func sidecarHandler(s *sidecar.Sidecar) (string, http.Handler) {
	service := sidecar.NewService(s)
	path, h := vftv1connect.NewSidecarServiceHandler(service, connect.WithInterceptors(access.Interceptor(service.Access())))
	return path, access.Handler(h)
}

// serveLinks hands connections from other nodes' switches to this one's.
func serveLinks(ctx context.Context, log *slog.Logger, ln net.Listener, s *sidecar.Sidecar) error {
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return g.Wait()
		}
		g.Go(func() error {
			if err := s.ServeLink(gctx, conn); err != nil && gctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				log.Info("a link from another node ended", "remote", conn.RemoteAddr(), "err", err)
			}
			return nil
		})
	}
}

// describeNode says what the node has to offer.
func describeNode(conf nodeconf.Node) (*vftv1.Node, error) {
	n := &vftv1.Node{
		Id: conf.ID, Address: conf.Sidecar, FailureDomain: conf.FailureDomain,
		Cpus: conf.CPUs, MemoryMib: conf.MemoryMiB, Version: version.String(),
	}
	if n.GetFailureDomain() == "" {
		n.FailureDomain = conf.ID
	}
	if n.GetCpus() == 0 {
		n.Cpus = uint32(runtime.NumCPU())
	}
	if n.GetMemoryMib() == 0 {
		mem, err := memory()
		if err != nil {
			return nil, err
		}
		n.MemoryMib = *mem.MemTotal >> 10
	}
	return n, nil
}

// freeMemory is how much memory the kernel says can be had without swapping, in MiB.
func freeMemory() (uint64, error) {
	mem, err := memory()
	if err != nil {
		return 0, err
	}
	return *mem.MemAvailable >> 10, nil
}

// memory reads what the kernel says of the machine's memory.
func memory() (procfs.Meminfo, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return procfs.Meminfo{}, fmt.Errorf("reading the node's memory: %w", err)
	}
	mem, err := fs.Meminfo()
	if err == nil && (mem.MemTotal == nil || mem.MemAvailable == nil) {
		err = errors.New("/proc/meminfo does not have it")
	}
	if err != nil {
		return procfs.Meminfo{}, fmt.Errorf("reading the node's memory: %w", err)
	}
	return mem, nil
}

// Probe finds out what the node can do, or unless fresh is asked for reads
// what an earlier probe found out. With an image the guests' kernel is booted,
// which proves more than a few instructions do.
func Probe(ctx context.Context, conf nodeconf.Node, fresh bool, log *slog.Logger) (vm.Capabilities, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	opts := vm.ProbeOptions{Binary: conf.QEMU, CacheFile: filepath.Join(cache, "vft", "probe.json"), Log: log}
	if err := os.MkdirAll(filepath.Dir(opts.CacheFile), 0o700); err != nil {
		return vm.Capabilities{}, fmt.Errorf("making the cache directory: %w", err)
	}
	if fresh {
		if err := os.Remove(opts.CacheFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return vm.Capabilities{}, fmt.Errorf("forgetting an earlier probe: %w", err)
		}
	}
	if img, err := images.Open(conf.Images, ""); err == nil {
		opts.Kernel = img.Kernel()
	}
	return vm.Probe(ctx, opts)
}
