// Package export reads and writes export files: an epoch of a job with all that
// the job needs to go on from it in another cluster. docs/CKPT.md, "Export
// files", specifies the format. A file is read and written from front to back.
package export

import (
	"errors"
	"fmt"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// magic begins every file; other versions have another number.
const (
	magicName = "vft export "
	magic     = magicName + "1\n"
)

// Type says what is in a record.
type Type byte

// The types of records, in the order in which they first come.
const (
	Job      Type = 'J' // what the caller says of the job and the epoch
	Manifest Type = 'M' // of a part
	Extent   Type = 'E' // objects
	Blob     Type = 'B' // begins a blob
	data     Type = 'D' // of the blob before; Reader.Content reads it
	end      Type = 'Z'
)

// Sizes in bytes.
const (
	maxJob      = 16 << 20
	maxManifest = 1 << 20
	maxData     = 1 << 20
	digestSize  = 32 // of a blob
	blobSize    = digestSize + 8
	endSize     = 8
	headSize    = 1 + 4 // of a record
	sumSize     = 16    // behind a record

	extentHead = 1 + 1 + 2 + 4
	maxObjects = 256 // in one extent
	maxExtent  = object.MaxSize + extentHead + maxObjects*(len(object.ID{})+4)
)

// String names the type for people.
func (t Type) String() string {
	switch t {
	case Job:
		return "job"
	case Manifest:
		return "manifest"
	case Extent:
		return "extent"
	case Blob:
		return "blob"
	case data:
		return "data"
	case end:
		return "end"
	}
	return fmt.Sprintf("record of type %#02x", byte(t))
}

// limit is how many bytes a record of the type may have, -1 when there is no
// such type.
func (t Type) limit() int {
	switch t {
	case Job:
		return maxJob
	case Manifest:
		return maxManifest
	case Extent:
		return maxExtent
	case Blob:
		return blobSize
	case data:
		return maxData
	case end:
		return endSize
	}
	return -1
}

var (
	// ErrDamaged means that a file is not whole or not what was written; see
	// DamageError.
	ErrDamaged = errors.New("the export file is damaged")
	// ErrVersion means that a file is no export file, or one of another version.
	ErrVersion = errors.New("not an export file that this vft knows")
)

// DamageError says where a file is damaged. errors.Is(err, ErrDamaged).
type DamageError struct {
	Record uint64 // that is damaged, from 1; 0: the file's first line
	Offset int64  // in the file at which the record begins, bytes
	Reason string
	Err    error // the cause, where there is one
}

// Error says where the file is damaged and how.
func (e *DamageError) Error() string {
	s := fmt.Sprintf("the export file is damaged at byte %d (record %d): %s", e.Offset, e.Record, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes the error an ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Err }
