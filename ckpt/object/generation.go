package object

import (
	"sync"
	"sync/atomic"
)

// generation counts collections, in a circle of 255 values from 1. The value 0
// is before all others.
type generation uint8

const generationCircle = 255

func (g generation) next() generation { return g%generationCircle + 1 }

// since returns how many generations g is after other.
func (g generation) since(other generation) int {
	return (int(g) - int(other) + generationCircle) % generationCircle
}

// before reports whether g is before other. Those that are compared are less
// than half a circle apart.
func (g generation) before(other generation) bool {
	d := other.since(g)
	return g == 0 || d > 0 && d <= generationCircle/2
}

// protection knows which batches are open, and since when: an object that
// somebody relied on in the generation of the oldest, or later, is live. So an
// object needs no more than a number to be protected, and each batch costs
// nothing per object that it keeps.
type protection struct {
	now atomic.Uint32 // a generation

	changing sync.RWMutex          // held for reading, nothing begins or ends
	open     map[*Batch]generation // guarded by changing
}

func newProtection() *protection {
	p := &protection{open: map[*Batch]generation{}}
	p.now.Store(1)
	return p
}

// current returns the generation in which what happens now happens.
func (p *protection) current() generation { return generation(p.now.Load()) }

// begin protects what b relies on from now on, until end.
func (p *protection) begin(b *Batch) {
	p.changing.Lock()
	defer p.changing.Unlock()
	p.open[b] = p.current()
}

func (p *protection) end(b *Batch) {
	p.changing.Lock()
	defer p.changing.Unlock()
	delete(p.open, b)
}

// batches returns those that are open.
func (p *protection) batches() []*Batch {
	p.changing.RLock()
	defer p.changing.RUnlock()
	all := make([]*Batch, 0, len(p.open))
	for b := range p.open {
		all = append(all, b)
	}
	return all
}

// oldest returns the generation of the oldest open batch, or the current one.
func (p *protection) oldest() generation {
	p.changing.RLock()
	defer p.changing.RUnlock()
	return p.oldestLocked()
}

func (p *protection) oldestLocked() generation {
	now, most := p.current(), p.current()
	for _, g := range p.open {
		if now.since(g) > now.since(most) {
			most = g
		}
	}
	return most
}

// advance begins the next generation, and returns that of the oldest batch that
// is still open; it is the new one when there is none. Next to a batch that has
// been open for very many collections it stays where it is, which protects more
// than is needed.
func (p *protection) advance() (oldest generation) {
	p.changing.Lock()
	defer p.changing.Unlock()
	if now := p.current(); now.since(p.oldestLocked()) < generationCircle/4 {
		p.now.Store(uint32(now.next()))
	}
	return p.oldestLocked()
}
