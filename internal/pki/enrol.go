package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// AuthorityKeyFile is the authority's key in the certificate directory of a
// node that may sign.
const AuthorityKeyFile = "ca-key.pem"

// Fingerprint is the SHA-256 of an authority's certificate.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns that of the certificate in PEM.
func FingerprintOf(ca []byte) (Fingerprint, error) {
	block, _ := pem.Decode(ca)
	if block == nil || block.Type != "CERTIFICATE" {
		return Fingerprint{}, errors.New("reading the cluster's authority: no certificate in it")
	}
	return sha256.Sum256(block.Bytes), nil
}

// Certificate is the authority's certificate, PEM.
func (a *Authority) Certificate() []byte { return a.pem }

// Name is what the cluster is called.
func (a *Authority) Name() string { return a.cert.Subject.CommonName }

// Key is the authority's key, PEM.
func (a *Authority) Key() ([]byte, error) { return encodeKey(a.key) }

// SaveKey writes the authority's key into a certificate directory.
func (a *Authority) SaveKey(dir string) error {
	key, err := a.Key()
	if err != nil {
		return err
	}
	return SaveAuthorityKey(dir, key)
}

// SaveAuthorityKey writes a key as Key returns it into a certificate directory.
func SaveAuthorityKey(dir string, key []byte) error {
	if err := atomicfile.WriteFile(filepath.Join(dir, AuthorityKeyFile), key, 0o600); err != nil {
		return fmt.Errorf("saving the authority's key: %w", err)
	}
	return nil
}

// LoadAuthority reads the authority whose key is in a certificate directory;
// os.ErrNotExist when the key is not there.
func LoadAuthority(dir string) (*Authority, error) {
	raw, err := os.ReadFile(filepath.Join(dir, AuthorityKeyFile))
	if err != nil {
		return nil, fmt.Errorf("loading the authority: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("loading the authority: %w", err)
	}
	pair, err := tls.X509KeyPair(ca, raw) // compares the two
	if err != nil {
		return nil, fmt.Errorf("loading the authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("loading the authority: its key is of another kind")
	}
	return &Authority{cert: pair.Leaf, key: key, pem: ca}, nil
}

// NewKey makes a key for a leaf, PEM.
func NewKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return encodeKey(key)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return encode("PRIVATE KEY", raw), nil
}

// NewRequest returns a request to certify a key (PEM), PKCS #10 in DER. It
// names nobody: the authority decides on the name.
func NewRequest(key []byte) ([]byte, error) {
	block, _ := pem.Decode(key)
	if block == nil {
		return nil, errors.New("reading the key: not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, parsed)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return der, nil
}

// Request is a request whose sender has proven to have the key.
type Request struct {
	key *ecdsa.PublicKey
	// Digest is the SHA-256 of the public key as it will be in the certificate.
	Digest [sha256.Size]byte
}

// ReadRequest reads what NewRequest made and checks its signature.
func ReadRequest(der []byte) (Request, error) {
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return Request{}, fmt.Errorf("reading a certificate request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return Request{}, fmt.Errorf("reading a certificate request: %w", err)
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return Request{}, errors.New("reading a certificate request: its key is not an ECDSA key on P-256")
	}
	return Request{key: key, Digest: sha256.Sum256(r.RawSubjectPublicKeyInfo)}, nil
}

// ErrOtherCluster says that a node is not of the authority that was named.
var ErrOtherCluster = errors.New("it is a node of another cluster: its authority has not the fingerprint that the token names")

// Pinned returns the configuration for calling a node of a cluster of which
// only the authority's fingerprint is known. The node's certificate must be of
// that authority, which it sends along.
func Pinned(want Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ServerName,
		// The authority is not known before the other end has shown it:
		// VerifyConnection does what is skipped here.
		InsecureSkipVerify: true, //nolint:gosec // verified below
		VerifyConnection: func(state tls.ConnectionState) error {
			roots := x509.NewCertPool()
			found := false
			for _, c := range state.PeerCertificates[1:] {
				if sha256.Sum256(c.Raw) == want {
					roots.AddCert(c)
					found = true
				}
			}
			if !found {
				return ErrOtherCluster
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: roots, DNSName: ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			return err
		},
	}
}
