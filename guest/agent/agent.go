// Package agent is the program inside a guest that does what the host's
// sidecar asks for: it stages files, starts programs, carries their standard
// streams, and sends back what they wrote. docs/GUEST.md says what each call
// means.
package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/api/gen/vft/agent/v1/agentv1connect"
	"github.com/mpirun-vft/vft/guest/rsh"
	"github.com/mpirun-vft/vft/guest/serial"
)

// Config is what an agent needs to know of the guest around it.
type Config struct {
	// Root is prefixed to all paths: "/" in a guest.
	Root string
	// Version of the program.
	Version string
	// Index and Size are the guest's number and the number of guests.
	Index, Size int
	// Address on the guests' network, for information.
	Address string
	// MPIFile lists the MPI implementations of the image, "name version" each.
	MPIFile string
	// Poweroff ends the guest. It is called after the answer has been sent.
	Poweroff func()
	Log      *slog.Logger
}

// Agent serves one guest. Its state is in memory on purpose: a checkpoint of
// the guest holds it.
type Agent struct {
	cfg      Config
	launcher *launcher

	mu        sync.Mutex
	starting  sync.Mutex
	processes map[string]*process
	staged    map[string]signature
	collected []collection
}

// collection is what a Collect had sent when it gave out its token.
type collection struct {
	token string
	known map[string]signature
}

// New returns an agent that serves nothing yet.
func New(cfg Config) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		cfg:       cfg,
		launcher:  &launcher{root: cfg.Root},
		processes: map[string]*process{},
		staged:    map[string]signature{},
	}
}

// Handler returns the Connect service.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(&service{a}))
	return mux
}

// ServeSerial serves HTTP/2 with prior knowledge on the sessions of l until
// Accept fails.
func (a *Agent) ServeSerial(l *serial.Listener) error {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: time.Minute,
		Protocols:         protocols,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize:              256 << 10,
			MaxReceiveBufferPerConnection: 2 << 20,
			MaxReceiveBufferPerStream:     2 << 20,
		},
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelDebug),
	}
	err := srv.Serve(l)
	return errors.Join(fmt.Errorf("serve the agent's port: %w", err), srv.Close())
}

// ServeRemote answers the other guests' remote starts on l until ctx ends.
func (a *Agent) ServeRemote(ctx context.Context, l net.Listener) error {
	return rsh.Serve(ctx, l, func(req rsh.Request, stdin, stdout, stderr *os.File) (*exec.Cmd, error) {
		u := User{UID: req.UID, GID: req.GID, Name: req.User, Home: req.Home}
		for _, g := range req.Groups {
			u.Groups = append(u.Groups, Group{GID: g})
		}
		if err := ensureUser(a.cfg.Root, u); err != nil {
			return nil, err
		}
		dir := req.Dir
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			dir = "/"
		}
		cmd, err := a.launcher.command(Spec{
			Argv: []string{"/bin/sh", "-c", req.Command}, Env: req.Env, Dir: dir, User: u,
		})
		if err != nil {
			return nil, err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
		if err := a.launcher.run(cmd, req.Umask); err != nil {
			return nil, err
		}
		return cmd, nil
	})
}

// process returns the process started under id.
func (a *Agent) process(id string) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.processes[id]
	if !ok {
		return nil, fmt.Errorf("process %q: %w in this guest", id, fs.ErrNotExist)
	}
	return p, nil
}

// start starts spec once under id.
func (a *Agent) start(id string, spec Spec) (p *process, already bool, err error) {
	a.starting.Lock()
	defer a.starting.Unlock()
	if p, err := a.process(id); err == nil {
		return p, true, nil
	}
	p, err = a.launcher.start(spec)
	if err != nil {
		return nil, false, err
	}
	a.mu.Lock()
	a.processes[id] = p
	a.mu.Unlock()
	a.cfg.Log.Info("started a program", "id", id, "pid", p.pid, "argv", spec.Argv)
	return p, false, nil
}

func (a *Agent) noteStaged(path string, s signature) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.staged[path] = s
}

// baseline returns what the caller of Collect knows: what an earlier Collect
// with the token had sent, else what was staged.
func (a *Agent) baseline(token string) map[string]signature {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.collected {
		if token != "" && c.token == token {
			return c.known
		}
	}
	return maps.Clone(a.staged)
}

// remember gives out a token for what has been sent. The last few are kept: a
// host that was restarted may come with an older one.
func (a *Agent) remember(known map[string]signature) string {
	const keep = 4
	token := rand.Text()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.collected = append(a.collected, collection{token: token, known: known})
	if n := len(a.collected) - keep; n > 0 {
		a.collected = append([]collection(nil), a.collected[n:]...)
	}
	return token
}

// mpis reads the list of MPI implementations.
func (a *Agent) mpis() [][2]string {
	b, err := os.ReadFile(a.cfg.MPIFile)
	if err != nil {
		return nil
	}
	var list [][2]string
	for line := range strings.Lines(string(b)) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			list = append(list, [2]string{name, version})
		}
	}
	return list
}
