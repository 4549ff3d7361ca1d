package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// signature tells whether a file has changed since it was last looked at.
type signature struct {
	mode         fs.FileMode
	uid, gid     uint32
	size         int64
	mtime, ctime int64
}

func signatureOf(fi fs.FileInfo) signature {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return signature{mode: fi.Mode(), size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	}
	s := signature{mode: fi.Mode(), uid: st.Uid, gid: st.Gid}
	if !fi.IsDir() {
		// A directory's size and times change with its entries, which are looked
		// at themselves.
		s.size = st.Size
		s.mtime = st.Mtim.Nano()
		s.ctime = st.Ctim.Nano()
	}
	return s
}

// unpacker writes a tar stream below root.
type unpacker struct {
	root   string
	staged func(path string, s signature)
	files  uint64
	bytes  uint64
	dirs   []dirTime
}

type dirTime struct {
	path string
	at   time.Time
}

// unpack reads r to its end.
func (u *unpacker) unpack(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the staging stream: %w", err)
		}
		name := "/" + filepath.Clean("/" + h.Name)[1:]
		if err := u.entry(name, h, tr); err != nil {
			return u.explain(name, err)
		}
	}
	// Trailing padding belongs to the stream.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read the staging stream: %w", err)
	}
	// Directories get their times when nothing more is put into them.
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := setTime(filepath.Join(u.root, d.path), d.at); err != nil {
			return u.explain(d.path, err)
		}
	}
	return nil
}

func (u *unpacker) entry(name string, h *tar.Header, r io.Reader) error {
	path := filepath.Join(u.root, name)
	if name == "/" {
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
	} else {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
		if fi, err := os.Lstat(path); err == nil {
			if fi.IsDir() {
				return fmt.Errorf("a directory is in the way of a file: %w", syscall.EISDIR)
			}
			// A program that runs cannot be written to, but it can be replaced.
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		u.dirs = append(u.dirs, dirTime{name, h.ModTime})
	case tar.TypeReg:
		n, err := writeFile(path, r)
		u.bytes += uint64(n) //nolint:gosec // not negative
		if err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, path); err != nil {
			return err
		}
	case tar.TypeLink:
		if err := os.Link(filepath.Join(u.root, filepath.Clean("/"+h.Linkname)), path); err != nil {
			return err
		}
	default:
		return fmt.Errorf("tar entry of type %q cannot be staged", h.Typeflag)
	}
	u.files++
	if os.Geteuid() == 0 && h.Typeflag != tar.TypeLink {
		if err := os.Lchown(path, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir {
		// After the change of owner, which clears set-user-id bits.
		if err := os.Chmod(path, h.FileInfo().Mode()); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeDir {
		if err := setTime(path, h.ModTime); err != nil {
			return err
		}
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	u.staged(name, signatureOf(fi))
	return nil
}

func writeFile(path string, r io.Reader) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	return n, errors.Join(err, f.Close())
}

func setTime(path string, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// errDiskFull says that the guest's memory-backed disk has no room.
var errDiskFull = errors.New("the guest's disk is full")

func (u *unpacker) explain(name string, err error) error {
	err = fmt.Errorf("stage %s: %w", name, err)
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs(u.root, &st) != nil {
		return fmt.Errorf("%w: %w", errDiskFull, err)
	}
	return fmt.Errorf("%w (%d MiB, held in its memory; give the guests more memory or stage less): %w",
		errDiskFull, st.Blocks*uint64(st.Bsize)>>20, err) //nolint:gosec // a block size is positive
}
