package ckpt

import (
	"context"
	"errors"
	"fmt"

	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// Moved says what it took to make a part complete.
type Moved struct {
	Read    int64 // bytes of objects that were read here and found good
	Objects int64 // that came from the source
	Bytes   int64 // of them, as they came
}

// Fetch makes sure that the store has a part whose manifest has the given
// digest, and everything that the part needs as far as is known: it asks the
// source for what is missing. The part is durable and verified when Fetch
// returns, as after Commit; on an error nothing is left of one that was not
// there.
//
// The context is looked at between calls of the source. Errors to decide on:
// those of the source, ErrTransfer (the source's fault), ErrConflict,
// syscall.ENOSPC.
func (s *Store) Fetch(ctx context.Context, id PartID, manifest string, src Source) (Info, Moved, error) {
	info, moved, err := s.complete(ctx, id, manifest, src, false)
	if err != nil {
		return Info{}, moved, fmt.Errorf("fetch part %v: %w", id, withHint(err, s.dir))
	}
	return info, moved, nil
}

// Verify reads every byte of a stored part and checks it. It asks the kernel to
// read from the device and not from its cache, as far as the kernel grants that.
// What is damaged is fetched from the source, when there is one, and the error
// says what is damaged and cannot be repaired.
func (s *Store) Verify(ctx context.Context, id PartID, manifest string, src Source) (Info, Moved, error) {
	if err := s.alive(); err != nil {
		return Info{}, Moved{}, fmt.Errorf("verify part %v: %w", id, err)
	}
	if err := s.objects.DropCaches(); err != nil {
		return Info{}, Moved{}, fmt.Errorf("verify part %v: %w", id, err)
	}
	info, moved, err := s.complete(ctx, id, manifest, src, true)
	if err != nil {
		return Info{}, moved, fmt.Errorf("verify part %v: %w", id, withHint(err, s.dir))
	}
	return info, moved, nil
}

// completion makes a part complete.
type completion struct {
	*activity
	batch *object.Batch
	src   Source             // nil: nothing can be fetched
	deep  bool               // read what is there
	seen  map[object.ID]bool // nodes and data
	Moved
}

func (s *Store) complete(ctx context.Context, id PartID, digest string, src Source, deep bool) (Info, Moved, error) {
	if err := errors.Join(id.Validate(), ValidateDigest(digest)); err != nil {
		return Info{}, Moved{}, err
	}
	a, err := s.begin(ctx, id)
	if err != nil {
		return Info{}, Moved{}, err
	}
	defer a.end()
	m, err := s.named(id, digest)
	there := err == nil
	switch {
	case there:
	case errors.Is(err, ErrMismatch):
		return Info{}, Moved{}, fmt.Errorf("%w: %w", ErrConflict, err)
	case src == nil, !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt):
		return Info{}, Moved{}, err
	default:
		if m, err = fetchManifest(a.ctx, id, digest, src); err != nil {
			return Info{}, Moved{}, err
		}
	}
	c := &completion{
		activity: a, batch: s.objects.NewBatch(a.ctx), src: src, deep: deep, seen: map[object.ID]bool{},
	}
	defer c.batch.Close()
	if err := c.all(m.manifest); err != nil {
		return Info{}, c.Moved, err
	}
	if err := c.hit(FaultBeforeSync); err != nil {
		return Info{}, c.Moved, err
	}
	if err := c.batch.Sync(a.ctx); err != nil {
		return Info{}, c.Moved, err
	}
	if there { // perhaps named just before a crash, and not synced
		err = errors.Join(a.err(), s.fs.SyncDir(s.jobDir(id.Job)))
	} else {
		err = c.name(m.raw, m.digest)
	}
	return m.info(), c.Moved, err
}

// all goes through everything that a part needs.
func (c *completion) all(m *Manifest) error {
	for _, s := range m.sections() {
		err := c.obtain(object.KindData, s.Chunks, nil, func(i int) string {
			return fmt.Sprintf("chunk %d of %s", i, s.name)
		})
		if err != nil {
			return err
		}
	}
	for _, b := range m.Blocks {
		if err := c.block(b); err != nil {
			return err
		}
	}
	return nil
}

// leafGroup is how many leaves are gone through together: 256 MiB of memory,
// whose ids are 1 MiB.
const leafGroup = 128

