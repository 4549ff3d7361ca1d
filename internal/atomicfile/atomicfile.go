// Package atomicfile replaces small files so that a reader, and whoever comes
// after a crash, finds either the old content or the new one, complete.
//
// Every write goes to a temporary file in the same directory, which is synced,
// closed and renamed over the target; then the directory is synced. When a
// function returns without error the new content survives a power failure.
// When it returns an error the target is as it was, except that a failure to
// sync the directory, the last step, leaves open which of the two a crash of
// the machine would bring back. A crash may leave a temporary file, named
// .NAME.tmp-RANDOM; [RemoveStale] removes those.
//
// A target that is a symbolic link is replaced, not followed.
package atomicfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes data the content of the file at path, with exactly the
// permissions perm, whatever the umask.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return Replace(path, bytes.NewReader(data), perm)
}

// Replace makes everything that r yields the content of the file at path, with
// exactly the permissions perm. When r fails, its error is returned and the
// file stays as it was.
func Replace(path string, r io.Reader, perm fs.FileMode) error {
	if err := replace(path, r, perm); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

func replace(path string, r io.Reader, perm fs.FileMode) (err error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, tempPrefix(base)+"*")
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if err == nil {
			return
		}
		if !closed {
			_ = f.Close() // the first error is the one to report
		}
		_ = os.Remove(f.Name()) // gone already when the rename succeeded
	}()
	if _, err = io.Copy(f, r); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	closed = true
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

func tempPrefix(base string) string { return "." + base + ".tmp-" }

// SyncDir makes the entries of a directory durable: files that were made,
// renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the caller's path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RemoveStale removes temporary files that crashes during earlier writes of
// path have left behind. It must not run while path is being written.
func RemoveStale(path string) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for stale files of %s: %w", path, err)
	}
	prefix := tempPrefix(base)
	var errs []error
	for _, e := range entries {
		if name := e.Name(); len(name) > len(prefix) && name[:len(prefix)] == prefix && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(dir, name)))
		}
	}
	return errors.Join(errs...)
}

// WriteJSON makes v, as indented JSON with a final newline, the content of the
// file at path.
func WriteJSON(path string, v any, perm fs.FileMode) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return WriteFile(path, append(data, '\n'), perm)
}

// ReadJSON reads the file at path into v. A file that holds anything but one
// JSON value, such as an empty or a cut-off file, is an error. Members that v
// does not know are ignored.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path) //nolint:gosec // the caller's path
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: not the JSON that was expected: %w", path, err)
	}
	return nil
}
