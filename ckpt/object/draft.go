package object

import (
	"slices"
	"sync"
	"time"
)

// draft is an extent on its way into a pack.
//
// It is filled under its owner's lock until it is submitted. Then a worker
// encodes it, the lane writes it, a worker reads it back and verifies it, and
// with its pack it becomes durable. The batches that rely on it may be others
// than its owner: who adds an object that is in a draft already joins it. A
// draft that nobody relies on any more is dropped on its way.
type draft struct {
	owner *Batch
	lane  *lane
	kind  Kind

	// Guarded by the owner until submitted is set, then fixed.
	ids       []ID
	lengths   []uint32 // nil for pages
	raw       *[]byte  // the objects; given back when they are encoded
	submitted bool
	charged   int64

	// Set by the worker that encodes, before encoded is closed.
	encoded chan struct{}
	length  int // of all objects, bytes
	codec   codec
	stored  *[]byte // given back when it is written

	// Set by the lane and by the worker that verifies.
	offset int64    // in the pack's file
	size   int      // stored bytes, sealed
	digest [16]byte // of them, as they were read back

	mu       sync.Mutex
	users    []*Batch
	finished bool // no one can join any more

	done chan struct{} // closed when the draft is durable or has failed
	err  error         // why it has failed; set before done is closed
}

func newDraft(owner *Batch, kind Kind, buf *[]byte) *draft {
	return &draft{
		owner: owner, lane: owner.lane, kind: kind, raw: buf,
		encoded: make(chan struct{}), users: []*Batch{owner}, done: make(chan struct{}),
	}
}

// add appends an object. The caller has seen that it fits.
func (d *draft) add(id ID, data []byte) {
	d.ids = append(d.ids, id)
	if d.kind != KindPage {
		d.lengths = append(d.lengths, uint32(len(data)))
	}
	*d.raw = append(*d.raw, data...)
}

// fits reports whether an object of n bytes has room.
func (d *draft) fits(n int) bool {
	return len(d.ids) < maxExtentObjects && len(*d.raw)+n <= extentTarget
}

// join makes b rely on the draft. It reports false when it is too late.
func (d *draft) join(b *Batch) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.finished {
		return false
	}
	if !slices.Contains(d.users, b) {
		d.users = append(d.users, b)
	}
	return true
}

// leave ends what join began.
func (d *draft) leave(b *Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.users, b); i >= 0 {
		d.users = slices.Delete(d.users, i, i+1)
	}
}

// finish ends joining and returns who relied on the draft. The second call
// reports false.
func (d *draft) finish() (users []*Batch, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.finished {
		return nil, false
	}
	d.finished = true
	users, d.users = d.users, nil
	return users, true
}

// dropUnwanted ends joining when nobody relies on the draft, and reports it.
func (d *draft) dropUnwanted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.finished || len(d.users) > 0 {
		return false
	}
	d.finished = true
	return true
}

// wanted reports whether somebody relies on the draft.
func (d *draft) wanted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.users) > 0
}

// encode runs in a worker.
func (s *Store) encode(d *draft) {
	defer close(d.encoded)
	if d.codec == codecZstd {
		d.stored, d.raw = d.raw, nil // encoded elsewhere
		return
	}
	d.length = len(*d.raw)
	l := levelRaw
	if d.wanted() {
		l = s.pace.choose(s.gate.fill())
	}
	if l == levelRaw {
		d.stored, d.raw = d.raw, nil
		return
	}
	out := s.buffers.get(d.length + bufferSlack)
	start := time.Now()
	b, smaller := s.encoders.encode(l, *d.raw, *out)
	s.pace.encoded(l, d.length, len(b), time.Since(start))
	if !smaller {
		s.buffers.put(out)
		d.stored, d.raw = d.raw, nil
		return
	}
	*out = b
	s.buffers.put(d.raw)
	d.codec, d.stored, d.raw = codecZstd, out, nil
}

// settle tells everybody who relies on the draft what has become of it.
func (s *Store) settle(d *draft, users []*Batch, err error) {
	s.pending.forget(d)
	d.err = err
	close(d.done)
	for _, b := range users {
		b.settled(d, err)
	}
}

// fail ends a draft that will not become durable.
func (s *Store) fail(d *draft, err error) {
	if users, first := d.finish(); first {
		s.settle(d, users, err)
	}
}

// release gives the draft's memory back.
func (s *Store) release(d *draft) {
	s.buffers.put(d.raw)
	s.buffers.put(d.stored)
	d.raw, d.stored = nil, nil
	s.gate.charge(-d.charged)
	d.charged = 0
}

// pending is the table of objects that are in drafts.
type pending struct{ shards [64]pendingShard }

type pendingShard struct {
	mu     sync.Mutex
	drafts map[ID]*draft
}

func newPending() *pending {
	p := &pending{}
	for i := range p.shards {
		p.shards[i].drafts = map[ID]*draft{}
	}
	return p
}

func (p *pending) shard(id ID) *pendingShard { return &p.shards[id[0]%64] }

// forget takes the draft's objects out.
func (p *pending) forget(d *draft) {
	for _, id := range d.ids {
		sh := p.shard(id)
		sh.mu.Lock()
		if sh.drafts[id] == d {
			delete(sh.drafts, id)
		}
		sh.mu.Unlock()
	}
}
