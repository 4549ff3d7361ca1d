package object

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

const (
	keySize     = 32      // bytes of a pack's key
	sealSize    = 16      // bytes that sealing adds
	maxEnvelope = 4 << 10 // bytes of an encrypted key
	indexNonce  = 1<<32 - 1
)

// sealer seals and opens what is in one pack, under a key that no other pack
// has. A nil sealer is that of a pack that is not encrypted.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead}, nil
}

// makeSealer makes a key and the envelope that goes into the pack.
func makeSealer(to *Identity) (_ *sealer, envelope []byte, err error) {
	if to == nil {
		return nil, nil, nil
	}
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, nil, err
	}
	if envelope, err = to.Encrypt(key); err != nil {
		return nil, nil, err
	}
	s, err := newSealer(key)
	return s, envelope, err
}

// openSealer gets the key out of an envelope.
func openSealer(envelope []byte, ids []*Identity) (*sealer, error) {
	err := fmt.Errorf("%w: give the file with --ckpt-identity", ErrIdentity)
	for _, id := range ids {
		if id == nil {
			continue
		}
		var key []byte
		if key, err = id.Decrypt(envelope, keySize); err == nil {
			return newSealer(key)
		}
	}
	return nil, err
}

// overhead is how many bytes sealing adds.
func (s *sealer) overhead() int {
	if s == nil {
		return 0
	}
	return sealSize
}

// nonce numbers the extents; the index is numbered indexNonce. A key serves
// one pack, and so no nonce twice.
func (s *sealer) nonce(n uint32) []byte {
	nonce := make([]byte, s.aead.NonceSize())
	binary.LittleEndian.PutUint32(nonce, n)
	return nonce
}

// seal returns b sealed, in the same memory where there is room.
func (s *sealer) seal(n uint32, b []byte) []byte {
	if s == nil {
		return b
	}
	return s.aead.Seal(b[:0], s.nonce(n), b, nil) //nolint:gosec // a counter; the key is the pack's own
}

// open undoes seal, in the same memory.
func (s *sealer) open(n uint32, b []byte) ([]byte, error) {
	if s == nil {
		return b, nil
	}
	return s.aead.Open(b[:0], s.nonce(n), b, nil)
}
