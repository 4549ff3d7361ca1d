package faultfs

import (
	"bytes"
	"errors"
	"io"
	"syscall"
)

// file is an open file.
type file struct {
	m    *FS
	n    *node
	path string
}

// Write implements fsys.File.
func (f *file) Write(b []byte) (int, error) {
	defer f.m.mu.Unlock()
	err := f.m.enter("write", f.path)
	f.n.mod = f.m.now
	if errors.Is(err, ErrShort) || errors.Is(err, ErrQuietShort) {
		f.n.data = append(f.n.data, b[:len(b)/2]...)
		if errors.Is(err, ErrQuietShort) {
			return len(b) / 2, nil
		}
		return len(b) / 2, fail("write", f.path, syscall.ENOSPC)
	}
	if err != nil {
		return 0, err
	}
	kept := b
	if f.m.written != nil {
		kept = f.m.written(f.path, bytes.Clone(b))
	}
	f.n.data = append(f.n.data, kept...)
	return len(b), nil
}

// WriteAt implements fsys.Scratch. What it writes over is lost as far as a
// crash is concerned.
func (f *file) WriteAt(b []byte, off int64) (int, error) {
	defer f.m.mu.Unlock()
	err := f.m.enter("writeat", f.path)
	f.n.mod = f.m.now
	n := len(b)
	switch {
	case errors.Is(err, ErrShort), errors.Is(err, ErrQuietShort):
		n /= 2
	case err != nil:
		return 0, err
	}
	if grow := off + int64(n) - int64(len(f.n.data)); grow > 0 {
		f.n.data = append(f.n.data, make([]byte, grow)...)
	}
	f.n.synced = min(f.n.synced, int(off))
	copy(f.n.data[off:], b[:n])
	if errors.Is(err, ErrShort) {
		err = fail("writeat", f.path, syscall.ENOSPC)
	} else {
		err = nil
	}
	return n, err
}

// ReadAt implements fsys.File.
func (f *file) ReadAt(b []byte, off int64) (int, error) {
	defer f.m.mu.Unlock()
	if err := f.m.enter("read", f.path); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fail("read", f.path, syscall.EINVAL)
	}
	if off > int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Sync implements fsys.File.
func (f *file) Sync() error {
	defer f.m.mu.Unlock()
	if err := f.m.enter("sync", f.path); err != nil {
		return err
	}
	f.n.synced = len(f.n.data)
	return nil
}

// Size implements fsys.File.
func (f *file) Size() (int64, error) {
	defer f.m.mu.Unlock()
	return int64(len(f.n.data)), f.m.enter("size", f.path)
}

// WriteBack implements fsys.File. It promises nothing, and does nothing.
func (f *file) WriteBack(int64, int64, bool) error {
	defer f.m.mu.Unlock()
	return f.m.enter("writeback", f.path)
}

// DropCache implements fsys.File.
func (f *file) DropCache() {}

// Close implements fsys.File.
func (f *file) Close() error {
	defer f.m.mu.Unlock()
	return f.m.enter("close", f.path)
}
