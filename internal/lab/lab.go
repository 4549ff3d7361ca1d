// Package lab runs a whole cluster on one machine: every node is a group of
// real processes with its own data directory and address, and can be killed,
// started again and cut off from the others. The command `vft lab` and the
// end-to-end tests use it.
//
// A lab lives in a directory that holds lab.json, the client's cluster.json
// and one directory per node. Sockets live in a short directory below the
// system's temporary one, whose creation reserves the lab's number K: nodes
// get the addresses 127.77.K.i, or 10.177.K.i with network namespaces.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/mpirun-vft/vft/internal/atomicfile"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/proc"
)

// version of lab.json.
const version = 1

// Ports every node uses on its own address.
const (
	coordinatorPort     = 7700
	sidecarPort         = 7701
	coordinatorHTTPPort = 7710
	sidecarHTTPPort     = 7711
)

const stateFile = "lab.json"

// MachineDir is the directory, in that of a node, which the node's health probes
// take for the root of its machine: nodes share this one, and what fails there
// must not fail on all of them.
const MachineDir = "machine"

// Options say what lab to make.
type Options struct {
	Dir      string // of the lab; must not hold one yet
	Nodes    int    // at least 1
	Replicas int    // coordinators, on the first nodes; 0: 3, or 1 when there are fewer than 3 nodes
	Netns    bool   // a network namespace per node; needs root
	Binary   string // path of the vft binary
	Images   string // image cache shared by the nodes
	QEMU     string // binary, "" for the default
	Lease    time.Duration
	CPUs     uint32 // per node, 0: what the machine has
	// HealthRules is the nodes' rules file; "": the rules compiled in. The
	// machine that a node's probes look at is below MachineDir of its directory.
	HealthRules string
}

// Lab is a cluster on this machine.
type Lab struct {
	dir   string
	state state
}

type state struct {
	Version int     `json:"version"`
	Number  int     `json:"number"`
	Netns   bool    `json:"netns"`
	Binary  string  `json:"binary"`
	Run     string  `json:"run"`
	Nodes   []*node `json:"nodes"`
}

type node struct {
	ID      string        `json:"id"`
	Address string        `json:"address"` // without port
	Process proc.Identity `json:"process"` // leader of the node's process group; zero: not running
	Cut     bool          `json:"cut"`     // partitioned
}

// ErrNoLab says that a directory holds no lab.
var ErrNoLab = errors.New("no lab here")

// Open finds the lab in dir.
func Open(dir string) (*Lab, error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; start one with `vft lab up`", dir, ErrNoLab)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the lab: %w", err)
	}
	l := &Lab{dir: dir}
	if err := json.Unmarshal(data, &l.state); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, stateFile), err)
	}
	if l.state.Version != version {
		return nil, fmt.Errorf("%s is of version %d and this vft knows version %d: end it with the vft that made it", dir, l.state.Version, version)
	}
	return l, nil
}

