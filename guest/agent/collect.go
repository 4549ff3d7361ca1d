package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// settle is how long a file must have been left alone for its signature to be
// trusted: file times move in steps of a few milliseconds, and a write within
// the same step would not show.
const settle = 50 * time.Millisecond

// collector writes what changed below a directory as a tar.
type collector struct {
	root  string
	known map[string]signature
	now   func() time.Time

	next    map[string]signature
	files   uint64
	bytes   uint64
	skipped []string
}

// collect walks dir. Files that cannot be read are skipped and named.
func (c *collector) collect(dir string, w io.Writer) error {
	c.next = maps.Clone(c.known)
	if c.next == nil {
		c.next = map[string]signature{}
	}
	tw := tar.NewWriter(w)
	top := filepath.Join(c.root, dir)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, c.root), "/")
		if err != nil {
			if path == top {
				return err
			}
			c.skip(name, err)
			return nil
		}
		return c.visit(tw, path, name)
	})
	if err != nil {
		return fmt.Errorf("collect %s: %w", dir, err)
	}
	return tw.Close()
}

func (c *collector) skip(name string, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		c.skipped = append(c.skipped, fmt.Sprintf("%s: %v", name, err))
	}
}

func (c *collector) visit(tw *tar.Writer, path, name string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		c.skip(name, err)
		return nil
	}
	mode := fi.Mode()
	if !mode.IsRegular() && !mode.IsDir() && mode&fs.ModeSymlink == 0 {
		return nil
	}
	sig := signatureOf(fi)
	if old, ok := c.known[name]; ok && old == sig {
		return nil
	}
	var f *os.File
	link := ""
	switch {
	case mode.IsRegular():
		if f, err = os.Open(path); err != nil {
			c.skip(name, err)
			return nil
		}
		defer func() { _ = f.Close() }()
		// The size at the time of opening is the size that is sent.
		if fi, err = f.Stat(); err != nil {
			c.skip(name, err)
			return nil
		}
		sig = signatureOf(fi)
	case mode&fs.ModeSymlink != 0:
		if link, err = os.Readlink(path); err != nil {
			c.skip(name, err)
			return nil
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(name, "/")
	if mode.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	h.Format = tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if f != nil {
		if err := copyExactly(tw, f, h.Size); err != nil {
			return err
		}
		c.bytes += uint64(h.Size) //nolint:gosec // not negative
	}
	c.files++
	if age := c.now().UnixNano() - sig.ctime; sig.ctime == 0 || age > int64(settle) {
		c.next[name] = sig
	} else {
		delete(c.next, name)
	}
	return nil
}

// copyExactly writes size bytes of r, with zeros for what r lacks: a file may
// shrink or grow while it is read, and the tar must stay whole.
func copyExactly(w io.Writer, r io.Reader, size int64) error {
	n, err := io.Copy(w, io.LimitReader(r, size))
	var pe *fs.PathError
	if err != nil && !errors.As(err, &pe) {
		return err
	}
	zeros := make([]byte, 32<<10)
	for n < size {
		k, err := w.Write(zeros[:min(size-n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n += int64(k)
	}
	return nil
}
