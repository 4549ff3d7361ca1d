package wrapper

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// untar writes the files of a tar stream below root, each at once or not at
// all. Nothing is written outside root or through a symbolic link. Names are
// relative to root or, without the first slash, absolute below dir. want is
// asked before each file. Files that cannot be written are skipped and
// reported together at the end; other errors end it.
func untar(root *os.Root, dir string, r io.Reader, want func(name string) bool) error {
	t := tar.NewReader(r)
	var problems []error
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// The rest of the stream, padding, is for the sender's sake.
			_, err = io.Copy(io.Discard, r)
			return errors.Join(append(problems, err)...)
		}
		if err != nil {
			return errors.Join(append(problems, fmt.Errorf("reading the archive: %w", err))...)
		}
		name, ok := below(dir, h.Name)
		if !ok {
			problems = append(problems, fmt.Errorf("%q lies outside the working directory", h.Name))
			continue
		}
		if name == "." || !want(name) {
			continue
		}
		if err := extract(root, name, h, t); err != nil {
			var broken *archiveError
			if errors.As(err, &broken) {
				return errors.Join(append(problems, err)...)
			}
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
}

// archiveError says that the stream broke, not the writing of a file.
type archiveError struct{ err error }

func (e *archiveError) Error() string { return "reading the archive: " + e.err.Error() }
func (e *archiveError) Unwrap() error { return e.err }

// below makes an archive's name relative to dir.
func below(dir, name string) (string, bool) {
	if strings.ContainsRune(name, 0) {
		return "", false
	}
	dir = strings.Trim(path.Clean(dir), "/")
	clean := path.Clean(name)
	absolute := strings.HasPrefix(clean, "/")
	clean = strings.TrimPrefix(clean, "/")
	switch {
	case dir != "" && clean == dir:
		return ".", true
	case dir != "" && strings.HasPrefix(clean, dir+"/"):
		return strings.TrimPrefix(clean, dir+"/"), true
	case absolute && dir != "", clean == "..", strings.HasPrefix(clean, "../"):
		return "", false
	}
	return clean, true
}

func extract(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if err := realParents(root, name); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode) & 0o777
	switch h.Typeflag {
	case tar.TypeDir:
		return makeDir(root, name, mode)
	case tar.TypeReg, tar.TypeGNUSparse:
		return extractFile(root, name, mode, h.ModTime, r)
	case tar.TypeSymlink:
		temp := tempName(name)
		if err := root.Symlink(h.Linkname, temp); err != nil {
			return err
		}
		return replace(root, temp, name)
	case tar.TypeLink:
		return errors.New("a hard link; copy the file instead")
	default:
		return nil // pipes, devices and sockets mean nothing outside their guest
	}
}

// realParents makes the directories above name and refuses any that is a
// symbolic link.
func realParents(root *os.Root, name string) error {
	for i, c := range name {
		if c != '/' {
			continue
		}
		info, err := root.Lstat(name[:i])
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := root.Mkdir(name[:i], 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s is a symbolic link here, which is not followed", name[:i])
		case !info.IsDir():
			return fmt.Errorf("%s is no directory here", name[:i])
		}
	}
	return nil
}

func makeDir(root *os.Root, name string, mode fs.FileMode) error {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return root.Mkdir(name, mode|0o700)
	case err != nil:
		return err
	case !info.IsDir():
		return errors.New("is a directory in the guest and something else here")
	}
	return nil
}

func extractFile(root *os.Root, name string, mode fs.FileMode, modified time.Time, r io.Reader) (err error) {
	if info, serr := root.Lstat(name); serr == nil && info.IsDir() {
		return errors.New("is a file in the guest and a directory here")
	}
	temp := tempName(name)
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = root.Remove(temp)
		}
	}()
	_, err = io.Copy(f, &markRead{r: r})
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := root.Chtimes(temp, modified, modified); err != nil {
		return err
	}
	return replace(root, temp, name)
}

func replace(root *os.Root, temp, name string) error {
	err := root.Rename(temp, name)
	if err != nil {
		_ = root.Remove(temp)
	}
	return err
}

// tempName is a name in the directory of name that nobody else uses.
func tempName(name string) string {
	return path.Join(path.Dir(name), ".vft-"+rand.Text())
}

// markRead turns read errors into archive errors.
type markRead struct{ r io.Reader }

func (m *markRead) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &archiveError{err}
	}
	return n, err
}
