package overlay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLinkOverTLS uses links as nodes have them: encrypted.
func TestLinkOverTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"node"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots.AddCert(certificate)
	c := newCluster(t, Limits{}, "a", "b")
	server := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	client := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "node"}
	c.mu.Lock()
	c.wrap = func(conn net.Conn) net.Conn { return tls.Server(conn, server) }
	c.secure = func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		secure := tls.Client(conn, client)
		return secure, secure.HandshakeContext(ctx)
	}
	c.mu.Unlock()

	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	for i := range 200 {
		frame := testFrame(0, 1, uint64(i), 60+300*i)
		g0.write(frame)
		require.Equal(t, frame, g1.receive())
	}
	verify(t, c, members, holdAll(t, nets, 1))
	c.breakLinks("b")
	releaseAll(nets, 1)
	g0.write(testFrame(0, 1, 1, 60))
	g1.receive()
}