// block goes through the page table of a block from the top down.
func (c *completion) block(b BlockTable) error {
	t := b.table()
	level := []table.Ref{}
	if root := t.Ref(); !root.ID.IsZero() {
		level = append(level, root)
	}
	for len(level) > 0 && level[0].Level > 1 {
		below, err := c.nodes(b, t, level)
		if err != nil {
			return err
		}
		level = below
	}
	for len(level) > 0 {
		group := level[:min(len(level), leafGroup)]
		level = level[len(group):]
		pages, err := c.nodes(b, t, group)
		if err != nil {
			return err
		}
		ids := make([]object.ID, len(pages))
		for i, r := range pages {
			ids[i] = r.ID
		}
		err = c.obtain(object.KindPage, ids, nil, func(i int) string {
			return fmt.Sprintf("page %d of block %s", pages[i].First, b.Name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodes obtains nodes and returns what is below those that are met for the
// first time.
func (c *completion) nodes(b BlockTable, t table.Table, refs []table.Ref) (below []table.Ref, err error) {
	ids := make([]object.ID, len(refs))
	for i, r := range refs {
		ids[i] = r.ID
	}
	contents := map[object.ID][]byte{}
	where := func(i int) string { return fmt.Sprintf("page table of block %s at page %d", b.Name, refs[i].First) }
	if err := c.obtain(object.KindNode, ids, contents, where); err != nil {
		return nil, err
	}
	for i, r := range refs {
		content, ok := contents[r.ID]
		if !ok {
			continue
		}
		delete(contents, r.ID)
		n, err := t.Parse(r, content)
		if err != nil {
			return nil, &CorruptError{Part: c.id, What: where(i), Reason: "it contradicts itself", Err: err}
		}
		for j := range n.Len() {
			if child := r.Child(n, j); !child.ID.IsZero() {
				below = append(below, child)
			}
		}
	}
	return below, nil
}

// obtain makes sure that objects are in the store, and keeps them there. With
// contents it also returns those that are met for the first time. where names
// the i-th object for people.
func (c *completion) obtain(kind object.Kind, ids []object.ID, contents map[object.ID][]byte, where func(i int) string) error {
	var missing []object.ID
	places := map[object.ID]int{}
	var damage error // of the first that is missing
	var buf []byte
	for i, id := range ids {
		if _, again := places[id]; again || c.seen[id] || id.IsZero() {
			continue
		}
		if kind != object.KindPage { // of which there are too many
			c.seen[id] = true
		}
		err := c.here(kind, id, contents, &buf)
		switch {
		case err == nil:
		case absent(err):
			if damage == nil {
				damage = err
			}
			missing, places[id] = append(missing, id), i
		default:
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if c.src == nil {
		return &CorruptError{Part: c.id, What: where(places[missing[0]]), Reason: "it cannot be read", Err: damage}
	}
	if err := c.hit(FaultFetch); err != nil {
		return err
	}
	err := c.src.Objects(c.ctx, kind, missing, func(e object.Extent) error { return c.take(kind, &e, places, contents) })
	if err != nil {
		for _, id := range missing {
			if i, still := places[id]; still {
				return fmt.Errorf("%s: %w", where(i), err)
			}
		}
		return err
	}
	for id, i := range places {
		return fmt.Errorf("%s: object %v: %w: it was not sent", where(i), id, ErrTransfer)
	}
	return nil
}

// here keeps an object that the store has. Errors that are absent: it has none.
func (c *completion) here(kind object.Kind, id object.ID, contents map[object.ID][]byte, buf *[]byte) error {
	if contents == nil && !c.deep {
		if c.batch.Keep(id) {
			return nil
		}
		return absentUnless(c.err(), id)
	}
	b, err := c.s.objects.Get(c.ctx, id, (*buf)[:0])
	if err != nil {
		return err
	}
	if object.Sum(kind, b) != id { // its id is that of another kind
		return &CorruptError{Part: c.id, What: fmt.Sprintf("object %v", id), Reason: fmt.Sprintf("it is not a %v", kind)}
	}
	c.Read += int64(len(b))
	if contents != nil {
		contents[id] = b
	} else {
		*buf = b
	}
	if !c.batch.Keep(id) { // collected just now
		return absentUnless(c.err(), id)
	}
	return nil
}

func absentUnless(failure error, id object.ID) error {
	if failure != nil {
		return failure
	}
	return fmt.Errorf("object %v: %w", id, object.ErrNotFound)
}

// take stores what a source sent.
func (c *completion) take(kind object.Kind, e *object.Extent, missing map[object.ID]int, contents map[object.ID][]byte) error {
	if e.Kind != kind {
		return fmt.Errorf("%w: a %v where a %v is wanted", ErrTransfer, e.Kind, kind)
	}
	if contents != nil {
		objects, err := decodeExtent(kind, e)
		if err != nil {
			return err
		}
		for id, b := range objects {
			if _, wanted := missing[id]; wanted {
				contents[id] = b
			}
		}
	}
	err := c.batch.AddExtent(*e)
	if errors.Is(err, object.ErrExtent) {
		return fmt.Errorf("%w: %w", ErrTransfer, err)
	}
	if err != nil {
		return err
	}
	for _, id := range e.IDs {
		if _, wanted := missing[id]; wanted {
			delete(missing, id)
			c.Objects++
		}
	}
	c.Bytes += int64(len(e.Stored))
	return nil
}
