package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mpirun-vft/vft/ckpt/export"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// Contents is what an export file must have, and nothing else.
type Contents struct {
	Parts map[PartID]string // digest of the manifest
	Blobs map[string]int64  // size by digest, bytes
}

// Import takes an export file. admit gets what the file says of the job, before
// anything is stored, and says what must be in it; its error ends the import.
// The parts and blobs get their names when the file has been read to its end,
// is right, and everything that they need is durable and verified: all of them,
// or none that was not there before; naming is called before the first of them
// does. The caller makes sure that reading from r
// ends when the context does.
//
// Errors to decide on: those of admit and r, export.ErrDamaged,
// export.ErrVersion, ErrConflict, syscall.ENOSPC.
func (s *Store) Import(ctx context.Context, r io.Reader, admit func(job []byte) (Contents, error), naming func()) ([]Info, error) {
	a, err := s.begin(ctx, PartID{})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer a.end()
	i := &importer{
		activity: a, r: export.NewReader(r), admit: admit, naming: naming, batch: s.objects.NewBatch(a.ctx),
		parts: map[PartID]*incoming{}, blobs: map[string]*incoming{},
	}
	defer i.close()
	infos, err := i.all()
	if err != nil {
		return nil, fmt.Errorf("import: %w", withHint(err, s.dir))
	}
	return infos, nil
}

// importer takes one file.
type importer struct {
	*activity
	r      *export.Reader
	admit  func([]byte) (Contents, error)
	naming func()
	batch  *object.Batch // protects what has come

	want  Contents
	parts map[PartID]*incoming
	blobs map[string]*incoming
	order []PartID // in which parts came
}

// incoming is a part or a blob that has no name yet.
type incoming struct {
	*activity
	stored      // of a part
	there  bool // it was in the store before
	named  bool // by this import
}

func (i *importer) close() {
	for _, p := range i.parts {
		p.end()
	}
	for _, b := range i.blobs {
		b.end()
	}
	i.batch.Close()
}

func (i *importer) all() ([]Info, error) {
	for {
		rec, err := i.r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = i.err()
		}
		if err == nil {
			err = i.take(rec)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := i.complete(); err != nil {
		return nil, err
	}
	i.naming()
	if err := i.nameAll(); err != nil {
		return nil, errors.Join(err, i.takeBack())
	}
	infos := make([]Info, len(i.order))
	for n, id := range i.order {
		infos[n] = i.parts[id].info()
	}
	return infos, nil
}

// take takes one record.
func (i *importer) take(rec export.Record) (err error) {
	switch rec.Type {
	case export.Job:
		i.want, err = i.admit(rec.Data)
		return err
	case export.Manifest:
		return i.manifest(rec.Data)
	case export.Extent:
		e, err := i.r.Extent(rec)
		if err != nil {
			return err
		}
		err = i.batch.AddExtent(e)
		if errors.Is(err, object.ErrExtent) {
			return i.r.Damage("an object is not what its id says", err)
		}
		return err
	case export.Blob:
		return i.blob(rec)
	default:
		return i.r.Damage(fmt.Sprintf("a %v", rec.Type), nil)
	}
}

func (i *importer) manifest(b []byte) error {
	raw := append([]byte(nil), b...)
	digest := Digest(raw)
	m, err := parseManifest(raw)
	if errors.Is(err, ErrVersion) {
		return err
	}
	if err != nil {
		return i.r.Damage("not a manifest", err)
	}
	id := m.ID()
	switch {
	case i.want.Parts[id] != digest:
		return i.r.Damage(fmt.Sprintf("the epoch has no part of %v with manifest %s", id, digest), nil)
	case i.parts[id] != nil:
		return i.r.Damage(fmt.Sprintf("a second manifest of %v", id), nil)
	}
	there, err := i.s.named(id, digest)
	switch {
	case errors.Is(err, ErrMismatch):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt):
		return err
	}
	a, err := i.s.begin(i.ctx, id)
	if err != nil {
		return err
	}
	i.parts[id] = &incoming{activity: a, stored: stored{manifest: m, raw: raw, digest: digest}, there: there.digest == digest}
	i.order = append(i.order, id)
	return nil
}

func (i *importer) blob(rec export.Record) error {
	switch size, wanted := i.want.Blobs[rec.Digest]; {
	case !wanted || size != rec.Size:
		return i.r.Damage(fmt.Sprintf("the job has no blob %s of %d bytes", rec.Digest, rec.Size), nil)
	case i.blobs[rec.Digest] != nil:
		return i.r.Damage("a second copy of blob "+rec.Digest, nil)
	}
	a, err := i.s.begin(i.ctx, PartID{})
	if err != nil {
		return err
	}
	b := &incoming{activity: a}
	i.blobs[rec.Digest] = b
	blobs := i.s.Blobs()
	switch f, err := blobs.openVerified(a.ctx, rec.Digest); {
	case err == nil:
		b.there = true
		return errors.Join(f.Close(), i.s.fs.SyncDir(blobs.dir(rec.Digest)))
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt):
		return err
	}
	err = blobs.receive(a, rec.Digest, rec.Size, i.r.Content())
	if errors.Is(err, ErrMismatch) {
		return i.r.Damage("blob "+rec.Digest, err)
	}
	return err
}

// complete makes sure that everything is there that must be, and durable.
func (i *importer) complete() error {
	for id := range i.want.Parts {
		if i.parts[id] == nil {
			return i.r.Damage(fmt.Sprintf("it has no manifest of %v", id), nil)
		}
	}
	for digest := range i.want.Blobs {
		if i.blobs[digest] == nil {
			return i.r.Damage("it does not have blob "+digest, nil)
		}
	}
	if err := i.hit(FaultBeforeSync); err != nil {
		return err
	}
	if err := i.batch.Sync(i.ctx); err != nil {
		return err
	}
	seen := map[object.ID]bool{}
	for _, id := range i.order {
		p := i.parts[id]
		c := &completion{activity: p.activity, batch: i.batch, seen: seen}
		err := c.all(p.manifest)
		if errors.Is(err, ErrCorrupt) {
			return i.r.Damage("it does not have all that a part needs", err)
		}
		if err != nil {
			return err
		}
	}
	return i.batch.Sync(i.ctx) // what was kept while another writer had it on its way
}

// nameAll gives everything its name, the parts last: they need the blobs.
func (i *importer) nameAll() error {
	for digest, b := range i.blobs {
		if b.there {
			continue
		}
		if err := i.s.Blobs().name(b.activity, digest); err != nil {
			return err
		}
		b.named = true
	}
	for _, id := range i.order {
		p := i.parts[id]
		if err := p.name(p.raw, p.digest); err != nil {
			return err
		}
		p.named = !p.there
	}
	return nil
}

// takeBack removes what got its name before something else could not get its
// own. Blobs stay: each is whole, and somebody else may count on it by now.
func (i *importer) takeBack() error {
	var errs []error
	for _, id := range i.order {
		if i.parts[id].named {
			errs = append(errs, i.s.remove(id.Job, []PartID{id}))
		}
	}
	return errors.Join(errs...)
}
