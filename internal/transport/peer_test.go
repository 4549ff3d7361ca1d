package transport

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
)

// certified is a connection whose other end has shown a certificate.
type certified struct {
	net.Conn
	name string
}

func (c certified) ConnectionState() tls.ConnectionState {
	if c.name == "" {
		return tls.ConnectionState{}
	}
	return tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: c.name}}}}
}

func TestNodesGreetAsThemselves(t *testing.T) {
	assert.NoError(t, CheckNode(certified{name: "node:n1"}, "n1"))
	for _, name := range []string{"node:n2", "user:n1", "admin:n1", "n1", ""} {
		assert.Error(t, CheckNode(certified{name: name}, "n1"), name)
	}
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a pipe
	defer b.Close() //nolint:errcheck // a pipe
	assert.Error(t, CheckNode(a, "n1"), "without TLS")
}
