// Package nodeconf reads and writes the files that tell a daemon who it is
// (node.json) and a client where the cluster is (cluster.json).
package nodeconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mpirun-vft/vft/internal/atomicfile"
	"github.com/mpirun-vft/vft/internal/pki"
)

// Version of both files. A file of another version is refused.
const Version = 1

// Names of the files.
const (
	NodeFile    = "node.json"
	ClusterFile = "cluster.json"
)

// Replica is one coordinator of the cluster.
type Replica struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port for RPC and Raft alike
}

// Node is the configuration of one node's daemons. Relative paths are below
// the directory of the file.
type Node struct {
	Version       int       `json:"version"`
	ID            string    `json:"id"`
	FailureDomain string    `json:"failure_domain"`
	Coordinator   bool      `json:"coordinator"` // this node runs a replica
	Replicas      []Replica `json:"replicas"`
	Join          bool      `json:"join,omitempty"`   // the replica is added to those that there are
	Sidecar       string    `json:"sidecar"`          // host:port of the sidecar
	CoordHTTP     string    `json:"coordinator_http"` // host:port for /metrics and /healthz
	SidecarHTTP   string    `json:"sidecar_http"`
	Certificates  string    `json:"certificates"` // directory, see package pki
	Data          string    `json:"data"`         // checkpoints and guest state
	Raft          string    `json:"raft"`         // never on the disk of the checkpoints, if there are two
	Run           string    `json:"run"`          // sockets; its path must be short
	Images        string    `json:"images"`       // image cache
	QEMU          string    `json:"qemu"`         // binary, found on PATH when it has no slash
	Lease         Duration  `json:"lease"`
	Heartbeat     Duration  `json:"heartbeat"`
	CPUs          uint32    `json:"cpus,omitempty"`         // 0: what the machine has
	MemoryMiB     uint64    `json:"memory_mib,omitempty"`   // 0: what the machine has
	HealthRoot    string    `json:"health_root,omitempty"`  // root of the machine that the probes look at; "": /
	HealthRules   string    `json:"health_rules,omitempty"` // rules file; "": those compiled in
	Policy        string    `json:"policy,omitempty"`       // file with the site's expression about alarms; "": that built in
	LabControl    bool      `json:"lab_control,omitempty"`

	// LevelDirectories are those at or below which jobs may have checkpoints
	// kept (levels dir:/PATH): absolute paths that name the same directories on
	// every node. "/" allows any; none is the default.
	LevelDirectories []string `json:"level_directories,omitempty"`
}

// Cluster tells a client where a cluster is and who the client is.
type Cluster struct {
	Version      int      `json:"version"`
	Name         string   `json:"name"`
	Coordinators []string `json:"coordinators"` // host:port
	Certificates string   `json:"certificates"`
	Images       string   `json:"images"` // image cache for staging decisions
}

// Duration is a time.Duration that JSON spells as "3s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// LoadNode reads node.json at path.
func LoadNode(path string) (Node, error) {
	var n Node
	if err := load(path, &n); err != nil {
		return n, err
	}
	if n.Version != Version {
		return n, fmt.Errorf("%s is of version %d and this vft reads version %d: make the node anew, or use the vft that wrote it", path, n.Version, Version)
	}
	if n.ID == "" || n.Sidecar == "" || len(n.Replicas) == 0 {
		return n, fmt.Errorf("%s: id, sidecar and replicas must be set", path)
	}
	for i, d := range n.LevelDirectories {
		if !filepath.IsAbs(d) {
			return n, fmt.Errorf("%s: level_directories: %q must be absolute: it names the same directory on every node", path, d)
		}
		n.LevelDirectories[i] = filepath.Clean(d)
	}
	for _, p := range []*string{&n.Certificates, &n.Data, &n.Raft, &n.Run, &n.Images, &n.HealthRoot, &n.HealthRules, &n.Policy} {
		*p = below(path, *p)
	}
	return n, nil
}

// Save writes the node's file into dir.
func (n Node) Save(dir string) error { return save(filepath.Join(dir, NodeFile), n) }

// LoadCluster reads cluster.json; path may be the file or its directory.
func LoadCluster(path string) (Cluster, error) {
	var c Cluster
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, ClusterFile)
	}
	if err := load(path, &c); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return c, fmt.Errorf("no cluster file at %s: give the file that `vft lab up` or your operator made: %w", path, os.ErrNotExist)
		}
		return c, err
	}
	if c.Version != Version {
		return c, fmt.Errorf("%s is of version %d and this vft reads version %d", path, c.Version, Version)
	}
	c.Certificates, c.Images = below(path, c.Certificates), below(path, c.Images)
	return c, nil
}

// Save writes the cluster's file into dir.
func (c Cluster) Save(dir string) error { return save(filepath.Join(dir, ClusterFile), c) }

// Identity loads the client's certificate.
func (c Cluster) Identity() (pki.Identity, error) { return pki.Load(c.Certificates) }

func below(file, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

func load(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

func save(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", path, err)
	}
	return atomicfile.WriteFile(path, append(data, '\n'), 0o600)
}
