package object

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
)

// Extents hands over the objects of a kind with these ids in extents
// that [Batch.AddExtent] of another store takes. An extent may have
// other objects besides: one that is wanted for the greater part goes as it is
// stored. All have been verified. What send gets is valid during the call; its
// error ends the sending and is returned. Other errors to decide on:
// ErrNotFound and CorruptError, about the first object that cannot be had.
func (s *Store) Extents(ctx context.Context, kind Kind, ids []ID, send func(Extent) error) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	o := sender{s: s, kind: kind, send: send, indexes: map[*pack]*PackIndex{}, sent: map[ID]bool{}}
	for group := range o.groups(ids) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		whole, err := o.whole(group)
		if err == nil && !whole {
			err = o.singly(ctx, group.ids)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sender is a call of Extents.
type sender struct {
	s       *Store
	kind    Kind
	send    func(Extent) error
	indexes map[*pack]*PackIndex // nil: it cannot be read
	sent    map[ID]bool
	buf     []byte
}

// wanted is some objects that are in one extent, as far as is known.
type wanted struct {
	pack   *pack // nil: not known
	extent int
	ids    []ID
}

// groups puts ids together by the extent that they are in, in the order of
// their first appearance.
func (o *sender) groups(ids []ID) iter.Seq[wanted] {
	return func(yield func(wanted) bool) {
		var order []extentKey
		all := map[extentKey][]ID{}
		for _, id := range ids {
			if id.IsZero() || o.sent[id] {
				continue
			}
			o.sent[id] = true
			var key extentKey
			if w, ok := o.s.table.lookup(id); ok {
				key = extentKey{o.s.packs.number(w.pack()), w.extent()}
			}
			if _, known := all[key]; !known {
				order = append(order, key)
			}
			all[key] = append(all[key], id)
		}
		for _, key := range order {
			if !yield(wanted{key.pack, key.extent, all[key]}) {
				return
			}
		}
	}
}

// whole sends an extent as it is stored, if that is worth while and it is good.
func (o *sender) whole(g wanted) (bool, error) {
	if g.pack == nil {
		return false, nil
	}
	if e := &g.pack.extents[g.extent]; e.kind != o.kind || e.codec != codecZstd || len(g.ids)*2 < int(e.objects) {
		return false, nil
	}
	x, known := o.indexes[g.pack]
	if !known {
		x, _ = o.s.readIndex(g.pack.name) // singly finds out what is wrong
		o.indexes[g.pack] = x
	}
	if x == nil {
		return false, nil
	}
	f, err := o.s.openFile(g.pack)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, fmt.Errorf("pack %v: %w", g.pack.name, err)
	}
	defer o.s.files.release(f)
	e, err := x.LoadExtent(f.value, g.extent)
	if err != nil {
		return false, nil //nolint:nilerr // singly reads it again, or another copy
	}
	if o.buf, err = e.Decode(o.buf[:0]); err != nil {
		return false, nil //nolint:nilerr // likewise
	}
	return true, o.send(e)
}

// singly sends objects in new extents.
func (o *sender) singly(ctx context.Context, ids []ID) error {
	e := Extent{Kind: o.kind}
	flush := func() error {
		if len(e.IDs) == 0 {
			return nil
		}
		e.Length = len(e.Stored)
		err := o.send(e)
		e = Extent{Kind: o.kind, Stored: e.Stored[:0]}
		return err
	}
	for _, id := range ids {
		b, err := o.s.get(ctx, id, o.buf[:0])
		if err != nil {
			return err
		}
		o.buf = b
		if len(e.Stored)+len(b) > extentTarget {
			if err := flush(); err != nil {
				return err
			}
		}
		e.IDs, e.Stored = append(e.IDs, id), append(e.Stored, b...)
		if o.kind != KindPage {
			e.Lengths = append(e.Lengths, uint32(len(b)))
		}
	}
	return flush()
}
