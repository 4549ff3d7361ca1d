package dir

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// List implements backend.Backend. Files whose names cannot be those of
// objects, such as those that NFS makes, are left out.
func (d *Dir) List(ctx context.Context, prefix string, each func(backend.Info) error) error {
	if err := backend.ValidatePrefix(prefix); err != nil {
		return err
	}
	if err := d.alive("list"); err != nil {
		return err
	}
	start, _ := path.Split(prefix)
	return d.walk(ctx, path.Clean(start), prefix, each)
}

// alive tells an empty directory from one that went away: an empty list must
// mean that there are no objects.
func (d *Dir) alive(op string) error {
	_, err := d.fs.Stat(d.file(tmpName))
	return d.wrap(op, "", err)
}

// walk lists what is below dir, "." for all.
func (d *Dir) walk(ctx context.Context, dir, prefix string, each func(backend.Info) error) error {
	return d.eachIn(ctx, dir, func(name string, info fsys.Info) error {
		switch below := strings.HasPrefix(name, prefix); {
		case backend.ValidateName(name) != nil:
			return nil
		case info.Dir && (below || strings.HasPrefix(prefix, name+"/")):
			return d.walk(ctx, name, prefix, each)
		case !info.Dir && below:
			return each(backend.Info{Name: name, Size: info.Size, Modified: info.ModTime})
		default:
			return nil
		}
	})
}

// eachIn calls each with what is in a directory. That the directory or
// something in it goes away meanwhile is no error.
func (d *Dir) eachIn(ctx context.Context, dir string, each func(name string, info fsys.Info) error) error {
	names, err := d.fs.ReadDir(d.file(dir))
	if err != nil {
		return d.wrap("list", dir, unlessMissing(err))
	}
	for _, base := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(dir, base)
		info, err := d.fs.Stat(d.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d.wrap("list", name, err)
		}
		if err := each(name, info); err != nil {
			return err
		}
	}
	return nil
}

// Sweep implements backend.Backend. It also removes directories that have been
// empty for that long.
func (d *Dir) Sweep(ctx context.Context, age time.Duration) error {
	if err := d.alive("sweep"); err != nil {
		return err
	}
	before := d.now().Add(-age)
	if err := d.eachIn(ctx, tmpName, func(name string, info fsys.Info) error {
		if info.Dir || !info.ModTime.Before(before) {
			return nil
		}
		return d.wrap("sweep", name, unlessMissing(d.fs.Remove(d.file(name))))
	}); err != nil {
		return err
	}
	return d.prune(ctx, ".", before)
}

// prune removes empty directories below dir that did not change since before.
func (d *Dir) prune(ctx context.Context, dir string, before time.Time) error {
	return d.eachIn(ctx, dir, func(name string, info fsys.Info) error {
		if !info.Dir || backend.ValidateName(name) != nil {
			return nil
		}
		if err := d.prune(ctx, name, before); err != nil || !info.ModTime.Before(before) {
			return err
		}
		err := d.fs.Remove(d.file(name))
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
			return nil
		}
		return d.wrap("sweep", name, unlessMissing(err))
	})
}

// unlessMissing is err, but nil when it says that something is not there.
func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
