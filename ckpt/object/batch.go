package object

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Batch is a series of objects that somebody stores, and relies on until Close.
// What it is given or told to keep is not collected meanwhile. Its methods may
// be called from several goroutines at once.
//
// Batches share what is on its way to the disk: an object that two of them add
// is stored once, and both wait for it. When one is closed early, the other
// still gets it; when a pack cannot be written, all batches with an object in
// it fail.
type Batch struct {
	s      *Store
	lane   *lane
	ctx    context.Context //nolint:containedctx // the life of the batch
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	closed  bool
	filling [kinds]*draft
	waiting map[*draft]struct{} // not durable yet
}

// NewBatch begins a batch. It must be closed. When ctx ends the batch fails.
func (s *Store) NewBatch(ctx context.Context) *Batch { return s.newBatch(ctx, s.ingest) }

func (s *Store) newBatch(ctx context.Context, l *lane) *Batch {
	b := &Batch{s: s, lane: l, waiting: map[*draft]struct{}{}}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	s.protection.begin(b)
	if s.ctx.Err() != nil { // closed; later than this, Close finds the batch
		b.cancel(ErrClosed)
	}
	return b
}

// failure returns why the batch can no longer become durable, or nil.
func (b *Batch) failure() error {
	if b.ctx.Err() == nil {
		return nil
	}
	return context.Cause(b.ctx)
}

// Add stores an object under its id, which the caller has computed with Sum.
// data is copied, unless the object is stored already. Add waits while too much
// is on its way to the disk. Once the batch has failed, every call returns the
// failure.
func (b *Batch) Add(kind Kind, id ID, data []byte) error {
	if id.IsZero() {
		return nil
	}
	if err := kind.checkLength(len(data)); err != nil {
		return fmt.Errorf("add object %v: %w", id, err)
	}
	if err := b.failure(); err != nil {
		return err
	}
	if b.s.table.touch(id, b.s.protection.current()) {
		return nil
	}
	return b.add(kind, id, data, false)
}

// add stores an object that has no durable copy, or, with another, whether it
// has one or not.
func (b *Batch) add(kind Kind, id ID, data []byte, another bool) error {
	if err := b.s.gate.wait(b.ctx, b.lane.memory); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.failure(); err != nil {
		return err
	}
	sh := b.s.pending.shard(id)
	sh.mu.Lock()
	if b.join(sh.drafts[id]) || !another && b.s.table.touch(id, b.s.protection.current()) {
		sh.mu.Unlock()
		return nil
	}
	d := b.room(kind, len(data))
	sh.drafts[id] = d
	sh.mu.Unlock()
	d.add(id, data)
	if !d.fits(1) {
		b.submit(d)
	}
	return nil
}

// join makes the batch wait for a draft, if there is one that can be joined.
func (b *Batch) join(d *draft) bool {
	if d == nil || !d.join(b) {
		return false
	}
	b.waiting[d] = struct{}{}
	return true
}

// room returns a draft with room for an object of n bytes.
func (b *Batch) room(kind Kind, n int) *draft {
	d := b.filling[kind]
	if d != nil && !d.fits(n) {
		b.submit(d)
		d = nil
	}
	if d == nil {
		d = newDraft(b, kind, b.s.buffers.get(max(n, extentTarget)))
		b.filling[kind] = d
		b.waiting[d] = struct{}{}
	}
	return d
}

// submit sends a draft on its way. It never waits: who begins a draft has.
func (b *Batch) submit(d *draft) {
	d.submitted = true
	if b.filling[d.kind] == d {
		b.filling[d.kind] = nil
	}
	d.charged = int64(cap(*d.raw))
	b.s.gate.charge(d.charged)
	if b.lane.queue.push(laneItem{draft: d}) {
		b.s.workers.do(func() { b.s.encode(d) }, false)
	}
}

