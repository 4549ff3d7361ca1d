package ckpt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// Writer takes one part: Head once, then pages in any order, then Tail, then
// Commit, all called by one goroutine. Fail and Abort may be called by any, at
// any time. What is in memory, besides pages on their way to the disk, is the
// part's page table: 16 bytes for each page, less where all is zero.
type Writer struct {
	*activity
	batch *object.Batch
	stall *time.Timer // ends the part when the disk does not take data

	blocks     []Block
	leaves     [][]*leaf // by block, then by number; nil: all zero
	head, tail []byte

	once sync.Once     // the commit is begun once
	done chan struct{} // closed when info and err are set
	info Info
	err  error
}

// leaf is the ids of the pages below a leaf.
type leaf [table.Fanout]object.ID

// maxTail bounds the state of all devices, in bytes.
const maxTail = 256 << 20

// Create starts a part. The context holds for the whole life of the Writer:
// when it ends, the part is given up. Either Commit or Abort must be called;
// Abort after Commit does nothing, so that it can be deferred.
func (s *Store) Create(ctx context.Context, id PartID) (*Writer, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("create part: %w", err)
	}
	a, err := s.begin(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("create part %v: %w", id, err)
	}
	w := &Writer{activity: a, batch: s.objects.NewBatch(a.ctx), done: make(chan struct{})}
	w.stall = time.AfterFunc(time.Hour, func() { a.cancel(fmt.Errorf("%w for %v", ErrStalled, s.opt.StallTimeout)) })
	w.stall.Stop()
	// A part that is lost is over, whether anybody still feeds it or not.
	context.AfterFunc(a.ctx, func() {
		w.once.Do(func() { w.finish(Info{}, a.err()) })
	})
	return w, nil
}

// finish ends the writer. It is called once.
func (w *Writer) finish(info Info, err error) {
	if err != nil {
		err = fmt.Errorf("part %v is not stored: %w", w.id, withHint(err, w.s.dir))
		w.cancel(err) // before files are removed, which may take a while
		w.s.log.Warn("part is not stored", "part", w.id.String(), "error", err)
	}
	w.batch.Close()
	w.info, w.err = info, err
	w.end()
	close(w.done)
}

// Head takes what the stream begins with, and the blocks that it announces.
func (w *Writer) Head(head []byte, blocks []Block) error {
	if w.blocks != nil {
		return w.lose(errors.New("a second head"))
	}
	if err := validateBlocks(blocks); err != nil {
		return w.lose(err)
	}
	w.head = append([]byte(nil), head...)
	w.blocks = append([]Block{}, blocks...)
	w.leaves = make([][]*leaf, len(blocks))
	for i, b := range blocks {
		w.leaves[i] = make([]*leaf, table.Leaves(b.Pages()))
	}
	return w.Lost()
}

// Page takes a page of a block, by its number; a page that comes again replaces
// the earlier one. data is copied. It waits while too much is on its way to the
// disk, but gives the part up rather than wait longer than the stall timeout.
// Once the part is lost every call returns why.
func (w *Writer) Page(block int, page uint64, data []byte) error {
	if isZero(data) {
		return w.Zero(block, page)
	}
	l, err := w.leaf(block, page, true)
	if err != nil {
		return err
	}
	id := object.Sum(object.KindPage, data)
	if err := w.s.opt.Faults.Hit(w.ctx, FaultPage); err != nil {
		return w.lose(err)
	}
	if err := w.add(object.KindPage, id, data); err != nil {
		return err
	}
	l[page%table.Fanout] = id
	return nil
}

// Zero says that a page is all zero.
func (w *Writer) Zero(block int, page uint64) error {
	l, err := w.leaf(block, page, false)
	if l != nil {
		l[page%table.Fanout] = object.ID{}
	}
	return err
}

func (w *Writer) leaf(block int, page uint64, make bool) (*leaf, error) {
	if w.ctx.Err() != nil {
		return nil, w.Lost()
	}
	if block < 0 || block >= len(w.blocks) || page >= w.blocks[block].Pages() {
		return nil, w.lose(fmt.Errorf("page %d of block %d, which is not there", page, block))
	}
	l := &w.leaves[block][page/table.Fanout]
	if *l == nil && make {
		*l = new(leaf)
	}
	return *l, nil
}

