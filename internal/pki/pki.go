// Package pki makes the certificates with which a cluster's daemons and
// clients know one another: one authority per cluster, one leaf per node and
// per person.
//
// Leaves carry the service name ServerName instead of addresses, because a
// node's address may change while its identity does not; who a leaf belongs
// to is its common name, see package access. Only nodes' leaves are good for a
// server, so nobody else can take a node's place.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// ServerName is the DNS name in every leaf; dialers verify against it.
const ServerName = "vft.internal"

// Names of the files of a certificate directory.
const (
	CAFile   = "ca.pem"
	CertFile = "cert.pem"
	KeyFile  = "key.pem"
)

// validity is long because nothing renews certificates yet; a cluster's
// authority is thrown away with the cluster.
const validity = 10 * 365 * 24 * time.Hour

// Authority signs the leaves of one cluster.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// NewAuthority makes a new self-signed authority called name.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the authority's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := sign(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the authority: %w", err)
	}
	return &Authority{cert: cert, key: key, pem: encode("CERTIFICATE", der)}, nil
}

// Identity is one leaf with its key and the authority it trusts, as PEM.
type Identity struct {
	CA, Cert, Key []byte
}

// Issue makes a leaf for commonName ("node:n1", "user:alice").
func (a *Authority) Issue(commonName string, now time.Time) (Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Identity{}, fmt.Errorf("making a key for %s: %w", commonName, err)
	}
	cert, err := a.certify(commonName, &key.PublicKey, now)
	if err != nil {
		return Identity{}, err
	}
	raw, err := encodeKey(key)
	if err != nil {
		return Identity{}, err
	}
	return Identity{CA: a.pem, Cert: cert, Key: raw}, nil
}

// Certify makes a leaf for the key of a request, PEM.
func (a *Authority) Certify(r Request, commonName string, now time.Time) ([]byte, error) {
	return a.certify(commonName, r.key, now)
}

func (a *Authority) certify(commonName string, key *ecdsa.PublicKey, now time.Time) ([]byte, error) {
	who, err := access.Parse(commonName)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if who.Kind == access.Node {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName},
		DNSNames:    []string{ServerName},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usage,
	}
	der, err := sign(template, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	return encode("CERTIFICATE", der), nil
}

// Save writes the identity below dir, which is made with mode 0700.
func (id Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the certificate directory: %w", err)
	}
	for name, data := range map[string][]byte{CAFile: id.CA, CertFile: id.Cert, KeyFile: id.Key} {
		if err := atomicfile.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("saving an identity: %w", err)
		}
	}
	return nil
}

// Load reads an identity that Save wrote.
func Load(dir string) (Identity, error) {
	var id Identity
	for name, into := range map[string]*[]byte{CAFile: &id.CA, CertFile: &id.Cert, KeyFile: &id.Key} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return Identity{}, fmt.Errorf("loading an identity: %w", err)
		}
		*into = data
	}
	return id, nil
}

// TLS returns the configuration for both ends of a connection: TLS 1.3, each
// end shows its leaf, each end checks the other against the same authority.
func (id Identity) TLS() (*tls.Config, error) {
	leaf, err := tls.X509KeyPair(id.Cert, id.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if ca, _ := pem.Decode(id.CA); ca != nil { // for those that only know its fingerprint, see Pinned
		leaf.Certificate = append(leaf.Certificate, ca.Bytes)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(id.CA) {
		return nil, errors.New("reading the cluster's authority: no certificate in it")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{leaf},
		RootCAs:      roots,
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ServerName:   ServerName,
	}, nil
}

func sign(template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("drawing a serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
