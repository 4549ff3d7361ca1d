package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/api/client"
	"github.com/mpirun-vft/vft/coordinator"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
	"github.com/mpirun-vft/vft/internal/version"
)

// EmbeddedNode is the id of the only node of an embedded cluster.
const EmbeddedNode = "local"

// Embedded is a cluster of one coordinator and one sidecar inside this
// process, with its state in a temporary directory. Its guests die with the
// process however that ends.
type Embedded struct {
	Endpoint    *transport.Endpoint // a client's
	Coordinator string              // host:port
	dir         string
	cancel      context.CancelFunc
	ended       context.Context // ends when everything has ended
	end         context.CancelFunc
	err         error
}

// StartEmbedded starts an embedded cluster that lives until Close.
func StartEmbedded(ctx context.Context, images, qemu string, log *slog.Logger) (_ *Embedded, err error) {
	dir, err := os.MkdirTemp("", "vft-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the job: %w", err)
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &Embedded{dir: dir, cancel: cancel}
	e.ended, e.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			cancel()
			_ = os.RemoveAll(dir)
		}
	}()
	authority, err := pki.NewAuthority("vft job", time.Now())
	if err != nil {
		return nil, err
	}
	nodeID, err := authority.Issue("node:"+EmbeddedNode, time.Now())
	if err != nil {
		return nil, err
	}
	clientID, err := authority.Issue(fmt.Sprintf("user:uid%d", os.Getuid()), time.Now())
	if err != nil {
		return nil, err
	}
	nodeEnd, err := endpointOf(nodeID, nil)
	if err != nil {
		return nil, err
	}
	if e.Endpoint, err = endpointOf(clientID, nil); err != nil {
		return nil, err
	}
	coordLn, err := nodeEnd.Listen(life, "127.0.0.1:0", log, transport.ProtoRPC)
	if err != nil {
		return nil, err
	}
	sideLn, err := nodeEnd.Listen(life, "127.0.0.1:0", log, transport.ProtoRPC, transport.ProtoLink)
	if err != nil {
		return nil, errors.Join(err, coordLn.Close())
	}
	e.Coordinator = coordLn.Addr().String()
	c, err := coordinator.New(coordinator.Config{
		ID: EmbeddedNode, APIAddress: e.Coordinator, Version: version.String(), InMemory: true,
		Sidecar: SidecarClient(nodeEnd), VerifyDrain: verifyDrain, GuestAddress: guestAddress,
		Logger: log,
	})
	if err != nil {
		return nil, errors.Join(err, coordLn.Close(), sideLn.Close())
	}
	mux := http.NewServeMux()
	mux.Handle(coordinatorHandler(c))
	conf := nodeconf.Node{
		ID: EmbeddedNode, Sidecar: sideLn.Addr().String(), Data: filepath.Join(dir, "data"),
		Run: filepath.Join(dir, "run"), Images: images, QEMU: qemu,
		LevelDirectories: []string{"/"}, // everything is done by the user who asks
	}
	g, gctx := errgroup.WithContext(life)
	g.Go(func() error { return c.Run(gctx) })
	g.Go(func() error { return serve(gctx, coordLn.Lane(transport.ProtoRPC), mux) })
	g.Go(func() error {
		return runSidecar(gctx, conf, log, sidecarWiring{
			endpoint: nodeEnd, listener: sideLn, gate: &transport.Gate{},
			coordinators: []string{e.Coordinator}, killWithParent: true,
		})
	})
	go func() {
		err := g.Wait()
		_ = coordLn.Close()
		nodeEnd.Close()
		if !errors.Is(err, context.Canceled) {
			e.err = err
		}
		e.end()
	}()
	err = e.awaitNode(ctx)
	if err != nil || e.ended.Err() != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// awaitNode waits until the sidecar has made itself known to the coordinator.
func (e *Embedded) awaitNode(ctx context.Context) error {
	c := client.New(client.Config{Coordinators: []string{e.Coordinator}, Dial: CoordinatorClient(e.Endpoint)})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ended, cancel)()
	for {
		if nodes, err := c.ListNodes(ctx); err == nil && len(nodes.GetNodes()) > 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if e.ended.Err() != nil {
				return nil // Close tells why
			}
			return context.Cause(ctx)
		}
	}
}

// Context ends when the cluster has ended, by Close or by itself; then Err
// says why.
func (e *Embedded) Context() context.Context { return e.ended }

// Err is the reason of an end that was not asked for. Call it after Context
// has ended.
func (e *Embedded) Err() error { return e.err }

// Close ends the cluster and its guests and removes its directory.
func (e *Embedded) Close() error {
	e.cancel()
	<-e.ended.Done()
	e.Endpoint.Close()
	return errors.Join(e.err, os.RemoveAll(e.dir))
}