// isZero reports whether a page is all zero.
func isZero(b []byte) bool {
	const word = 64
	var zero [word]byte
	for len(b) >= word {
		if [word]byte(b) != zero {
			return false
		}
		b = b[word:]
	}
	return string(b) == string(zero[:len(b)])
}

// add stores an object unless it is there.
func (w *Writer) add(kind object.Kind, id object.ID, data []byte) error {
	if w.batch.Keep(id) {
		return nil
	}
	w.stall.Reset(w.s.opt.StallTimeout)
	err := w.batch.Add(kind, id, data)
	w.stall.Stop()
	if err != nil {
		return w.lose(err)
	}
	return nil
}

// Tail takes the next piece of what follows the pages.
func (w *Writer) Tail(p []byte) error {
	if len(w.tail)+len(p) > maxTail {
		return w.lose(fmt.Errorf("the device state has more than %d bytes", maxTail))
	}
	w.tail = append(w.tail, p...)
	return w.Lost()
}

// lose gives the part up and returns why it is lost.
func (w *Writer) lose(err error) error {
	w.Fail(err)
	return w.Lost()
}

// Fail gives the part up because its source failed: Commit returns err, unless
// the part was lost before.
func (w *Writer) Fail(err error) { w.cancel(err) }

// Lost returns why the part can no longer be committed, or nil. The source must
// be drained all the same.
func (w *Writer) Lost() error {
	select {
	case <-w.done:
		return w.err
	default:
		return w.activity.err()
	}
}

// Commit completes the part, makes it durable and verified, and gives it its
// name (docs/CKPT.md). On success the part is in the store. On an error it is
// not, except that when the context ends while the last step is being done, or
// when the disk fails to sync and to undo, it may be; it is complete then. A
// second Commit returns what the first one did.
//
// Errors to decide on: syscall.ENOSPC, ErrStalled, ErrConflict, ErrDeleted,
// and the cause of either context.
func (w *Writer) Commit(ctx context.Context, meta Meta) (Info, error) {
	go w.once.Do(func() { w.finish(w.commit(&meta)) })
	select {
	case <-w.done:
		return w.info, w.err
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	w.cancel(cause)
	// It may be over already, or soon; a hanging disk is not waited for.
	select {
	case <-w.done:
		return w.info, w.err
	default:
		return Info{}, fmt.Errorf("commit part %v: %w", w.id, cause)
	}
}

// Abort gives the part up and waits until what was not stored for it is gone,
// but no longer than the stall timeout. After Commit it does nothing.
func (w *Writer) Abort() {
	w.cancel(ErrAborted)
	timer := time.NewTimer(w.s.opt.StallTimeout)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		w.s.log.Warn("disk hangs: a part that was given up is still being written", "part", w.id.String())
	}
}

// hit passes a fault point.
func (a *activity) hit(point string) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.s.opt.Faults.Hit(a.ctx, point)
}

func (w *Writer) commit(meta *Meta) (Info, error) {
	if err := w.activity.err(); err != nil {
		return Info{}, err
	}
	if err := meta.validate(); err != nil {
		return Info{}, err
	}
	m := &Manifest{
		Version: manifestVersion,
		Job:     w.id.Job, Epoch: w.id.Epoch, Guest: w.id.Guest,
		Incarnation: meta.Incarnation, Engine: meta.Engine,
		Blocks: []BlockTable{}, Frames: len(meta.ChannelState),
		Compat: meta.Compat, Extra: meta.Extra,
	}
	if !meta.CutAt.IsZero() {
		m.CutAt = meta.CutAt.UnixNano()
	}
	hot, err := w.tables(m)
	if err != nil {
		return Info{}, err
	}
	for _, x := range []struct {
		to   *Section
		data []byte
	}{{&m.Head, w.head}, {&m.Tail, w.tail}, {&m.Channel, encodeFrames(meta.ChannelState)}, {&m.Hot, encodeHot(hot)}} {
		if *x.to, err = w.section(x.data); err != nil {
			return Info{}, err
		}
	}
	raw, err := m.encode()
	if err != nil {
		return Info{}, err
	}
	if err := w.hit(FaultBeforeSync); err != nil {
		return Info{}, err
	}
	if err := w.batch.Sync(w.ctx); err != nil {
		return Info{}, err
	}
	digest := Digest(raw)
	if err := w.name(raw, digest); err != nil {
		return Info{}, err
	}
	return m.info(digest, len(raw)), nil
}

