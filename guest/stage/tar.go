package stage

import (
	"archive/tar"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// WriteTar packs the plan. Equal files give equal bytes. The result is the
// BLAKE3 of what was written, in hexadecimal.
func (p *Plan) WriteTar(w io.Writer) (hash string, err error) {
	sum := blake3.New()
	tw := tar.NewWriter(io.MultiWriter(w, sum))
	for _, e := range p.Entries {
		if err := writeEntry(tw, e); err != nil {
			return "", fmt.Errorf("pack %s: %w", e.Source, err)
		}
	}
	if err := tw.Close(); err != nil {
		return "", fmt.Errorf("pack the staged files: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func writeEntry(tw *tar.Writer, e Entry) error {
	stat := os.Lstat
	if e.Follow {
		stat = os.Stat
	}
	fi, err := stat(e.Source)
	if err != nil {
		return err
	}
	link := ""
	var f *os.File
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(e.Source); err != nil {
			return err
		}
	case fi.Mode().IsRegular():
		if f, err = os.Open(e.Source); err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if fi, err = f.Stat(); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(e.Name, "/")
	if fi.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	// Reading a file changes its access time.
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if f == nil {
		return nil
	}
	n, err := io.CopyN(tw, f, h.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the file shrank from %d to %d bytes while it was read", h.Size, n)
	}
	return err
}
