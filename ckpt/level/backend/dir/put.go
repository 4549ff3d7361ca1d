package dir

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// copySize is how much is read and written at once, in bytes.
const copySize = 1 << 20

// errReadBack means that a file system did not keep what it was given.
var errReadBack = errors.New("what was read back is not what was written")

// Put implements backend.Backend.
func (d *Dir) Put(ctx context.Context, name string, size int64, r io.ReaderAt) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("put %s: %s: a size of %d bytes", name, d, size)
	}
	tmp := filepath.Join(d.path, tmpName, rand.Text())
	err := d.write(ctx, tmp, size, r)
	if err == nil {
		err = d.publish(tmp, name)
	}
	if err != nil {
		// What cannot be removed now, Sweep removes later.
		_ = d.fs.Remove(tmp)
	}
	return d.wrap("put", name, err)
}

// write makes the file path with size bytes of r, and reads it back.
func (d *Dir) write(ctx context.Context, path string, size int64, r io.ReaderAt) error {
	f, err := d.fs.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, f, size, r), f.Close())
}

func fill(ctx context.Context, f fsys.File, size int64, r io.ReaderAt) error {
	buf := make([]byte, min(size, copySize))
	written := blake3.New()
	if err := chunks(ctx, size, buf, func(b []byte, off int64) error {
		if err := backend.ReadSource(r, b, off); err != nil {
			return err
		}
		_, _ = written.Write(b)
		return fsys.WriteAll(f, b)
	}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	f.DropCache()
	read := blake3.New()
	if err := chunks(ctx, size, buf, func(b []byte, off int64) error {
		n, err := f.ReadAt(b, off)
		_, _ = read.Write(b[:n])
		if n == len(b) || errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	if !bytes.Equal(read.Sum(nil), written.Sum(nil)) {
		return errReadBack
	}
	return nil
}

// chunks calls each for a range of bytes after the other, buf or a part of it
// being for its content.
func chunks(ctx context.Context, size int64, buf []byte, each func(b []byte, off int64) error) error {
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := each(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// publish gives a written file its name. The directories above may be missing,
// or be removed by a Sweep just now.
func (d *Dir) publish(tmp, name string) error {
	path := d.file(name)
	err := d.fs.Rename(tmp, path)
	for try := 0; try < 3 && errors.Is(err, fs.ErrNotExist); try++ {
		if err = d.makeParents(name); err == nil {
			err = d.fs.Rename(tmp, path)
		}
	}
	if err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// makeParents makes the directories that an object's file lies in, durably.
func (d *Dir) makeParents(name string) error {
	path := d.path
	segments := strings.Split(name, "/")
	for _, segment := range segments[:len(segments)-1] {
		parent := path
		path = filepath.Join(path, segment)
		if err := fsys.MkdirIfMissing(d.fs, path); err != nil {
			return err
		}
		if err := d.syncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

// syncDir syncs a directory where the file system can: not all that are
// shared can, and those do it without being asked.
func (d *Dir) syncDir(path string) error {
	err := d.fs.SyncDir(path)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