// Create makes a lab's files and networks; Start starts its nodes.
func Create(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Nodes < 1 || o.Nodes > 200 {
		return nil, fmt.Errorf("a lab has 1 to 200 nodes, not %d", o.Nodes)
	}
	if o.Replicas < 0 || o.Replicas > o.Nodes {
		return nil, fmt.Errorf("%d coordinator replicas do not fit on %d nodes", o.Replicas, o.Nodes)
	}
	if _, err := Open(o.Dir); err == nil {
		return nil, fmt.Errorf("%s holds a lab already: end it with `vft lab down`, or choose another --dir", o.Dir)
	}
	if o.Netns && os.Geteuid() != 0 {
		return nil, errors.New("--netns makes network namespaces and needs root; without it nodes share this machine's network on addresses of their own")
	}
	if o.Replicas == 0 {
		o.Replicas = 3
		if o.Nodes < 3 {
			o.Replicas = 1
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the lab's directory: %w", err)
	}
	number, run, err := reserve(o.Dir)
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: o.Dir, state: state{Version: version, Number: number, Netns: o.Netns, Binary: o.Binary, Run: run}}
	defer func() {
		if err != nil {
			_ = l.Remove(context.WithoutCancel(ctx))
		}
	}()
	prefix := "127.77"
	if o.Netns {
		prefix = "10.177"
	}
	var replicas []nodeconf.Replica
	for i := 1; i <= o.Nodes; i++ {
		n := &node{ID: "n" + strconv.Itoa(i), Address: fmt.Sprintf("%s.%d.%d", prefix, number, i)}
		l.state.Nodes = append(l.state.Nodes, n)
		if i <= o.Replicas {
			replicas = append(replicas, nodeconf.Replica{ID: n.ID, Address: fmt.Sprintf("%s:%d", n.Address, coordinatorPort)})
		}
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if o.Netns {
		if err := l.addNetworks(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.writeConfigs(o, replicas); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Lab) writeConfigs(o Options, replicas []nodeconf.Replica) error {
	now := time.Now()
	authority, err := pki.NewAuthority("vft lab", now)
	if err != nil {
		return err
	}
	for i, n := range l.state.Nodes {
		id, err := authority.Issue("node:"+n.ID, now)
		if err != nil {
			return err
		}
		dir := l.nodeDir(n)
		if err := id.Save(filepath.Join(dir, "certs")); err != nil {
			return err
		}
		if i < len(replicas) {
			if err := authority.SaveKey(filepath.Join(dir, "certs")); err != nil {
				return err
			}
		}
		conf := nodeconf.Node{
			Version: nodeconf.Version, ID: n.ID, FailureDomain: n.ID,
			Coordinator: i < len(replicas), Replicas: replicas,
			Sidecar:      fmt.Sprintf("%s:%d", n.Address, sidecarPort),
			CoordHTTP:    fmt.Sprintf("%s:%d", n.Address, coordinatorHTTPPort),
			SidecarHTTP:  fmt.Sprintf("%s:%d", n.Address, sidecarHTTPPort),
			Certificates: "certs", Data: "data", Raft: "raft",
			Run: filepath.Join(l.state.Run, n.ID), Images: o.Images, QEMU: o.QEMU,
			Lease: nodeconf.Duration(o.Lease), CPUs: o.CPUs, LabControl: true,
			HealthRoot: MachineDir, HealthRules: o.HealthRules,
			LevelDirectories: []string{"/"}, // a lab is its user's own
		}
		if err := os.Mkdir(filepath.Join(dir, MachineDir), 0o700); err != nil {
			return fmt.Errorf("making the machine of node %s: %w", n.ID, err)
		}
		if err := conf.Save(dir); err != nil {
			return err
		}
	}
	id, err := authority.Issue("admin:lab", now)
	if err != nil {
		return err
	}
	if err := id.Save(filepath.Join(l.dir, "client")); err != nil {
		return err
	}
	cluster := nodeconf.Cluster{Version: nodeconf.Version, Name: "lab", Certificates: "client", Images: o.Images}
	for _, r := range replicas {
		cluster.Coordinators = append(cluster.Coordinators, r.Address)
	}
	return cluster.Save(l.dir)
}

// reserve finds a free lab number by making its run directory.
func reserve(dir string) (number int, run string, err error) {
	for number = 1; number < 255; number++ {
		run = filepath.Join(os.TempDir(), fmt.Sprintf("vft-lab-%d-%d", os.Getuid(), number))
		err := os.Mkdir(run, 0o700)
		if errors.Is(err, os.ErrExist) {
			owner, rerr := os.ReadFile(filepath.Join(run, "owner")) //nolint:gosec // our own reservation
			if rerr != nil {
				continue // being made this moment, or another user's
			}
			if _, serr := os.Stat(filepath.Join(string(owner), stateFile)); serr == nil || !errors.Is(serr, os.ErrNotExist) { //nolint:gosec // our own reservation
				continue
			}
			// Its lab's directory is gone: take the number over.
			if rerr := os.RemoveAll(run); rerr != nil {
				continue
			}
			err = os.Mkdir(run, 0o700)
		}
		if err != nil {
			continue
		}
		if err := atomicfile.WriteFile(filepath.Join(run, "owner"), []byte(dir), 0o600); err != nil {
			return 0, "", fmt.Errorf("reserving a lab number: %w", err)
		}
		return number, run, nil
	}
	return 0, "", errors.New("254 labs exist on this machine: end some with `vft lab down`")
}

// ClusterFile is the file that clients of the lab use.
func (l *Lab) ClusterFile() string { return filepath.Join(l.dir, nodeconf.ClusterFile) }

// Nodes are the node ids, in order.
func (l *Lab) Nodes() []string {
	ids := make([]string, len(l.state.Nodes))
	for i, n := range l.state.Nodes {
		ids[i] = n.ID
	}
	return ids
}

// Running says whether the node's process group has a living leader.
func (l *Lab) Running(id string) bool {
	n, err := l.find(id)
	return err == nil && n.Process.Alive()
}

// LogFile is where the node's daemons write.
func (l *Lab) LogFile(id string) string { return filepath.Join(l.dir, id, "log") }

// NodeDir is the node's own directory.
func (l *Lab) NodeDir(id string) string { return filepath.Join(l.dir, id) }

// Start starts a node that is not running.
func (l *Lab) Start(ctx context.Context, id string, env ...string) error {
	n, err := l.find(id)
	if err != nil {
		return err
	}
	if n.Process.Alive() {
		return fmt.Errorf("node %s is running", id)
	}
	// Guests may have outlived a supervisor that was killed alone.
	_ = n.Process.KillGroup()
	log, err := os.OpenFile(l.LogFile(id), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", id, err)
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	argv := []string{l.state.Binary, "node", "run", "--config", filepath.Join(l.nodeDir(n), nodeconf.NodeFile)}
	if l.state.Netns {
		argv = append([]string{"ip", "netns", "exec", l.namespace(n)}, argv...)
	}
	// The node outlives the command that starts it, so its life is not ctx's.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting node %s: %w", id, err)
	}
	ident, err := proc.Identify(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("starting node %s: %w", id, err)
	}
	n.Process = ident
	// Reaped here while this process lives, by init afterwards.
	go func() { _ = cmd.Wait() }()
	return l.save()
}

// Kill ends a node as a power cut does: SIGKILL to its whole process group,
// guests included.
func (l *Lab) Kill(id string) error {
	n, err := l.find(id)
	if err != nil {
		return err
	}
	if !n.Process.Alive() {
		return fmt.Errorf("node %s is not running", id)
	}
	if err := n.Process.KillGroup(); err != nil {
		return fmt.Errorf("killing node %s: %w", id, err)
	}
	n.Process = proc.Identity{}
	return l.save()
}

// Remove ends every process of the lab and deletes its files and networks.
func (l *Lab) Remove(ctx context.Context) error {
	var errs []error
	for _, n := range l.state.Nodes {
		if n.Process.PID != 0 {
			errs = append(errs, n.Process.KillGroup())
		}
	}
	if l.state.Netns {
		errs = append(errs, l.removeNetworks(ctx))
	}
	for _, n := range l.state.Nodes {
		errs = append(errs, os.RemoveAll(l.nodeDir(n)))
	}
	errs = append(errs,
		os.RemoveAll(filepath.Join(l.dir, "client")),
		remove(filepath.Join(l.dir, nodeconf.ClusterFile)),
		remove(filepath.Join(l.dir, stateFile)),
		os.RemoveAll(l.state.Run))
	_ = os.Remove(l.dir) // only when nothing of the user's is in it
	return errors.Join(errs...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (l *Lab) find(id string) (*node, error) {
	for _, n := range l.state.Nodes {
		if n.ID == id {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the lab has no node %q; it has %v", id, l.Nodes())
}

func (l *Lab) nodeDir(n *node) string { return filepath.Join(l.dir, n.ID) }

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the lab's state: %w", err)
	}
	return atomicfile.WriteFile(filepath.Join(l.dir, stateFile), append(data, '\n'), 0o600)
}
