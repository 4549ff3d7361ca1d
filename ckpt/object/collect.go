package object

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
)

// Collected says what a collection did.
type Collected struct {
	Live      int64 // objects that stay because they are reachable or in use
	Missing   int64 // reachable objects that are not there undamaged
	Deleted   int   // packs deleted, the rewritten ones among them
	Rewritten int   // packs whose live objects were moved to other packs
	Freed     int64 // bytes of files deleted
	Moved     int64 // bytes of objects moved, uncompressed
}

const (
	// A pack below 1/smallPack of the full size is small. Small packs are
	// rewritten when there are at least manySmall of them.
	smallPack = 4
	manySmall = 8
)

// Collect deletes packs without a live object, and rewrites together those with
// less than half live bytes, damaged ones, and small ones if there are many.
//
// Live is what mark names by calling live, from one or more goroutines, and what
// open batches have added or kept, also while the collection runs. mark must
// name every object that is reachable, those included that a batch protected
// until it was closed before the call; if it cannot, for example because a node
// cannot be read, it must return an error, and nothing is deleted.
//
// A collection can be killed at any time: a rewritten pack is deleted when the
// copies in other packs are durable. A damaged object that is live and has no
// other copy keeps its pack from being deleted. One collection runs at a time;
// others wait.
func (s *Store) Collect(ctx context.Context, mark func(ctx context.Context, live func(id ID, kind Kind)) error) (Collected, error) {
	done, err := s.use()
	if err != nil {
		return Collected{}, err
	}
	defer done()
	ctx, stop := s.untilClose(ctx)
	defer stop()
	select {
	case s.collecting <- struct{}{}:
	case <-ctx.Done():
		return Collected{}, context.Cause(ctx)
	}
	defer func() { <-s.collecting }()
	c := &collection{s: s, packs: s.packs.all()}
	if err := c.run(ctx, mark); err != nil {
		return c.Collected, fmt.Errorf("collect garbage: %w", err)
	}
	return c.Collected, nil
}

// untilClose returns a context that also ends when the store is closed.
func (s *Store) untilClose(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// collection is a call of Collect. It never holds a lock for longer than it
// takes to go through one segment of the table.
type collection struct {
	s      *Store
	packs  []*pack    // those that existed when it began
	oldest generation // of the oldest batch that was open when it began
	Collected
}

func (c *collection) run(ctx context.Context, mark func(ctx context.Context, live func(ID, Kind)) error) error {
	c.reset()
	c.oldest = c.s.protection.advance()
	if err := c.mark(ctx, mark); err != nil {
		return err
	}
	dead, sparse := c.choose(c.count())
	for _, p := range dead {
		// Almost always nothing is moved: only what came into use just now.
		if err := c.rewrite(ctx, []*pack{p}); err != nil {
			return err
		}
	}
	for _, round := range rounds(sparse, c.s.opt.PackSize) {
		if err := c.rewrite(ctx, round); err != nil {
			return err
		}
	}
	if c.Missing == 0 {
		c.deleteUnreadable()
	}
	return nil
}

// reset clears the marks, and forgets who relied on what so long ago that
// generations would come round.
func (c *collection) reset() {
	oldest := c.s.protection.oldest()
	c.s.table.each(func(s *slot) {
		s.update(func(w where) where {
			if w.generation().before(oldest) {
				w = w.withGeneration(0)
			}
			return w &^ markedBit
		})
	})
}

func (c *collection) mark(ctx context.Context, mark func(ctx context.Context, live func(ID, Kind)) error) error {
	var missing atomic.Int64
	err := mark(ctx, func(id ID, kind Kind) {
		if id.IsZero() || c.s.table.mark(id) {
			return
		}
		if missing.Add(1) == 1 {
			c.s.log.Warn("an object that is needed is missing", "object", id, "kind", kind)
		}
	})
	c.Missing = missing.Load()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// count returns the live bytes of each pack, by number. Of several copies one
// counts.
func (c *collection) count() map[uint32]int64 {
	packs := make(map[uint32]*pack, len(c.packs))
	for _, p := range c.packs {
		packs[p.number] = p
	}
	live := make(map[uint32]int64, len(c.packs))
	var before ID
	c.s.table.each(func(s *slot) {
		w := s.load()
		if s.id == before || w&badBit != 0 || !w.live(c.oldest) {
			return
		}
		before = s.id
		c.Live++
		if p := packs[w.pack()]; p != nil {
			live[p.number] += p.share(w)
		}
	})
	return live
}

// sparsePack is a pack to be rewritten.
type sparsePack struct {
	*pack
	live int64 // bytes, stored
}

// choose returns the packs without anything live, and those to be rewritten,
// from the emptiest on.
func (c *collection) choose(live map[uint32]int64) (dead []*pack, sparse []sparsePack) {
	var small []sparsePack
	for _, p := range c.packs {
		x := sparsePack{p, live[p.number]}
		switch {
		case x.live == 0:
			dead = append(dead, p)
		case x.live*2 < p.stored, p.damaged.Load():
			sparse = append(sparse, x)
		case p.stored < c.s.opt.PackSize/smallPack && p.objects < maxObjects/smallPack:
			small = append(small, x)
		}
	}
	if len(small) >= manySmall {
		sparse = append(sparse, small...)
	}
	slices.SortFunc(sparse, func(a, b sparsePack) int {
		return cmp.Or(cmp.Compare(a.live, b.live), cmp.Compare(a.number, b.number))
	})
	return dead, sparse
}

// rounds groups packs whose live bytes fill a pack: each round frees space
// before the next one needs some.
func rounds(packs []sparsePack, size int64) (all [][]*pack) {
	var round []*pack
	var live int64
	for _, p := range packs {
		if round = append(round, p.pack); live+p.live >= size {
			all, round, live = append(all, round), nil, 0
			continue
		}
		live += p.live
	}
	if len(round) > 0 {
		all = append(all, round)
	}
	return all
}

// deleteUnreadable deletes packs that cannot be read. Nothing that is live is
// only in them.
func (c *collection) deleteUnreadable() {
	for name := range c.s.Unreadable() {
		path := c.s.packPath(name)
		if info, err := c.s.fs.Stat(path); err == nil {
			c.Freed += info.Size
		}
		c.s.discard(path)
		c.s.packs.forgetUnreadable(name)
		c.Deleted++
	}
}
