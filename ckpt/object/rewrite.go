package object

import (
	"context"
	"errors"
	"io/fs"
	"slices"
)

// copied is an object of a pack that is being rewritten.
type copied struct {
	id ID
	at where
}

// rewrite moves what is live in the packs to other packs, and deletes them.
func (c *collection) rewrite(ctx context.Context, packs []*pack) error {
	b := c.s.newBatch(ctx, c.s.rewrite)
	defer b.Close()
	moved := make([][]copied, len(packs))
	complete := make([]bool, len(packs))
	for i, p := range packs {
		var err error
		if moved[i], complete[i], err = c.moveOut(ctx, b, p); err != nil {
			return err
		}
	}
	if err := b.Sync(ctx); err != nil {
		return err
	}
	if err := c.s.hit(FaultBeforeDelete); err != nil {
		return err
	}
	for i, p := range packs {
		if complete[i] {
			p.removed.Store(true)
		}
		for _, o := range moved[i] {
			c.s.table.remove(o.id, o.at)
		}
		if !complete[i] {
			continue
		}
		c.s.deletePack(p)
		c.Deleted++
		c.Freed += p.size
		if len(moved[i]) > 0 {
			c.Rewritten++
		}
	}
	return nil
}

// deletePack removes a pack in which nothing can be found any more.
func (s *Store) deletePack(p *pack) {
	s.packs.remove(p)
	s.decoded.drop(func(k extentKey) bool { return k.pack == p })
	s.files.drop(func(k *pack) bool { return k == p })
	// After a crash the file may be back: that costs space until the next
	// collection.
	s.discard(s.packPath(p.name))
}

// moveOut forgets what is dead in a pack, and adds copies of the rest to b. It
// returns what was added, and whether the pack can be deleted then.
func (c *collection) moveOut(ctx context.Context, b *Batch, p *pack) (moved []copied, complete bool, err error) {
	live, complete, err := c.forgetDead(p)
	if err != nil || len(live) == 0 {
		return nil, complete, err
	}
	var damage error
	f, err := c.s.openFile(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		damage = missingFile(p.name)
	case err != nil:
		return nil, false, err
	default:
		defer c.s.files.release(f)
	}
	raw := c.s.buffers.get(MaxSize)
	defer c.s.buffers.put(raw)
	for len(live) > 0 {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		extent, n := live[0].at.extent(), 1
		for n < len(live) && live[n].at.extent() == extent {
			n++
		}
		bad := damage
		if bad == nil {
			bad = p.decode(f.value, extent, raw, c.s.buffers)
		}
		added, all, err := c.moveExtent(b, p, live[:n], *raw, bad)
		if err != nil {
			return nil, false, err
		}
		moved = append(moved, added...)
		complete = complete && all
		live = live[n:]
	}
	return moved, complete, nil
}

// forgetDead removes what is dead in a pack from the table. What it returns is
// live, and stays so: nothing else of the pack can be found or kept any more.
// complete means that nothing else in the pack is needed.
func (c *collection) forgetDead(p *pack) (live []copied, complete bool, err error) {
	objects, err := c.content(p)
	if err != nil {
		return nil, false, err
	}
	complete = true
	for _, o := range objects {
		switch w := c.s.table.removeUnless(o.id, o.at, c.oldest); {
		case w == 0:
		case w&badBit == 0:
			live = append(live, o)
		case !c.dropCopy(p, o):
			complete = false
		}
	}
	return live, complete, nil
}

// content lists the copies in a pack that can be found, extent by extent.
func (c *collection) content(p *pack) (all []copied, err error) {
	x, err := c.s.readIndex(p.name)
	switch {
	case err == nil:
		for i := range x.extents {
			for j, id := range x.ids[x.first[i]:x.first[i+1]] {
				all = append(all, copied{id, place(p.number, i, j)})
			}
		}
		return all, nil
	case !errors.Is(err, ErrCorrupt):
		return nil, err
	}
	// The index has been damaged since the store was opened.
	c.s.log.Error("the index of a pack is damaged", "pack", p.name, "error", err)
	c.s.table.each(func(s *slot) {
		if w := s.load(); w.pack() == p.number {
			all = append(all, copied{s.id, w.at()})
		}
	})
	slices.SortFunc(all, func(a, b copied) int { return int(int64(a.at) - int64(b.at)) })
	return all, nil
}

// moveExtent adds copies of objects that are in one extent, which has been
// decoded or is damaged. It returns those that were added, and whether none of
// the others needs the pack.
func (c *collection) moveExtent(b *Batch, p *pack, objects []copied, raw []byte, damage error) (added []copied, all bool, err error) {
	number := objects[0].at.extent()
	kind := p.extents[number].kind
	all = true
	for _, o := range objects {
		if c.dropCopy(p, o) {
			continue
		}
		var data []byte
		bad := damage
		if bad == nil {
			offset, length := p.locate(o.at)
			data = raw[offset : offset+length]
			if Sum(kind, data) != o.id {
				bad = blame(p.name, number, &badObjectError{o.id})
			}
		}
		if bad != nil {
			// Damaged as it is, this may be the only copy that there is.
			c.s.setBad(p, o.at, o.id, bad)
			all = false
			continue
		}
		if err := b.add(kind, o.id, data, true); err != nil {
			return nil, false, err
		}
		added = append(added, o)
		c.Moved += int64(len(data))
	}
	return added, all, nil
}

// dropCopy removes a copy from the table if there is another one, in another
// pack, that can be read and is what it should be.
func (c *collection) dropCopy(p *pack, o copied) bool {
	for _, w := range c.s.table.others(o.id, p.number) {
		other := c.s.packs.number(w.pack())
		if other == nil {
			continue
		}
		if _, err := c.s.read(other, w, o.id, nil); err == nil {
			c.s.table.remove(o.id, o.at)
			return true
		} else if errors.Is(err, ErrCorrupt) {
			c.s.setBad(other, w, o.id, err)
		}
	}
	return false
}
