package object

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
)

// maxIdentityFile bounds the file that LoadIdentity reads, in bytes.
const maxIdentityFile = 64 << 10

// Identity is a secret key that checkpoints are encrypted to, an X25519
// identity of age (https://age-encryption.org/v1). It may have older keys
// beside it, which only decrypt.
type Identity struct {
	keys []*age.X25519Identity // the first encrypts
}

// GenerateIdentity makes a new identity.
func GenerateIdentity() (*Identity, error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	return &Identity{keys: []*age.X25519Identity{key}}, nil
}

// LoadIdentity reads an identity file as age-keygen writes it. With several
// identities in the file the first one encrypts, and all decrypt.
func LoadIdentity(file string) (*Identity, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	found, err := age.ParseIdentities(io.LimitReader(f, maxIdentityFile))
	if err != nil {
		return nil, fmt.Errorf("identity file %s: %w: make one with age-keygen", file, err)
	}
	id := &Identity{}
	for _, x := range found {
		key, ok := x.(*age.X25519Identity)
		if !ok {
			return nil, fmt.Errorf("identity file %s holds a key that is not of the X25519 kind: make one with age-keygen", file)
		}
		id.keys = append(id.keys, key)
	}
	return id, nil
}

// Text returns the secret keys as an identity file has them, one per line.
func (i *Identity) Text() string {
	var b bytes.Buffer
	for _, key := range i.keys {
		fmt.Fprintln(&b, key)
	}
	return b.String()
}

// String returns the public key that is encrypted to; it is not secret.
func (i *Identity) String() string { return i.keys[0].Recipient().String() }

// Encrypt returns plain as an age file.
func (i *Identity) Encrypt(plain []byte) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, i.keys[0].Recipient())
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return sealed.Bytes(), nil
}

// Decrypt returns what is in an age file, which may be at most limit bytes.
// The error is an ErrIdentity when the file is encrypted to another identity.
func (i *Identity) Decrypt(sealed []byte, limit int) ([]byte, error) {
	keys := make([]age.Identity, len(i.keys))
	for n, key := range i.keys {
		keys[n] = key
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), keys...)
	var other *age.NoIdentityMatchError
	switch {
	case errors.As(err, &other):
		return nil, fmt.Errorf("%w: it is encrypted to another one than %v", ErrIdentity, i)
	case err != nil:
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("decrypt: %w", err)
	case len(plain) > limit:
		return nil, fmt.Errorf("decrypt: more than %d bytes", limit)
	}
	return plain, nil
}
