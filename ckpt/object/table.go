package object

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// where says in which pack and extent an object is, and what is known about
// this copy of it:
//
//	bits 0..7    number of the object in the extent
//	bits 8..25   number of the extent in the pack
//	bits 26..49  number of the pack, from 1; 0 in an empty slot
//	bit  50      marked by the collection that runs
//	bit  51      found damaged
//	bits 56..63  generation in which somebody last relied on it, 0 for long ago
type where uint64

const (
	markedBit where = 1 << 50
	badBit    where = 1 << 51

	maxPackNumber = 1<<24 - 1
	placeMask     = 1<<50 - 1
	generationAt  = 56
)

func place(pack uint32, extent, object int) where {
	return where(pack)<<26 | where(extent)<<8 | where(object)
}

func (w where) pack() uint32 { return uint32(w>>26) & maxPackNumber }
func (w where) extent() int  { return int(w>>8) & (maxExtents - 1) }
func (w where) object() int  { return int(w) & (maxExtentObjects - 1) }

// at returns only the place: what two copies of an object differ in.
func (w where) at() where { return w & placeMask }

func (w where) generation() generation { return generation(w >> generationAt) }

// live reports whether a collection must leave the object, when the oldest
// batch that is open began in generation oldest.
func (w where) live(oldest generation) bool {
	return w&markedBit != 0 || !w.generation().before(oldest)
}

func (w where) withGeneration(g generation) where {
	return w&(1<<generationAt-1) | where(g)<<generationAt
}

// slot is an entry of the table. where is changed atomically under the read
// lock, the rest under the write lock.
type slot struct {
	id    ID
	where uint64
}

func (s *slot) load() where { return where(atomic.LoadUint64(&s.where)) }

// update replaces the entry's state by what change makes of it.
func (s *slot) update(change func(where) where) {
	for {
		old := s.load()
		next := change(old)
		if next == old || atomic.CompareAndSwapUint64(&s.where, uint64(old), uint64(next)) {
			return
		}
	}
}

const (
	segmentBits = 10
	// slotBytes is the size of a slot; memory comes in pages of memoryPage bytes.
	slotBytes  = 24
	memoryPage = 8192
)

// table is the index in memory: for each copy of each object, where it is. It
// is made of segments that grow one by one, so that no insertion waits for more
// than one of them to be copied.
//
// A segment is an open-addressed hash table that is kept in the order of the
// ids (ids are hashes, so their order is the order of their home slots):
// a search ends at the first greater id, even when the table is nearly full.
// Copies of one object stand side by side.
type table struct {
	segments [1 << segmentBits]segment
}

type segment struct {
	mu    sync.RWMutex
	slots []slot
	homes int // slots where searches begin; those behind take what does not fit
	used  int
}

func (t *table) segment(id ID) *segment {
	return &t.segments[binary.BigEndian.Uint16(id[:])>>(16-segmentBits)]
}

// home returns the slot where the search for id begins.
func (g *segment) home(id ID) int {
	hi, _ := bits.Mul64(binary.BigEndian.Uint64(id[:])<<segmentBits, uint64(g.homes))
	return int(hi)
}

// find returns the first slot of id, or where it would have to be inserted.
func (g *segment) find(id ID) (int, bool) {
	i := g.home(id)
	for ; i < len(g.slots) && g.slots[i].load() != 0; i++ {
		switch bytes.Compare(g.slots[i].id[:], id[:]) {
		case 0:
			return i, true
		case 1:
			return i, false
		}
	}
	return i, false
}

// copies returns the slots of id.
func (g *segment) copies(id ID) []slot {
	i, ok := g.find(id)
	if !ok {
		return nil
	}
	end := i + 1
	for end < len(g.slots) && g.slots[end].id == id && g.slots[end].load() != 0 {
		end++
	}
	return g.slots[i:end]
}

// lookup returns where a copy is that is not known to be damaged.
func (t *table) lookup(id ID) (where, bool) {
	g := t.segment(id)
	g.mu.RLock()
	defer g.mu.RUnlock()
	copies := g.copies(id)
	for i := range copies {
		if w := copies[i].load(); w&badBit == 0 {
			return w, true
		}
	}
	return 0, false
}

// change changes the state of all copies, and reports whether one of them is
// not known to be damaged.
func (t *table) change(id ID, how func(where) where) bool {
	g := t.segment(id)
	g.mu.RLock()
	defer g.mu.RUnlock()
	copies, good := g.copies(id), false
	for i := range copies {
		copies[i].update(how)
		good = good || copies[i].load()&badBit == 0
	}
	return good
}

