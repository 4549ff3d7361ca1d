package object

import (
	"errors"
	"fmt"
)

// Errors to decide on.
var (
	// ErrNotFound means that there is no such object or pack in the store.
	ErrNotFound = errors.New("not in the object store")
	// ErrClosed means that the store or the batch has been closed.
	ErrClosed = errors.New("object store or batch is closed")
	// ErrCorrupt means that what is stored is not what was stored; see CorruptError.
	ErrCorrupt = errors.New("corrupt")
	// ErrExtent means that an extent is not one, or that an object in it is not
	// what its id says.
	ErrExtent = errors.New("bad extent")
	// ErrVersion means that a pack has a format that this vft does not know.
	ErrVersion = errors.New("unknown format of pack")
	// ErrIdentity means that a pack is encrypted, and not to the identity given.
	ErrIdentity = errors.New("the identity that checkpoints are encrypted to is missing")
)

// CorruptError says where stored data are damaged. errors.Is(err, ErrCorrupt).
type CorruptError struct {
	Pack   PackName
	Extent int // number in the pack, -1 for the pack's header, index or footer
	ID     ID  // of the object, zero when it is not about one object
	Reason string
	Err    error // of the operating system, where there is one
}

// Error names pack, extent and object.
func (e *CorruptError) Error() string {
	s := fmt.Sprintf("pack %v", e.Pack)
	if e.Extent >= 0 {
		s += fmt.Sprintf(", extent %d", e.Extent)
	}
	if !e.ID.IsZero() {
		s += fmt.Sprintf(", object %v", e.ID)
	}
	s += " is corrupt: " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes the error an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns the operating system's error.
func (e *CorruptError) Unwrap() error { return e.Err }
