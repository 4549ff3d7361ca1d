package enrol

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
)

// Ports of a node's daemons, on its own address.
const (
	CoordinatorPort     = 7700
	SidecarPort         = 7701
	CoordinatorHTTPPort = 7710
	SidecarHTTPPort     = 7711
)

// Directories below that of a node or person.
const (
	nodeCertificates   = "certs"
	clientCertificates = "client"
	// AdminDir is where Init puts what the first administrator needs.
	AdminDir = "admin"
)

// maxRun bounds the length of a node's run directory, in bytes: sockets below
// it must stay within the 107 bytes of a Unix socket's address.
const maxRun = 60

// Node says what a node's files are made from.
type Node struct {
	Dir           string // absolute, of the node's files
	ID            string
	Address       string // host, without port
	FailureDomain string // "": the node's id
	Run           string // "": below Dir
	Images        string // image cache
	QEMU          string // binary, "" for the default
}

func (n Node) check() error {
	if n.Address == "" || net.ParseIP(n.Address) == nil && access.CheckName(n.Address) != nil {
		return fmt.Errorf("%q is no address: give the name or IP address, without port, at which other nodes reach this one", n.Address)
	}
	if ip := net.ParseIP(n.Address); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("other nodes cannot reach this one at %s: give an address of it", n.Address)
	}
	if run := n.run(); len(run) > maxRun {
		return fmt.Errorf("the path of the run directory %s has more than %d bytes, too many for sockets: give a shorter one with --run", run, maxRun)
	}
	if _, err := os.Stat(filepath.Join(n.Dir, nodeconf.NodeFile)); err == nil {
		return fmt.Errorf("%s holds a node already: run it with `vft node run --dir %s`, or choose another directory", n.Dir, n.Dir)
	}
	return nil
}

func (n Node) run() string {
	if n.Run != "" {
		return n.Run
	}
	return filepath.Join(n.Dir, "run")
}

func (n Node) at(port int) string { return net.JoinHostPort(n.Address, strconv.Itoa(port)) }

// conf is the node's configuration.
func (n Node) conf(coordinator, join bool, replicas []nodeconf.Replica) nodeconf.Node {
	c := nodeconf.Node{
		Version: nodeconf.Version, ID: n.ID, FailureDomain: n.FailureDomain,
		Coordinator: coordinator, Join: join, Replicas: replicas,
		Sidecar: n.at(SidecarPort), SidecarHTTP: n.at(SidecarHTTPPort),
		Certificates: nodeCertificates, Data: "data", Raft: "raft", Run: n.run(), Images: n.Images, QEMU: n.QEMU,
	}
	if coordinator {
		c.CoordHTTP = n.at(CoordinatorHTTPPort)
	}
	return c
}

// Init makes a cluster: its authority, its first node with a coordinator
// replica in n.Dir, and below it what its first administrator needs.
func Init(n Node, cluster, admin string, now time.Time) error {
	if err := access.CheckName(n.ID); err != nil {
		return fmt.Errorf("the node's id: %w", err)
	}
	if err := access.CheckName(admin); err != nil {
		return fmt.Errorf("the administrator's name: %w", err)
	}
	if err := n.check(); err != nil {
		return err
	}
	certs := filepath.Join(n.Dir, nodeCertificates)
	if _, err := pki.LoadAuthority(certs); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds the key of an authority: remove the directory if an earlier `vft cluster init` was interrupted", certs)
	}
	authority, err := pki.NewAuthority(cluster, now)
	if err != nil {
		return err
	}
	node, err := authority.Issue(access.Identity{Kind: access.Node, Name: n.ID}.String(), now)
	if err != nil {
		return err
	}
	if err := node.Save(certs); err != nil {
		return err
	}
	if err := authority.SaveKey(certs); err != nil {
		return err
	}
	replicas := []nodeconf.Replica{{ID: n.ID, Address: n.at(CoordinatorPort)}}
	person, err := authority.Issue(access.Identity{Kind: access.Admin, Name: admin}.String(), now)
	if err != nil {
		return err
	}
	if err := savePerson(filepath.Join(n.Dir, AdminDir), person, cluster, n.Images, replicas); err != nil {
		return err
	}
	return n.conf(true, false, replicas).Save(n.Dir) // last: the node is whole when it is there
}

// savePerson writes what somebody needs to use a cluster into dir.
func savePerson(dir string, id pki.Identity, cluster, images string, replicas []nodeconf.Replica) error {
	if err := id.Save(filepath.Join(dir, clientCertificates)); err != nil {
		return err
	}
	c := nodeconf.Cluster{Version: nodeconf.Version, Name: cluster, Certificates: clientCertificates, Images: images}
	for _, r := range replicas {
		c.Coordinators = append(c.Coordinators, r.Address)
	}
	return c.Save(dir)
}