// touch notes that somebody relies on an object from now on.
func (t *table) touch(id ID, now generation) bool {
	return t.change(id, func(w where) where {
		if w.generation().before(now) {
			return w.withGeneration(now)
		}
		return w
	})
}

// mark notes that an object is reachable.
func (t *table) mark(id ID) bool {
	return t.change(id, func(w where) where { return w | markedBit })
}

// setBad notes that one copy is damaged.
func (t *table) setBad(id ID, at where) {
	t.change(id, func(w where) where {
		if w.at() == at.at() {
			return w | badBit
		}
		return w
	})
}

// others returns where good copies of id are besides that in a pack.
func (t *table) others(id ID, pack uint32) []where {
	g := t.segment(id)
	g.mu.RLock()
	defer g.mu.RUnlock()
	var found []where
	copies := g.copies(id)
	for i := range copies {
		if w := copies[i].load(); w&badBit == 0 && w.pack() != pack {
			found = append(found, w)
		}
	}
	return found
}

// insert adds a copy.
func (t *table) insert(id ID, w where) {
	g := t.segment(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if (g.used+1)*100 > len(g.slots)*maxLoad {
		g.grow(nextLength(len(g.slots)))
	}
	for {
		i, _ := g.find(id)
		end := i
		for end < len(g.slots) && g.slots[end].load() != 0 {
			end++
		}
		if end == len(g.slots) {
			// The last cluster has run over the end: more room behind it.
			g.slots = append(make([]slot, 0, end+memoryPage/slotBytes), g.slots...)
			g.slots = g.slots[:cap(g.slots)]
			continue
		}
		copy(g.slots[i+1:end+1], g.slots[i:end])
		g.slots[i] = slot{id: id, where: uint64(w)}
		g.used++
		return
	}
}

// remove takes a copy out, and reports whether it was there.
func (t *table) remove(id ID, at where) bool {
	g := t.segment(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.removeIf(id, at, func(where) bool { return true })
}

// removeUnless takes a copy out unless it is live (where.live). It returns the
// state of the copy that stays, 0 when none does.
func (t *table) removeUnless(id ID, at where, oldest generation) (stays where) {
	g := t.segment(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeIf(id, at, func(w where) bool {
		if w.live(oldest) {
			stays = w
			return false
		}
		return true
	})
	return stays
}

func (g *segment) removeIf(id ID, at where, condition func(where) bool) bool {
	i, ok := g.find(id)
	for ok && g.slots[i].load().at() != at.at() {
		i++
		ok = i < len(g.slots) && g.slots[i].id == id
	}
	if !ok || !condition(g.slots[i].load()) {
		return false
	}
	// Close the gap with those behind that are not in their home slot.
	end := i + 1
	for end < len(g.slots) && g.slots[end].load() != 0 && g.home(g.slots[end].id) < end {
		end++
	}
	copy(g.slots[i:end-1], g.slots[i+1:end])
	g.slots[end-1] = slot{}
	g.used--
	return true
}

const (
	// maxLoad is how full a segment gets, and growth by how much it grows then,
	// in percent: between them, memory per object stays below 35 bytes.
	maxLoad = 86
	growth  = 115
)

// nextLength returns how many slots a segment gets when it has become full.
func nextLength(slots int) int {
	bytes := max(16, slots*growth/100+1) * slotBytes
	if bytes > 4*memoryPage {
		bytes = (bytes + memoryPage - 1) / memoryPage * memoryPage
	}
	return bytes / slotBytes
}

// grow moves everything to a larger segment. In the order of the ids each entry
// goes to its home, or right behind the one before.
func (g *segment) grow(length int) {
	old := g.slots
	g.slots, g.homes = make([]slot, length), length-min(length/8, 32)
	next := 0
	for i := range old {
		if old[i].where == 0 {
			continue
		}
		next = max(next, g.home(old[i].id))
		if next == len(g.slots) {
			g.slots = append(g.slots, slot{})
		}
		g.slots[next] = old[i]
		next++
	}
}

// each visits all copies, segment by segment; those of one object follow one
// another. visit may change the state of the slot, nothing else.
func (t *table) each(visit func(*slot)) {
	for i := range t.segments {
		g := &t.segments[i]
		g.mu.RLock()
		for j := range g.slots {
			if g.slots[j].load() != 0 {
				visit(&g.slots[j])
			}
		}
		g.mu.RUnlock()
	}
}

// size returns the number of copies, and the bytes of memory that they take.
func (t *table) size() (copies, bytes int64) {
	for i := range t.segments {
		g := &t.segments[i]
		g.mu.RLock()
		copies += int64(g.used)
		bytes += int64(len(g.slots)) * slotBytes
		g.mu.RUnlock()
	}
	return copies, bytes
}
