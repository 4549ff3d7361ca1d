package wrapper

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/guest/launch"
)

// Connection is a cluster that can be called.
type Connection struct {
	Coordinators []string // host:port of replicas
	Coordinator  func(address string) vftv1connect.CoordinatorServiceClient
	Sidecar      func(address string) vftv1connect.SidecarServiceClient
	Image        string // guest image to use unless the user names one; empty: one that the nodes hold
}

// StageRequest says what goes into the archive that every guest unpacks.
type StageRequest struct {
	Flavour  vftv1.Flavour
	Image    string   // id of the guest image: what it holds need not be taken along
	Programs []string // absolute paths; with the libraries they need
	Files    []string // absolute paths of files and directories
	Dirs     []string // absolute paths of directories that must exist; the first is the job's working directory
	Env      []string // KEY=VALUE: LD_LIBRARY_PATH and PATH as the user has them
}

// LaunchFunc makes the complete argv of the flavour's mpirun in guest 0, for
// the guests to run on and the user's arguments without a host list, and the
// variables to set in its environment.
type LaunchFunc func(flavour vftv1.Flavour, hosts []launch.Host, args []string) (argv, env []string)

// launcher leaves variables for the programs to [Command.Arguments], which
// gives them to each program of the line and keeps what the user set.
func launcher(flavour vftv1.Flavour, hosts []launch.Host, args []string) (argv, env []string) {
	if flavour == vftv1.Flavour_FLAVOUR_MPICH {
		return launch.MPICH(hosts, nil, args)
	}
	return launch.OpenMPI(hosts, nil, args)
}

// User is on whose behalf a job runs.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Umask  uint32
}

// CurrentUser is the user of this process.
func CurrentUser() User {
	u := User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Umask: 0o022}
	u.Name = strconv.Itoa(os.Getuid())
	if me, err := user.Current(); err == nil {
		u.Name = me.Username
	}
	groups, _ := os.Getgroups() // none is as good as an error: the job has its main group
	for _, g := range groups {
		u.Groups = append(u.Groups, uint32(g))
	}
	status, _ := os.ReadFile("/proc/self/status") // umask(2) cannot be asked without changing it
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
				u.Umask = uint32(mask)
			}
		}
	}
	return u
}

// Deps is what [Run] needs from outside. Cluster and Stage must be set; the zero value of the others means what their comment says.
type Deps struct {
	// Cluster connects to cmd.Cluster, or when that is empty starts a cluster
	// in this process for plan, which is nil otherwise. cleanup ends it and is
	// called once, after everything else, also when the job was broken off.
	Cluster func(ctx context.Context, cmd *Command, plan *Plan) (conn *Connection, cleanup func(), err error)
	// Stage writes the archive that every guest unpacks, a tar, and returns
	// variables that the programs need with it, such as LD_LIBRARY_PATH, whose
	// values are put in front of the user's.
	Stage  func(ctx context.Context, req StageRequest, w io.Writer) (programEnv []string, err error)
	Launch LaunchFunc // nil: package guest/launch

	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer // nil: os.Stdout, os.Stderr

	Signals  <-chan os.Signal                           // nil: those of this process
	Events   func(where string) (io.WriteCloser, error) // nil: OpenEvents
	User     *User                                      // nil: CurrentUser()
	Hostname string                                     // empty: os.Hostname
	CPUs     int                                        // of this machine; 0: runtime.NumCPU
	TempDir  string                                     // empty: os.TempDir
	NewID    func() string                              // nil: random
	Log      *slog.Logger                               // nil: none
	Timing   Timing
}

// Timing bounds what [Run] waits for. Zero fields get the defaults named.
type Timing struct {
	Renew       time.Duration // between renewals of the client's lease: 2 s
	Retry       time.Duration // longest pause between attempts to reach a sidecar: 1 s
	Contact     time.Duration // for the first answer of any coordinator: 20 s
	Patience    time.Duration // without any coordinator before giving up: 2 min
	Collect     time.Duration // trying to bring files back: 30 s
	StopGrace   time.Duration // after a first signal, before the job is ended by force: 30 s
	Abandon     time.Duration // after a second signal, before leaving: 3 s
	End         time.Duration // for the job's last event, after its end was accepted: 3 s
	Progress    time.Duration // between updates of the progress line: 1 s
	SpoolLimit  int64         // bytes of streams kept before those that no restart needs are let go: 64 MiB
	StdinWindow int64         // bytes of input sent ahead of what was asked for: 256 KiB
}

func (d Deps) complete() Deps {
	if d.Launch == nil {
		d.Launch = launcher
	}
	if d.Stdin == nil {
		d.Stdin = strings.NewReader("")
	}
	if d.Stdout == nil {
		d.Stdout = os.Stdout
	}
	if d.Stderr == nil {
		d.Stderr = os.Stderr
	}
	if d.Events == nil {
		d.Events = OpenEvents
	}
	if d.User == nil {
		u := CurrentUser()
		d.User = &u
	}
	if d.Hostname == "" {
		d.Hostname, _ = os.Hostname() // localhost still works
	}
	if d.CPUs == 0 {
		d.CPUs = runtime.NumCPU()
	}
	if d.TempDir == "" {
		d.TempDir = os.TempDir()
	}
	if d.NewID == nil {
		d.NewID = randomID
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	d.Timing = d.Timing.complete()
	return d
}

func (t Timing) complete() Timing {
	for _, f := range []struct {
		at      *time.Duration
		instead time.Duration
	}{
		{&t.Renew, 2 * time.Second},
		{&t.Retry, time.Second},
		{&t.Contact, 20 * time.Second},
		{&t.Patience, 2 * time.Minute},
		{&t.Collect, 30 * time.Second},
		{&t.StopGrace, 30 * time.Second},
		{&t.Abandon, 3 * time.Second},
		{&t.End, 3 * time.Second},
		{&t.Progress, time.Second},
	} {
		if *f.at == 0 {
			*f.at = f.instead
		}
	}
	if t.SpoolLimit == 0 {
		t.SpoolLimit = 64 << 20
	}
	if t.StdinWindow == 0 {
		t.StdinWindow = 256 << 10
	}
	return t
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// resources makes what a plan needs of the cluster's answer.
func resources(nodes []*vftv1.Node, hostname string, embedded bool) Resources {
	r := Resources{Embedded: embedded, Hostname: hostname}
	for _, n := range nodes {
		if n.GetState() == vftv1.NodeState_NODE_STATE_ALIVE {
			r.Nodes = append(r.Nodes, Node{Name: n.GetId(), Address: n.GetAddress(), CPUs: int(n.GetCpus())})
		}
	}
	slices.SortFunc(r.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return r
}
