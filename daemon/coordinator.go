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
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/lab"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
	"github.com/mpirun-vft/vft/internal/version"
	"github.com/mpirun-vft/vft/policy"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/sidecar"
)

// raftStream is Raft's way to the other replicas: the daemon's own port, with
// the protocol agreed on in the handshake.
type raftStream struct {
	net.Listener
	endpoint *transport.Endpoint
}

// Dial implements raft.StreamLayer.
func (r raftStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return r.endpoint.Dial(ctx, string(address), transport.ProtoRaft)
}

// RunCoordinator runs the node's coordinator replica until ctx ends.
func RunCoordinator(ctx context.Context, conf nodeconf.Node, log *slog.Logger) error {
	gate := &transport.Gate{}
	ep, err := endpoint(conf, gate)
	if err != nil {
		return configError{err}
	}
	defer ep.Close()
	address := ""
	var peers []coordinator.Peer
	var join []vftv1connect.CoordinatorServiceClient
	for _, r := range conf.Replicas {
		switch {
		case !conf.Join:
			peers = append(peers, coordinator.Peer{ID: r.ID, RaftAddress: r.Address})
		case r.ID != conf.ID:
			join = append(join, CoordinatorClient(ep)(r.Address))
		}
		if r.ID == conf.ID {
			address = r.Address
		}
	}
	if address == "" {
		return configError{fmt.Errorf("node %s is no replica: its id is not among the replicas in %s", conf.ID, nodeconf.NodeFile)}
	}
	ln, err := ep.Listen(ctx, address, log, transport.ProtoRPC, transport.ProtoRaft, transport.ProtoEnrol)
	if err != nil {
		return configError{fmt.Errorf("%w; end what uses the port, or choose another", err)}
	}
	defer ln.Close() //nolint:errcheck // nothing is left to be said at the end
	authority, err := pki.LoadAuthority(conf.Certificates)
	if errors.Is(err, os.ErrNotExist) {
		log.Info("nobody can enrol here: the authority's key is not there")
	} else if err != nil {
		return configError{err}
	}
	reg := registry()
	c, err := coordinator.New(coordinator.Config{
		ID: conf.ID, APIAddress: address, Version: version.String(),
		Dir: conf.Raft, Stream: raftStream{ln.Lane(transport.ProtoRaft), ep}, RaftAddress: address,
		Peers: peers, Join: join, Authority: authority, Refuse: ep.RefuseNodes, Sidecar: SidecarClient(ep), VerifyDrain: verifyDrain, GuestAddress: guestAddress,
		Lease: time.Duration(conf.Lease), Heartbeat: time.Duration(conf.Heartbeat),
		Logger: log, Metrics: reg,
	})
	if err != nil {
		if errors.Is(err, fsm.ErrVersion) {
			err = configError{err}
		}
		return err
	}
	custom, err := loadPolicy(conf.Policy)
	if err != nil {
		return configError{err}
	}
	c.SetPolicy(custom)
	mux := http.NewServeMux()
	mux.Handle(coordinatorHandler(c))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(gctx, ln.Lane(transport.ProtoRPC), mux) })
	g.Go(func() error { return serve(gctx, opaque{ln.Lane(transport.ProtoEnrol)}, enrolHandler(c)) })
	g.Go(func() error { return observe(gctx, conf.CoordHTTP, reg, c.Healthy) })
	if conf.LabControl {
		g.Go(func() error { return control(gctx, filepath.Join(conf.Run, lab.CoordinatorControl), gate) })
	}
	g.Go(func() error { return c.Run(gctx) })
	g.Go(func() error {
		onHangup(gctx, func() {
			custom, err := loadPolicy(conf.Policy)
			if err != nil {
				log.Error("the policy stays as it is", "err", err)
				return
			}
			c.SetPolicy(custom)
		})
		return nil
	})
	return g.Wait()
}

// loadPolicy reads a site's expression about alarms; nil without a file.
func loadPolicy(file string) (*policy.Custom, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // no policy of the site's is a way to run
	}
	source, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	custom, err := policy.Compile(strings.TrimSpace(string(source)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return custom, nil
}

// coordinatorHandler serves a coordinator to those who may call it.
func coordinatorHandler(c *coordinator.Coordinator) (string, http.Handler) {
	path, h := vftv1connect.NewCoordinatorServiceHandler(c, connect.WithInterceptors(access.Interceptor(c.Access())))
	return path, access.Handler(h)
}

// opaque hides from an HTTP server that its connections are TLS, whose protocol
// it does not know: they carry HTTP/1.1.
type opaque struct{ net.Listener }

// Accept implements net.Listener.
func (o opaque) Accept() (net.Conn, error) {
	conn, err := o.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{conn}, nil
}

// maxEnrol bounds what a stranger may send, in bytes.
const maxEnrol = 64 << 10

// enrolHandler is all that those without a certificate can reach.
func enrolHandler(c *coordinator.Coordinator) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewEnrolmentServiceHandler(c.Enrolment(), connect.WithReadMaxBytes(maxEnrol)))
	return mux
}

func guestAddress(index uint32) (mac, ip string) {
	return guest.MAC(int(index)).String(), guest.Addr(int(index)).String()
}

// verifyDrain checks the proof of a drain for a job's guests and its gateway.
func verifyDrain(members []*vftv1.Member, reports map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error) {
	return quiesce.VerifyDrain(sidecar.WithGateway(members), reports)
}
