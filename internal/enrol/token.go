// Package enrol makes clusters and lets nodes and people into them: the text of
// a token, what `vft cluster init` writes, and what somebody does who joins
// with a token (docs/CLUSTER.md).
package enrol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/mpirun-vft/vft/internal/pki"
)

// tokenVersion begins the text of every token.
const tokenVersion = "vft1"

// maxToken bounds the text of a token, in bytes.
const maxToken = 4096

// ErrToken says that a text is no token.
var ErrToken = errors.New("not a token of `vft cluster token`")

// Token is what somebody needs to enrol.
type Token struct {
	ID        string
	Secret    []byte // secretSize bytes
	Authority pki.Fingerprint
	Addresses []string // host:port of coordinators, at least one
}

const (
	idSize     = 6  // bytes
	secretSize = 24 // bytes
)

// NewToken draws a token for a cluster. It is of use when the cluster has
// been told its id and Digest.
func NewToken(authority pki.Fingerprint, addresses []string) (Token, error) {
	b := make([]byte, idSize+secretSize)
	if _, err := rand.Read(b); err != nil {
		return Token{}, fmt.Errorf("drawing a token: %w", err)
	}
	return Token{ID: hex.EncodeToString(b[:idSize]), Secret: b[idSize:], Authority: authority, Addresses: addresses}, nil
}

// Digest is what the cluster keeps of the secret.
func (t Token) Digest() []byte {
	d := sha256.Sum256(t.Secret)
	return d[:]
}

// String is the text that is given to who joins:
// vft1.ID.SECRET.FINGERPRINT.ADDRESSES, the middle two in URL-safe base64, the
// addresses apart by commas.
func (t Token) String() string {
	b := base64.RawURLEncoding
	return strings.Join([]string{
		tokenVersion, t.ID, b.EncodeToString(t.Secret), b.EncodeToString(t.Authority[:]), strings.Join(t.Addresses, ","),
	}, ".")
}

// ParseToken reads what String wrote.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxToken {
		return Token{}, fmt.Errorf("%w: it is longer than %d bytes", ErrToken, maxToken)
	}
	fields := strings.SplitN(text, ".", 5)
	if len(fields) != 5 {
		return Token{}, fmt.Errorf("%w: parts are missing", ErrToken)
	}
	if fields[0] != tokenVersion {
		return Token{}, fmt.Errorf("%w: it begins with %q, this vft reads %s", ErrToken, fields[0], tokenVersion)
	}
	t := Token{ID: fields[1]}
	b := base64.RawURLEncoding.Strict()
	if id, err := hex.DecodeString(t.ID); err != nil || len(id) != idSize || strings.ToLower(t.ID) != t.ID {
		return Token{}, fmt.Errorf("%w: its id is damaged", ErrToken)
	}
	var err error
	if t.Secret, err = b.DecodeString(fields[2]); err != nil || len(t.Secret) != secretSize {
		return Token{}, fmt.Errorf("%w: its secret is damaged", ErrToken)
	}
	fingerprint, err := b.DecodeString(fields[3])
	if err != nil || len(fingerprint) != len(t.Authority) {
		return Token{}, fmt.Errorf("%w: its fingerprint is damaged", ErrToken)
	}
	copy(t.Authority[:], fingerprint)
	t.Addresses = strings.Split(fields[4], ",")
	for _, a := range t.Addresses {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return Token{}, fmt.Errorf("%w: %q is no address of a coordinator", ErrToken, a)
		}
	}
	return t, nil
}
