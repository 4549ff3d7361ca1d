package ckpt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// Stat describes a stored part. It reads and checks the manifest only.
func (s *Store) Stat(ctx context.Context, id PartID) (Info, error) {
	if err := errors.Join(id.Validate(), s.alive(), ctx.Err()); err != nil {
		return Info{}, fmt.Errorf("stat part: %w", err)
	}
	m, err := s.readManifest(id)
	if err != nil {
		return Info{}, fmt.Errorf("stat part: %w", err)
	}
	return m.info(), nil
}

// Jobs returns the jobs that have parts in the store, sorted.
func (s *Store) Jobs(ctx context.Context) ([]string, error) {
	if err := errors.Join(s.alive(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	jobs, err := s.jobs()
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return jobs, nil
}

func (s *Store) jobs() ([]string, error) {
	names, err := s.fs.ReadDir(filepath.Join(s.dir, partsName))
	return slices.DeleteFunc(names, func(n string) bool { return ValidateJob(n) != nil }), err
}

// List returns the parts of a job by epoch and guest. Parts whose manifest
// cannot be read are left out of the result and joined into the error, so that
// both may be there at once.
func (s *Store) List(ctx context.Context, job string) ([]Info, error) {
	ids, err := s.partIDs(job)
	if err != nil {
		return nil, fmt.Errorf("list parts: %w", err)
	}
	var infos []Info
	var errs []error
	for _, id := range ids {
		info, err := s.Stat(ctx, id)
		switch {
		case err == nil:
			infos = append(infos, info)
		case !errors.Is(err, ErrNotFound): // removed in between
			errs = append(errs, err)
		}
	}
	return infos, errors.Join(errs...)
}

// Parts returns the ids of a job's parts, sorted, without reading them.
func (s *Store) Parts(job string) ([]PartID, error) {
	ids, err := s.partIDs(job)
	if err != nil {
		return nil, fmt.Errorf("list parts: %w", err)
	}
	return ids, nil
}

func (s *Store) partIDs(job string) ([]PartID, error) {
	if err := errors.Join(ValidateJob(job), s.alive()); err != nil {
		return nil, err
	}
	names, err := s.fs.ReadDir(s.jobDir(job))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []PartID
	for _, name := range names {
		if epoch, guest, ok := parsePartName(name); ok {
			ids = append(ids, PartID{Job: job, Epoch: epoch, Guest: guest})
		}
	}
	slices.SortFunc(ids, func(a, b PartID) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Guest, b.Guest))
	})
	return ids, nil
}

// Delete removes a part, and ends what is being written or fetched under its
// id. A part that is not there is no error. When Delete has returned nil the
// part is gone for good and nothing begun earlier can bring it back; Collect
// frees what it took.
func (s *Store) Delete(ctx context.Context, id PartID) error {
	if err := errors.Join(id.Validate(), s.alive()); err != nil {
		return fmt.Errorf("delete part: %w", err)
	}
	err := s.stopActive(ctx, func(other PartID) bool { return other == id })
	if err == nil {
		err = s.remove(id.Job, []PartID{id})
	}
	if err != nil {
		return fmt.Errorf("delete part %v: %w", id, err)
	}
	return nil
}

// DeleteJob removes all parts of a job, and ends what is being written or
// fetched for it. A job that has none is no error.
func (s *Store) DeleteJob(ctx context.Context, job string) error {
	if err := errors.Join(ValidateJob(job), s.alive()); err != nil {
		return fmt.Errorf("delete job: %w", err)
	}
	err := s.stopActive(ctx, func(other PartID) bool { return other.Job == job })
	var ids []PartID
	if err == nil {
		ids, err = s.partIDs(job)
	}
	if err == nil {
		err = s.remove(job, ids)
	}
	if err != nil {
		return fmt.Errorf("delete checkpoints of job %s: %w", job, err)
	}
	return nil
}

