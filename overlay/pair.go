package overlay

import (
	"maps"
	"sync"
	"sync/atomic"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// pair counts the frames from one guest to another, as one end sees them,
// during the life of one link. Pairs on one node use link 0 and both ends
// share the pair.
type pair struct {
	source, destination int
	link                uint64

	sent, delivered, dropped atomic.Uint64
}

func (p *pair) report() *vftv1.PairCount {
	return &vftv1.PairCount{
		Source: uint32(p.source), Destination: uint32(p.destination),
		Sent: p.sent.Load(), Delivered: p.delivered.Load(), Dropped: p.dropped.Load(),
		Link: p.link,
	}
}

func (p *pair) idle() bool {
	return p.sent.Load() == 0 && p.delivered.Load() == 0 && p.dropped.Load() == 0
}

// pairTable is the pairs of one network that come over one link, for as long
// as the peer's handle means that network. Its identity is a counting period.
type pairTable struct {
	link uint64

	mu    sync.Mutex
	pairs map[uint32]*pair
}

func newPairTable(link uint64) *pairTable {
	return &pairTable{link: link, pairs: map[uint32]*pair{}}
}

func (t *pairTable) get(source, destination int) *pair {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := uint32(source)<<16 | uint32(destination)
	p := t.pairs[key]
	if p == nil {
		p = &pair{source: source, destination: destination, link: t.link}
		t.pairs[key] = p
	}
	return p
}

func (t *pairTable) report() []*vftv1.PairCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	var counts []*vftv1.PairCount
	for _, p := range t.pairs {
		if !p.idle() {
			counts = append(counts, p.report())
		}
	}
	return counts
}

// forget begins the counts of all pairs of a guest anew and returns the old ones.
func (t *pairTable) forget(guest int) map[uint32]*pair {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := map[uint32]*pair{}
	for key, p := range t.pairs {
		if p.source == guest || p.destination == guest {
			old[key] = p
			delete(t.pairs, key)
		}
	}
	return old
}

// restore takes back what forget returned.
func (t *pairTable) restore(old map[uint32]*pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.Copy(t.pairs, old)
}

// run is consecutive frames of one pair in QEMU's framing.
type run struct {
	data   []byte
	frames int
	pair   *pair // nil: not counted (any more)
}
