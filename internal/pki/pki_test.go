package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/access"
)

func authority(t *testing.T, name string) *Authority {
	t.Helper()
	a, err := NewAuthority(name, time.Now())
	require.NoError(t, err)
	return a
}

func issue(t *testing.T, a *Authority, name string) Identity {
	t.Helper()
	id, err := a.Issue(name, time.Now())
	require.NoError(t, err)
	return id
}

func parse(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(data)
	require.NotNil(t, block)
	require.Empty(t, rest)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}

func TestIssueAndVerify(t *testing.T) {
	mine, foreign := authority(t, "mine"), authority(t, "mine")
	leaf := parse(t, issue(t, mine, "node:n1").Cert)
	assert.Equal(t, "node:n1", leaf.Subject.CommonName)
	assert.False(t, leaf.IsCA, "a leaf must not sign others")
	other := parse(t, issue(t, mine, "node:n1").Cert)
	assert.NotEqual(t, leaf.SerialNumber, other.SerialNumber)

	for name, test := range map[string]struct {
		authority *Authority
		use       x509.ExtKeyUsage
		server    string
		at        time.Time
		ok        bool
	}{
		"as a server":    {mine, x509.ExtKeyUsageServerAuth, ServerName, time.Now(), true},
		"as a client":    {mine, x509.ExtKeyUsageClientAuth, "", time.Now(), true},
		"a clock behind": {mine, x509.ExtKeyUsageServerAuth, ServerName, time.Now().Add(-30 * time.Minute), true},
		"another name":   {mine, x509.ExtKeyUsageServerAuth, "localhost", time.Now(), false},
		"foreign":        {foreign, x509.ExtKeyUsageServerAuth, ServerName, time.Now(), false},
		"for code":       {mine, x509.ExtKeyUsageCodeSigning, "", time.Now(), false},
		"past its end":   {mine, x509.ExtKeyUsageServerAuth, ServerName, time.Now().Add(validity + time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(test.authority.cert)
			_, err := leaf.Verify(x509.VerifyOptions{
				Roots: roots, DNSName: test.server, CurrentTime: test.at, KeyUsages: []x509.ExtKeyUsage{test.use},
			})
			assert.Equal(t, test.ok, err == nil, "%v", err)
		})
	}
}

// Only nodes are servers.
func TestPeopleCannotServe(t *testing.T) {
	a := authority(t, "mine")
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	for name, serves := range map[string]bool{"node:n1": true, "user:alice": false, "admin:root": false} {
		leaf := parse(t, issue(t, a, name).Cert)
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		assert.NoError(t, err, name)
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		assert.Equal(t, serves, err == nil, "%s: %v", name, err)
	}
	for _, name := range []string{"", "alice", "client:alice", "node:../n1"} {
		_, err := a.Issue(name, time.Now())
		assert.ErrorIs(t, err, access.ErrName, name)
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	id := issue(t, authority(t, "mine"), "user:alice")
	require.NoError(t, id.Save(dir))
	for _, name := range []string{CAFile, CertFile, KeyFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}
	back, err := Load(dir)
	require.NoError(t, err)
	assert.Equal(t, id, back)

	require.NoError(t, os.Remove(filepath.Join(dir, KeyFile)))
	_, err = Load(dir)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestDamagedIdentity(t *testing.T) {
	a := authority(t, "mine")
	one, two := issue(t, a, "node:n1"), issue(t, a, "node:n2")
	for name, id := range map[string]Identity{
		"no authority":     {CA: []byte("nothing"), Cert: one.Cert, Key: one.Key},
		"another's key":    {CA: one.CA, Cert: one.Cert, Key: two.Key},
		"half certificate": {CA: one.CA, Cert: one.Cert[:len(one.Cert)/2], Key: one.Key},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := id.TLS()
			assert.Error(t, err)
		})
	}
}

// handshake returns what each end says of the other.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a pipe
	defer b.Close() //nolint:errcheck // a pipe
	done := make(chan error, 1)
	go func() {
		c := tls.Server(b, server)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte{1})
		}
		_ = b.Close()
		done <- err
	}()
	c := tls.Client(a, client)
	_ = a.SetDeadline(time.Now().Add(5 * time.Second))
	_, clientErr = c.Read(make([]byte, 1))
	_ = a.Close()
	return clientErr, <-done
}

func TestBothEndsCheck(t *testing.T) {
	mine, foreign := authority(t, "mine"), authority(t, "mine")
	conf := func(id Identity) *tls.Config {
		c, err := id.TLS()
		require.NoError(t, err)
		return c
	}
	node, client := issue(t, mine, "node:n1"), issue(t, mine, "user:alice")
	stranger := issue(t, foreign, "user:alice")
	require.False(t, bytes.Equal(stranger.CA, node.CA))
	// A stranger that trusts this cluster and shows another's certificate.
	mixed := Identity{CA: node.CA, Cert: stranger.Cert, Key: stranger.Key}

	ce, se := handshake(t, conf(client), conf(node))
	assert.NoError(t, ce)
	assert.NoError(t, se)

	_, se = handshake(t, conf(mixed), conf(node))
	assert.ErrorAs(t, se, new(x509.UnknownAuthorityError), "the server takes a foreign client")

	ce, _ = handshake(t, conf(client), conf(mixed))
	var bad *tls.CertificateVerificationError
	assert.ErrorAs(t, ce, &bad, "the client takes a foreign server")

	none := conf(client)
	none.Certificates = nil
	_, se = handshake(t, none, conf(node))
	assert.ErrorContains(t, se, "certificate")

	old := conf(client)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	_, se = handshake(t, old, conf(node))
	assert.ErrorContains(t, se, "version")
}
