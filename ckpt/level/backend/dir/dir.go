// Package dir keeps objects as files of a directory that all nodes see.
//
// An object NAME is the file DIR/NAME. It is written as DIR/.tmp/RANDOM, synced,
// read back, and renamed; then its directory is synced. DIR itself is made by
// the operator, never here: when what should be mounted there is not, nothing
// is written. Files are for the user of the daemons alone.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// tmpName is the directory of files that are being written. It is also how a
// directory is known that was in use before. No object can have this name.
const tmpName = ".tmp"

// Dir is a directory as a backend.Backend. Calls into a file system that hangs
// hang with it.
type Dir struct {
	fs   fsys.FS
	path string
	now  func() time.Time
}

var _ backend.Backend = (*Dir)(nil)

// Open uses the directory at path, which must be there. now gives the time to
// which the ages of files are compared.
func Open(files fsys.FS, path string, now func() time.Time) (*Dir, error) {
	d := &Dir{fs: files, path: filepath.Clean(path), now: now}
	info, err := files.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, d.lost()
	case err != nil:
		return nil, d.wrap("open", "", err)
	case !info.Dir:
		return nil, fmt.Errorf("%s: %w: it is not a directory", d, backend.ErrLost)
	}
	if err := fsys.MkdirIfMissing(files, d.file(tmpName)); err != nil {
		return nil, d.wrap("open", "", err)
	}
	return d, nil
}

// String implements backend.Backend.
func (d *Dir) String() string { return "directory " + d.path }

// Close implements backend.Backend.
func (d *Dir) Close() error { return nil }

func (d *Dir) file(name string) string { return filepath.Join(d.path, filepath.FromSlash(name)) }

// lost is the error of a directory that is not there.
func (d *Dir) lost() error {
	return fmt.Errorf("%s: %w: make it, or mount the file system that has it", d, backend.ErrLost)
}

// wrap says what was done to what, and gives err the meaning it has for callers.
func (d *Dir) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	what := op
	if name != "" {
		what += " " + name
	}
	var source *backend.SourceError
	switch {
	case errors.As(err, &source):
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ENOTDIR):
		if info, missing := d.fs.Stat(d.file(tmpName)); missing != nil || !info.Dir {
			return fmt.Errorf("%s: %w", what, d.lost())
		}
		return fmt.Errorf("%s: %s: %w", what, d, backend.ErrNotExist)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%s: %s: %w: remove files there, or give another directory: %w", what, d, backend.ErrNoSpace, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s: %s: %w: the daemons' user must be able to write there: %w", what, d, backend.ErrDenied, err)
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Errorf("%s: %s: %w: %w", what, d, backend.ErrUnreachable, err)
	}
	return fmt.Errorf("%s: %s: %w", what, d, err)
}

// Stat implements backend.Backend.
func (d *Dir) Stat(ctx context.Context, name string) (backend.Info, error) {
	if err := begin(ctx, name); err != nil {
		return backend.Info{}, err
	}
	info, err := d.fs.Stat(d.file(name))
	if err == nil && info.Dir {
		err = fs.ErrNotExist
	}
	if err != nil {
		return backend.Info{}, d.wrap("stat", name, err)
	}
	return backend.Info{Name: name, Size: info.Size, Modified: info.ModTime}, nil
}

// ReadAt implements backend.Backend.
func (d *Dir) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := begin(ctx, name); err != nil {
		return 0, err
	}
	f, err := d.fs.Open(d.file(name))
	if err != nil {
		return 0, d.wrap("read", name, err)
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		err = nil
	}
	return n, d.wrap("read", name, errors.Join(err, f.Close()))
}

// Delete implements backend.Backend.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	path := d.file(name)
	err := d.fs.Remove(path)
	if err == nil {
		err = d.syncDir(filepath.Dir(path))
	}
	if err = d.wrap("delete", name, err); errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// begin checks what every method checks first.
func begin(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return backend.ValidateName(name)
}