// remove removes the manifests of parts of a job, durably.
func (s *Store) remove(job string, ids []PartID) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	for _, id := range ids {
		if err := s.fs.Remove(s.partPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.fs.SyncDir(s.jobDir(job)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = s.fs.Remove(s.jobDir(job)) // fails unless it is empty
	return nil
}

func (s *Store) stopActive(ctx context.Context, match func(PartID) bool) error {
	for _, a := range s.active(match) {
		if err := a.stop(ctx, ErrDeleted); err != nil {
			return err
		}
	}
	return nil
}

// Collect frees what no part needs: no stored one, none that is being written or
// fetched, and none that is open. It may be killed at any time, and does not
// hold up others. A page table that cannot be read is an error, and nothing is
// freed then: what is below it may be good.
func (s *Store) Collect(ctx context.Context) (object.Collected, error) {
	if err := s.alive(); err != nil {
		return object.Collected{}, fmt.Errorf("collect garbage: %w", err)
	}
	return s.objects.Collect(ctx, func(ctx context.Context, live func(object.ID, object.Kind)) error {
		needed, err := s.needed()
		if err != nil {
			return err
		}
		w := marker{s: s, live: live, seen: map[object.ID]bool{}}
		for _, m := range needed {
			if err := w.mark(ctx, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// needed returns the manifests of all parts that are stored or open. One that
// cannot be read names nothing that could be found through it.
func (s *Store) needed() ([]need, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	jobs, err := s.jobs()
	if err != nil {
		return nil, err
	}
	var all []need
	for _, job := range jobs {
		ids, err := s.partIDs(job)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			m, err := s.readManifest(id)
			switch {
			case errors.Is(err, ErrCorrupt):
				s.log.Error("a part whose manifest is damaged protects nothing", "part", id.String(), "error", err)
			case err != nil:
				return nil, err
			default:
				all = append(all, need{m.manifest, false})
			}
		}
	}
	for p := range s.opened {
		all = append(all, need{p.manifest, p.src != nil})
	}
	return all, nil
}

// need is a part that needs objects.
type need struct {
	*Manifest
	partly bool // what is not here is read from elsewhere
}

// marker names what parts need.
type marker struct {
	s    *Store
	live func(object.ID, object.Kind)
	seen map[object.ID]bool // nodes
}

func (w *marker) mark(ctx context.Context, m need) error {
	err := m.Visit(ctx, func(ctx context.Context, id object.ID) ([]byte, error) {
		if w.seen[id] {
			return nil, nil
		}
		node, err := w.s.objects.Get(ctx, id, nil)
		if err != nil && m.partly && absent(err) {
			return nil, nil
		}
		w.seen[id] = true
		w.live(id, object.KindNode)
		return node, err
	}, func(kind object.Kind, id object.ID, _ Place) error {
		if kind != object.KindNode {
			w.live(id, kind)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("part %v: %w", m.ID(), err)
	}
	return nil
}

// Usage is what the store takes and what is left.
type Usage struct {
	object.Usage
	Parts     int
	Blobs     int
	BlobBytes int64
	Free      int64 // bytes that the file system still gives to this user
}

// Usage says what the store takes and what is left.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	u, err := s.usage(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("usage of checkpoint store %s: %w", s.dir, err)
	}
	return u, nil
}

func (s *Store) usage(ctx context.Context) (u Usage, err error) {
	jobs, err := s.Jobs(ctx)
	if err != nil {
		return u, err
	}
	for _, job := range jobs {
		ids, err := s.partIDs(job)
		if err != nil {
			return u, err
		}
		u.Parts += len(ids)
	}
	blobs, err := s.Blobs().List(ctx)
	if err != nil {
		return u, err
	}
	for _, digest := range blobs {
		info, err := s.fs.Stat(s.Blobs().path(digest))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return u, err
		}
		u.Blobs++
		u.BlobBytes += info.Size
	}
	u.Usage = s.objects.Usage()
	u.Free, err = s.fs.Free(s.dir)
	return u, err
}