// section stores data.
func (w *Writer) section(data []byte) (Section, error) {
	s := Section{Size: int64(len(data)), Chunks: []object.ID{}}
	for len(data) > 0 {
		chunk := data[:min(len(data), sectionChunk)]
		id := object.Sum(object.KindData, chunk)
		if err := w.add(object.KindData, id, chunk); err != nil {
			return s, err
		}
		s.Chunks = append(s.Chunks, id)
		data = data[len(chunk):]
	}
	return s, nil
}

// tables stores the page tables and counts pages. It returns those that
// changed since the parent part.
func (w *Writer) tables(m *Manifest) (hot []PageRange, err error) {
	parent, err := w.parent()
	if err != nil {
		return nil, err
	}
	if parent != nil {
		defer parent.Close()
	}
	changes := changes{m: m}
	node := make([]byte, 0, table.MaxNode)
	for i, b := range w.blocks {
		ids := make([]object.ID, len(w.leaves[i]))
		for n, l := range w.leaves[i] {
			old, err := parent.oldLeaf(w.ctx, i, b, uint64(n))
			if err != nil {
				return nil, err
			}
			changes.leaf(i, uint64(n)*table.Fanout, l, old)
			if l == nil {
				continue
			}
			if node = table.Append(node[:0], l[:]); len(node) == 0 {
				continue
			}
			ids[n] = object.Sum(object.KindNode, node)
			if err := w.add(object.KindNode, ids[n], node); err != nil {
				return nil, err
			}
		}
		root, err := table.Build(b.Pages(), func(n uint64) object.ID { return ids[n] }, func(node []byte) (object.ID, error) {
			id := object.Sum(object.KindNode, node)
			return id, w.add(object.KindNode, id, node)
		})
		if err != nil {
			return nil, err
		}
		m.Blocks = append(m.Blocks, BlockTable{Block: b, Root: root})
	}
	if parent == nil {
		return nil, nil // all pages are new: none comes before others
	}
	return changes.hot, nil
}

// parent opens the newest part of the same guest before this one, nil when
// there is none. It is only for comparing: one that cannot be read is none.
func (w *Writer) parent() (*Part, error) {
	ids, err := w.s.partIDs(w.id.Job)
	if err != nil {
		return nil, err
	}
	var newest PartID
	for _, id := range ids { // sorted by epoch
		if id.Guest == w.id.Guest && id.Epoch < w.id.Epoch {
			newest = id
		}
	}
	if newest.Job == "" {
		return nil, nil
	}
	p, err := w.s.open(newest, "", nil)
	if err != nil {
		w.s.log.Warn("the part before cannot be compared with", "part", newest.String(), "error", err)
		return nil, nil
	}
	return p, nil
}

// oldLeaf returns a leaf of the parent part p, nil when there is none or when it
// cannot be read.
func (p *Part) oldLeaf(ctx context.Context, block int, b Block, n uint64) (table.Node, error) {
	if p == nil || block >= len(p.manifest.Blocks) || p.manifest.Blocks[block].Block != b {
		return nil, nil
	}
	leaf, err := p.leaf(ctx, block, n*table.Fanout)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		p.s.log.Warn("the part before cannot be compared with", "part", p.manifest.ID().String(), "error", err)
		return nil, nil
	}
	return leaf, nil
}

// changes counts pages, and notes those that the parent part does not have.
type changes struct {
	m   *Manifest
	hot []PageRange
}

// leaf compares a leaf with the parent's.
func (c *changes) leaf(block int, first uint64, l *leaf, old table.Node) {
	if l == nil {
		return
	}
	for i, id := range l {
		if id.IsZero() {
			continue
		}
		c.m.Pages++
		if old.ID(i) == id {
			continue
		}
		c.m.Changed++
		page := first + uint64(i)
		if n := len(c.hot); n > 0 && c.hot[n-1].Block == block && c.hot[n-1].First+c.hot[n-1].Count == page {
			c.hot[n-1].Count++
		} else if n < maxHot {
			c.hot = append(c.hot, PageRange{Block: block, First: page, Count: 1})
		}
	}
}
