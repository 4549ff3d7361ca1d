package ckpt

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

var (
	// ErrVersion means that a store or a manifest has another format; see VersionError.
	ErrVersion = errors.New("checkpoint format is not known")
	// ErrNotStore means that a directory holds other things than a store.
	ErrNotStore = errors.New("not a checkpoint store")
	// ErrLocked means that another process has the store open.
	ErrLocked = fsys.ErrLocked
	// ErrClosed means that the store has been closed.
	ErrClosed = errors.New("checkpoint store is closed")
	// ErrName means that a job name, a guest number or a digest cannot be one.
	ErrName = errors.New("bad name")
	// ErrNotFound means that there is no such part or blob.
	ErrNotFound = errors.New("not in the checkpoint store")
	// ErrConflict means that another part is stored under the same id. Parts are write-once.
	ErrConflict = errors.New("another part is stored under this id")
	// ErrMismatch means that something whole and readable is not what was asked for.
	ErrMismatch = errors.New("not the content that was asked for")
	// ErrCorrupt means that what is stored is not what was stored; see CorruptError.
	ErrCorrupt = errors.New("corrupt")
	// ErrTransfer means that a source gave something else than what it was asked for.
	ErrTransfer = errors.New("bad transfer of a part")
	// ErrStalled means that the disk did not take data for too long.
	ErrStalled = errors.New("disk does not take data")
	// ErrAborted means that the writer of a part gave it up.
	ErrAborted = errors.New("part was given up")
	// ErrDeleted means that a part was deleted while it was being written.
	ErrDeleted = errors.New("part was deleted while it was being written")
)

// VersionError says which format was found where. errors.Is(err, ErrVersion).
type VersionError struct {
	What  string // the file or part
	Found string
	Known string
}

// Error says what was found and what to do about it.
func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format %s, this vft knows %s: use the vft that wrote it, or give another directory",
		e.What, e.Found, e.Known)
}

// Is makes the error an ErrVersion.
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// CorruptError says what of a part or blob is damaged or missing.
// errors.Is(err, ErrCorrupt).
type CorruptError struct {
	Part   PartID // zero for a blob
	Blob   string // digest, empty for a part
	What   string // "manifest", "page 7 of block pc.ram"; empty for a blob
	Reason string
	Err    error // of the object store or operating system, where there is one
}

// Error names the part and what of it is damaged.
func (e *CorruptError) Error() string {
	s := "blob " + e.Blob
	if e.Blob == "" {
		s = fmt.Sprintf("part %v: %s", e.Part, e.What)
	}
	s += " is corrupt: " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes the error an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// withHint says what to do about a full disk.
func withHint(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("no space left for checkpoints in %s: remove old jobs' checkpoints or other files there, or give a directory on a larger disk: %w", dir, err)
	}
	return err
}
