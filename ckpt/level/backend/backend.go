// Package backend is what a level outside the nodes needs of a place to store
// things: named objects that appear and disappear as a whole. Package dir
// keeps them in a directory of a shared file system, package s3 in a bucket.
// All pass the tests of package backendtest.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// What errors of a Backend wrap, where it matters to a caller or a user.
var (
	// ErrNotExist means that there is no object of this name.
	ErrNotExist = errors.New("no such object")
	// ErrNoSpace means that the place is full or a quota is used up.
	ErrNoSpace = errors.New("no space left")
	// ErrDenied means that credentials or permissions are missing or wrong.
	ErrDenied = errors.New("access denied")
	// ErrUnreachable means that the place did not answer. It may later.
	ErrUnreachable = errors.New("not reachable")
	// ErrLost means that the directory or bucket itself is missing.
	ErrLost = errors.New("does not exist or is not mounted")
	// ErrName means that a name cannot be that of an object.
	ErrName = errors.New("bad object name")
)

// SourceError is the error of a Put whose reader failed: the place is not to
// blame. Put never gives it another meaning.
type SourceError struct{ Err error }

// Error implements error.
func (e *SourceError) Error() string { return "read what is to be put: " + e.Err.Error() }

// Unwrap returns the reader's error.
func (e *SourceError) Unwrap() error { return e.Err }

// ReadSource fills b from off of what a Put is given. Its errors are
// SourceErrors.
func ReadSource(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%d bytes at %d, %d expected: %w", n, off, len(b), io.ErrUnexpectedEOF)
	}
	return &SourceError{err}
}

// Info describes an object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // when it was put, by the clock of the place
}

// Backend stores objects: byte strings under names that [ValidateName]
// accepts. What one process has put, every process finds from then on, in
// lists too. Methods may be called at the same time, from several processes.
// They return soon after their context ends, or when the place has been silent
// for too long. Errors name the object and the place, and wrap the errors of
// this package where one fits.
type Backend interface {
	// String names the place for people, without secrets.
	String() string
	// Put stores size bytes of r, in place of what had this name. Others see
	// the old object or the new one, complete; what Put reports as stored
	// survives a crash. When several put one name, one of them wins. After an
	// error either object may be there. r may be read in any order and more
	// than once.
	Put(ctx context.Context, name string, size int64, r io.ReaderAt) error
	// ReadAt reads like io.ReaderAt: fewer bytes than len(p) come with an
	// error, io.EOF at the end of the object.
	ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error)
	// Stat describes an object.
	Stat(ctx context.Context, name string) (Info, error)
	// List calls each with every object whose name begins with prefix, in no
	// certain order. Objects that come or go meanwhile may be missed or not.
	// It returns the first error of each. That may use the Backend.
	List(ctx context.Context, prefix string, each func(Info) error) error
	// Delete removes an object. One that is not there is no error.
	Delete(ctx context.Context, name string) error
	// Sweep removes what Puts that were interrupted more than age ago left
	// behind. No name shows such things.
	Sweep(ctx context.Context, age time.Duration) error
	// Close frees what the Backend holds. No method may be running.
	Close() error
}

// maxName bounds an object's name, in bytes. With a prefix it stays below what
// S3 allows, 1024 bytes, and each segment below what file systems allow.
const (
	maxName    = 480
	maxSegment = 240
)

// ValidateName returns an ErrName unless name is segments of letters, digits,
// dots, dashes and underscores, none starting with a dot, between slashes.
func ValidateName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%w: longer than %d bytes", ErrName, maxName)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if segment == "" || segment[0] == '.' || len(segment) > maxSegment || !validChars(segment) {
			return fmt.Errorf("%w: %q", ErrName, name)
		}
	}
	return nil
}

// ValidatePrefix returns an ErrName unless some name may begin with prefix.
func ValidatePrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return ValidateName(prefix + "x")
}

func validChars(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// ReadAll reads a whole object of at most limit bytes.
func ReadAll(ctx context.Context, b Backend, name string, limit int64) ([]byte, error) {
	info, err := b.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, fmt.Errorf("%s: %s: %d bytes, at most %d expected", b, name, info.Size, limit)
	}
	data := make([]byte, info.Size)
	if n, err := b.ReadAt(ctx, name, data, 0); n < len(data) {
		return nil, err
	}
	return data, nil
}
