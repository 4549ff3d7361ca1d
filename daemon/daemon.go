// Package daemon puts the parts of a node together as processes: a
// coordinator replica, a sidecar, both under one supervisor, or all of them
// inside one program for the length of a job. It wires; it decides nothing.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
)

// shutdownGrace is how long open requests may go on when a daemon ends.
const shutdownGrace = 2 * time.Second

// endpoint makes the node's side of all connections from its certificates.
func endpoint(conf nodeconf.Node, gate *transport.Gate) (*transport.Endpoint, error) {
	id, err := pki.Load(conf.Certificates)
	if err != nil {
		return nil, err
	}
	return endpointOf(id, gate)
}

func endpointOf(id pki.Identity, gate *transport.Gate) (*transport.Endpoint, error) {
	conf, err := id.TLS()
	if err != nil {
		return nil, err
	}
	return transport.New(conf, gate), nil
}

// SidecarClient returns a client of the sidecar at address.
func SidecarClient(e *transport.Endpoint) func(address string) vftv1connect.SidecarServiceClient {
	return func(address string) vftv1connect.SidecarServiceClient {
		return vftv1connect.NewSidecarServiceClient(e.HTTP(), "https://"+address, connect.WithReadMaxBytes(64<<20), uncompressed())
	}
}

// uncompressed keeps the other side from compressing its answers: parts of
// checkpoints would come at the speed of gzip.
func uncompressed() connect.ClientOption { return connect.WithAcceptCompression("gzip", nil, nil) }

// CoordinatorClient returns a client of the coordinator at address.
func CoordinatorClient(e *transport.Endpoint) func(address string) vftv1connect.CoordinatorServiceClient {
	return func(address string) vftv1connect.CoordinatorServiceClient {
		return vftv1connect.NewCoordinatorServiceClient(e.HTTP(), "https://"+address, connect.WithReadMaxBytes(64<<20))
	}
}

// serve answers HTTP on ln until ctx ends, then lets requests finish for a while.
func serve(ctx context.Context, ln net.Listener, handler http.Handler) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         protocols,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: 8 << 20,
			MaxReceiveBufferPerStream:     4 << 20,
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // handshakes are logged by the listener
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(gctx), shutdownGrace)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			return srv.Close() // somebody keeps a stream open
		}
		return nil
	})
	return g.Wait()
}

// registry is a daemon's metrics with what the process itself shows.
func registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// observe serves /metrics and /healthz at address; "" serves nothing.
func observe(ctx context.Context, address string, reg *prometheus.Registry, healthy func() error) error {
	if address == "" {
		<-ctx.Done()
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return configError{fmt.Errorf("listening for metrics: %w; choose another address in %s", err, nodeconf.NodeFile)}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return serve(ctx, ln, mux)
}

// control lets the lab that runs this node cut it off, by a socket that only
// its owner can open.
func control(ctx context.Context, path string, gate *transport.Gate) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing an old control socket: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listening for the lab: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /lab/gate", func(w http.ResponseWriter, r *http.Request) {
		gate.Set(r.URL.Query().Get("shut") == "true")
		w.WriteHeader(http.StatusNoContent)
	})
	return serve(ctx, ln, mux)
}

// configError marks what starting again would not mend.
type configError struct{ error }

// Unwrap returns the cause.
func (e configError) Unwrap() error { return e.error }

// IsConfigError says whether a daemon could not run as configured, so that
// its supervisor must not start it again.
func IsConfigError(err error) bool {
	var c configError
	return errors.As(err, &c)
}

// newSession draws a number that tells this process from earlier ones.
func newSession() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("drawing a session number: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]) | 1, nil
}
