package object

import (
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// ID names an object by its content: the first 16 bytes of a BLAKE3 hash. The
// zero value stands for content that is all zero bytes and never stored.
type ID [16]byte

// IsZero reports whether the id is that of zero bytes.
func (id ID) IsZero() bool { return id == ID{} }

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes what String returns.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads what String returns, and nothing else.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	b, err := parseName(s)
	if err != nil {
		return ID{}, fmt.Errorf("object id %q: %w", s, err)
	}
	return b, nil
}

// PackName names a pack: the first 16 bytes of the BLAKE3 hash of its footer,
// and so of everything in it.
type PackName [16]byte

// String returns 32 hexadecimal digits.
func (n PackName) String() string { return hex.EncodeToString(n[:]) }

// ParsePackName reads what String writes.
func ParsePackName(s string) (PackName, error) {
	b, err := parseName(s)
	if err != nil {
		return PackName{}, fmt.Errorf("pack name %q: %w", s, err)
	}
	return b, nil
}

// parseName accepts lower-case digits only: a name has one spelling.
func parseName(s string) (b [16]byte, err error) {
	if n, err := hex.Decode(b[:], []byte(s[:min(len(s), 32)])); err != nil || n != len(b) || hex.EncodeToString(b[:]) != s {
		return b, fmt.Errorf("want 32 lower-case hexadecimal digits")
	}
	return b, nil
}

// Kind says what an object is for. Equal bytes of different kinds have
// different ids.
type Kind uint8

// The kinds of objects.
const (
	KindPage Kind = 1 // a page of guest memory, PageSize bytes
	KindNode Kind = 2 // a node of a page table
	KindData Kind = 3 // anything else

	kinds = 4 // one above the last
)

func (k Kind) valid() bool { return k >= KindPage && k < kinds }

// String returns "page", "node" or "data".
func (k Kind) String() string {
	switch k {
	case KindPage:
		return "page"
	case KindNode:
		return "node"
	case KindData:
		return "data"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// checkLength fails when an object of the kind cannot have n bytes.
func (k Kind) checkLength(n int) error {
	switch {
	case !k.valid():
		return fmt.Errorf("unknown %v of object", k)
	case k == KindPage && n != PageSize:
		return fmt.Errorf("a page has %d bytes, not %d", PageSize, n)
	case n < 1 || n > MaxSize:
		return fmt.Errorf("a %v object has 1 to %d bytes, not %d", k, MaxSize, n)
	}
	return nil
}

// Sizes in bytes.
const (
	PageSize = 4096    // of every page object
	MaxSize  = 1 << 20 // of the largest object
)

// hashers are reused, for they are large.
var hashers = [kinds]sync.Pool{
	KindPage: {New: func() any { return blake3.New() }},
	KindNode: {New: func() any { return blake3.NewDeriveKey("vft ckpt object node 1") }},
	KindData: {New: func() any { return blake3.NewDeriveKey("vft ckpt object data 1") }},
}

// Sum returns the id of an object. It panics when there is no such kind.
func Sum(k Kind, data []byte) (id ID) {
	if !k.valid() {
		panic(fmt.Sprintf("object.Sum: unknown %v", k))
	}
	h := hashers[k].Get().(*blake3.Hasher)
	h.Reset()
	_, _ = h.Write(data) // never fails
	var sum [32]byte
	h.Sum(sum[:0])
	hashers[k].Put(h)
	copy(id[:], sum[:])
	return id
}

// digest is the first half of the BLAKE3 hash of what is in a pack.
func digest(b []byte) (d [16]byte) {
	return Sum(KindPage, b)
}