// AddExtent stores objects that come from another pack, without compressing
// them again when at least half of them are new. They are verified, and copied.
// The error is an ErrExtent when the extent is bad.
func (b *Batch) AddExtent(e Extent) error {
	raw, err := e.Decode(nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrExtent, err)
	}
	var missing, bytes int
	for i, data := range e.split(raw) {
		if !b.Keep(e.IDs[i]) {
			missing++
			bytes += len(data)
		}
	}
	switch {
	case b.failure() != nil:
		return b.failure()
	case missing == 0:
		return nil
	case e.Compressed && bytes >= len(raw)/2:
		return b.addWhole(e)
	}
	for i, data := range e.split(raw) {
		if err := b.Add(e.Kind, e.IDs[i], data); err != nil {
			return err
		}
	}
	return nil
}

// addWhole stores a compressed and verified extent as it is. Objects in it that
// are stored already get another copy.
func (b *Batch) addWhole(e Extent) error {
	if err := b.s.gate.wait(b.ctx, b.lane.memory); err != nil {
		return err
	}
	buf := b.s.buffers.get(len(e.Stored) + sealSize)
	*buf = append(*buf, e.Stored...)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.failure(); err != nil {
		return err
	}
	d := newDraft(b, e.Kind, buf)
	d.ids, d.lengths = slices.Clone(e.IDs), slices.Clone(e.Lengths)
	d.length, d.codec = e.Length, codecZstd
	b.waiting[d] = struct{}{}
	for _, id := range d.ids {
		sh := b.s.pending.shard(id)
		sh.mu.Lock()
		if sh.drafts[id] == nil {
			sh.drafts[id] = d
		}
		sh.mu.Unlock()
	}
	b.submit(d)
	return nil
}

// Keep protects an object from collection until Close, if it is stored or on
// its way. If it is neither, or if the batch has failed, Keep returns false:
// the caller must Add it.
func (b *Batch) Keep(id ID) bool {
	switch {
	case id.IsZero():
		return true
	case b.failure() != nil:
		return false
	case b.s.table.touch(id, b.s.protection.current()):
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	sh := b.s.pending.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return b.join(sh.drafts[id]) || b.s.table.touch(id, b.s.protection.current())
}

// Sync waits until everything that was added or kept before is durable: read
// back, decoded and hashed again, synced, and named. When it fails for another
// reason than ctx, the batch has failed.
func (b *Batch) Sync(ctx context.Context) error {
	drafts, err := b.submitAll()
	if err != nil {
		return err
	}
	lanes := map[*lane]bool{}
	for _, d := range drafts {
		d.owner.submitShared(d)
		lanes[d.lane] = true
	}
	for l := range lanes {
		l.queue.push(laneItem{flush: true})
	}
	for _, d := range drafts {
		select {
		case <-d.done:
			if d.err != nil {
				return d.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.ctx.Done():
			return b.failure()
		}
	}
	return b.failure()
}

// submitAll sends what the batch has gathered on its way, and returns
// everything that it waits for.
func (b *Batch) submitAll() ([]*draft, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.failure(); err != nil {
		return nil, err
	}
	for _, d := range b.filling {
		if d != nil {
			b.submit(d)
		}
	}
	drafts := make([]*draft, 0, len(b.waiting))
	for d := range b.waiting {
		drafts = append(drafts, d)
	}
	return drafts, nil
}

// submitShared sends a draft of this batch on its way because another batch
// needs it.
func (b *Batch) submitShared(d *draft) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !d.submitted {
		b.submit(d)
	}
}

// settled notes what has become of a draft that the batch relied on.
func (b *Batch) settled(d *draft, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, d)
	if err != nil {
		b.cancel(err)
	}
}

// Close ends the protection. What has not been synced is dropped, unless
// another batch relies on it. The second call does nothing.
func (b *Batch) Close() {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.closed = true
	b.cancel(ErrClosed)
	unsynced := len(b.waiting) > 0
	for d := range b.waiting {
		d.leave(b)
	}
	var dropped []*draft
	for _, d := range b.filling {
		switch {
		case d == nil:
		case d.dropUnwanted():
			dropped = append(dropped, d)
		default:
			b.submit(d)
		}
	}
	clear(b.waiting)
	b.filling = [kinds]*draft{}
	b.mu.Unlock()

	for _, d := range dropped {
		b.s.settle(d, nil, ErrClosed)
		b.s.release(d)
	}
	if unsynced {
		b.lane.queue.push(laneItem{tidy: true})
	}
	b.s.protection.end(b)
}
