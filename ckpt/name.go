package ckpt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// name makes a part out of a manifest, whose objects are durable
// (docs/CKPT.md, "Writing a part"). It is its last step: nothing cancels it.
func (a *activity) name(raw []byte, digest string) error {
	s := a.s
	file := manifestFile(digest, raw)
	if err := fsys.WriteFile(s.fs, a.temp, file); err != nil {
		return err
	}
	back, err := fsys.ReadFile(s.fs, a.temp, int64(len(file)))
	if err != nil {
		return fmt.Errorf("read back what was written: %w", err)
	}
	if !bytes.Equal(back, file) {
		return &CorruptError{Part: a.id, What: "manifest", Reason: "what was written is not what is read back"}
	}
	if err := a.hit(FaultBeforeRename); err != nil {
		return err
	}
	if err := a.beginNaming(); err != nil {
		return err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	there, err := s.readManifest(a.id)
	switch {
	case err == nil && there.digest == digest:
		// Perhaps named just before a crash, and not synced.
		return s.fs.SyncDir(s.jobDir(a.id.Job))
	case err == nil:
		return fmt.Errorf("%w: it is %s", ErrConflict, there.digest)
	case errors.Is(err, ErrCorrupt):
		s.log.Warn("replacing a damaged part", "part", a.id.String(), "error", err)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	jobDir := s.jobDir(a.id.Job)
	if err := fsys.MkdirIfMissing(s.fs, jobDir); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Dir(jobDir)); err != nil {
		return err
	}
	if err := s.fs.Rename(a.temp, s.partPath(a.id)); err != nil {
		return err
	}
	return a.settle(jobDir)
}

// settle syncs the name. A part whose name may not be durable is taken out
// again: a later sync could report a success that never happened.
func (a *activity) settle(jobDir string) error {
	err := a.s.opt.Faults.Hit(a.ctx, FaultAfterRename)
	if err == nil {
		err = a.s.fs.SyncDir(jobDir)
	}
	if err == nil {
		return nil
	}
	if undo := a.s.fs.Rename(a.s.partPath(a.id), a.temp); undo != nil {
		a.s.log.Warn("cannot take out a part whose directory did not sync", "part", a.id.String(), "error", undo)
	}
	return err
}

// stored is a part's manifest as it is in the store.
type stored struct {
	manifest *Manifest
	raw      []byte // the manifest without the file's first line
	digest   string
}

func (m stored) info() Info { return m.manifest.info(m.digest, len(m.raw)) }

// readManifest reads and checks a part's manifest.
func (s *Store) readManifest(id PartID) (stored, error) {
	corrupt := func(reason string, err error) error {
		return &CorruptError{Part: id, What: "manifest", Reason: reason, Err: err}
	}
	const limit = maxManifest + int64(manifestPrefix)
	path := s.partPath(id)
	f, err := s.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stored{}, fmt.Errorf("part %v: %w", id, ErrNotFound)
	}
	if err != nil {
		return stored{}, fmt.Errorf("part %v: %w", id, err)
	}
	defer func() { _ = f.Close() }() // only read from
	size, err := f.Size()
	if err != nil {
		return stored{}, fmt.Errorf("part %v: manifest: %w", id, err)
	}
	if size > limit {
		return stored{}, corrupt(fmt.Sprintf("file has %d bytes, at most %d are possible", size, limit), nil)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return stored{}, corrupt("cannot be read", err)
	}
	digest, raw, err := parseManifestFile(b)
	if err != nil {
		return stored{}, corrupt(err.Error(), nil)
	}
	m, err := parseManifest(raw)
	if errors.Is(err, ErrVersion) {
		return stored{}, fmt.Errorf("part %v: %w", id, err)
	}
	if err != nil {
		return stored{}, corrupt("not a manifest", err)
	}
	if m.ID() != id {
		return stored{}, corrupt(fmt.Sprintf("it is that of %v", m.ID()), nil)
	}
	return stored{manifest: m, raw: raw, digest: digest}, nil
}
