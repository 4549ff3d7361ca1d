package transport

import (
	"crypto/tls"
	"fmt"
	"net"

	"github.com/mpirun-vft/vft/internal/access"
)

// PeerName is the common name in the certificate of the other end, "" for a
// connection without one.
func PeerName(state *tls.ConnectionState) string {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ""
	}
	return state.PeerCertificates[0].Subject.CommonName
}

// CheckNode tells whether the certificate of the connection's other end is that
// of the node: what one node does in another's name would be taken for the other's.
func CheckNode(conn net.Conn, node string) error {
	name := ""
	if secure, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := secure.ConnectionState()
		name = PeerName(&state)
	}
	if want := (access.Identity{Kind: access.Node, Name: node}); name != want.String() {
		return fmt.Errorf("it calls itself node %s, and its certificate says %q", node, name)
	}
	return nil
}
