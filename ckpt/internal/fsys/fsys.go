// Package fsys is all that the checkpoint store does to a disk, as an
// interface, so that tests can make every single call fail (package faultfs).
// [OS] is the real thing.
package fsys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"
)

// ErrLocked means that another process holds a lock file.
var ErrLocked = errors.New("in use by another process")

// FS is a file system. Errors are those of the operating system: fs.ErrExist,
// fs.ErrNotExist and errnos are found in them with errors.Is. Its methods may
// be called from several goroutines at once.
type FS interface {
	// MakeRoot makes dir and what is missing above it, durably. It leaves a
	// directory that is there alone.
	MakeRoot(dir string) error
	// Restrict takes the rights of group and others away from dir.
	Restrict(dir string) error
	// Lock takes the lock file path until it is closed, or fails with ErrLocked.
	Lock(path string) (io.Closer, error)
	Mkdir(path string) error
	// Create makes a file that must not be there yet.
	Create(path string) (File, error)
	// Open opens a file for reading.
	Open(path string) (File, error)
	// OpenScratch opens a file for reading and writing anywhere, and makes it
	// when it is missing. A crash may leave anything of it.
	OpenScratch(path string) (Scratch, error)
	// Rename replaces a file, and refuses to replace a directory that is not empty.
	Rename(from, to string) error
	// Remove removes a file or an empty directory. Open files stay readable.
	Remove(path string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	Stat(path string) (Info, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(path string) error
	// Free returns how many bytes can still be written.
	Free(path string) (int64, error)
}

// Info describes a file or directory.
type Info struct {
	Size    int64 // bytes
	Dir     bool
	ModTime time.Time
}

// File is an open file: written from start to end, or read anywhere.
type File interface {
	io.Writer
	io.ReaderAt
	// Sync makes the content durable.
	Sync() error
	Size() (int64, error)
	// WriteBack asks that n bytes from off go to the device now, without
	// making them durable; with wait it returns when they have arrived. It
	// keeps a later Sync short, and lets a writer feel how fast the device is.
	WriteBack(off, n int64, wait bool) error
	// DropCache asks that the next read come from the device. It may do nothing.
	DropCache()
	Close() error
}

// Scratch is an open file of which nothing need last.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Close() error
}

// RemoveAll removes path and everything in it. What is absent is no error.
func RemoveAll(fsys FS, path string) error {
	info, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Dir {
		names, err := fsys.ReadDir(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := RemoveAll(fsys, filepath.Join(path, name)); err != nil {
				return err
			}
		}
	}
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// MkdirIfMissing makes a directory unless it is there.
func MkdirIfMissing(fsys FS, path string) error {
	if err := fsys.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// WriteAll writes b and treats a short write as a failure.
func WriteAll(w io.Writer, b []byte) error {
	n, err := w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// WriteFile makes a file that must not be there yet and syncs it, but not its
// directory.
func WriteFile(fsys FS, path string, b []byte) error {
	f, err := fsys.Create(path)
	if err != nil {
		return err
	}
	err = WriteAll(f, b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadFile reads a file of at most limit bytes.
func ReadFile(fsys FS, path string, limit int64) (_ []byte, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d expected", path, size, limit)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
