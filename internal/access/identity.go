// Package access says who is at the other end of a connection and what they
// may do there: identities from certificates, and one rule per RPC method
// (docs/CLUSTER.md). The services keep their own tables of rules.
package access

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Kind is what somebody is to the cluster.
type Kind string

// Kinds of identities.
const (
	Node  Kind = "node"  // a node's daemons
	User  Kind = "user"  // submits jobs and sees their own
	Admin Kind = "admin" // may do all that people may do
)

// Identity is who a certificate belongs to. Its text is the certificate's
// common name, KIND:NAME.
type Identity struct {
	Kind Kind
	Name string
}

func (i Identity) String() string { return string(i.Kind) + ":" + i.Name }

// ErrName says that a text is no identity, or no name of one.
var ErrName = errors.New("not a name")

// maxName bounds names, in bytes: they are parts of file names.
const maxName = 64

// Parse reads a common name.
func Parse(commonName string) (Identity, error) {
	kind, name, _ := strings.Cut(commonName, ":")
	id := Identity{Kind: Kind(kind), Name: name}
	switch id.Kind {
	case Node, User, Admin:
	default:
		return Identity{}, fmt.Errorf("%q is neither node:ID, user:NAME nor admin:NAME: %w", commonName, ErrName)
	}
	return id, CheckName(name)
}

// CheckName tells whether a node or a person may be called so: up to 64
// letters, digits, dots, underscores and dashes, a letter or digit first.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%q has %d bytes, and may have 1 to %d: %w", name, len(name), maxName, ErrName)
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("%q may only have letters, digits, dots, underscores and dashes, and must begin with a letter or digit: %w", name, ErrName)
		}
	}
	return nil
}

type key struct{}

// With returns a context of a call that was made by who.
func With(ctx context.Context, who Identity) context.Context {
	return context.WithValue(ctx, key{}, who)
}

// From returns who made a call. The zero identity may do nothing.
func From(ctx context.Context) Identity {
	who, _ := ctx.Value(key{}).(Identity)
	return who
}

// Handler tells next who calls, by the certificate of the TLS connection,
// which the handshake has verified.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			if who, err := Parse(r.TLS.VerifiedChains[0][0].Subject.CommonName); err == nil {
				r = r.WithContext(With(r.Context(), who))
			}
		}
		next.ServeHTTP(w, r)
	})
}
