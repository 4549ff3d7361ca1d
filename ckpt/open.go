package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// Part is a part opened for reading. Nothing that it needs is collected until it
// is closed, whatever is deleted. Its methods may be called from several
// goroutines at once; what they return has been verified. Errors of all of them
// to decide on: ErrCorrupt, when something is damaged or missing and cannot be
// had from the part's source either.
type Part struct {
	s   *Store
	src Source // nil: only this store
	stored

	mu    sync.Mutex
	nodes map[object.ID][]byte // read before
	sent  map[object.ID][]byte // pages that came from the source, some of them unasked
}

// maxSent bounds the pages of the source that a Part keeps in memory: 16 MiB.
// They come with their neighbours, which whoever reads pages wants next.
const maxSent = 4096

// maxNodes bounds the nodes that a Part keeps in memory: 8 MiB.
const maxNodes = 1024

// Open opens a part whose manifest has the given digest. It must be closed.
// Errors to decide on: ErrNotFound; ErrMismatch when the stored part has another
// manifest; ErrCorrupt when its manifest is damaged.
func (s *Store) Open(id PartID, manifest string) (*Part, error) {
	if err := ValidateDigest(manifest); err != nil {
		return nil, fmt.Errorf("open part: %w", err)
	}
	p, err := s.open(id, manifest, nil)
	if err != nil {
		return nil, fmt.Errorf("open part: %w", err)
	}
	return p, nil
}

// OpenFrom opens a part that may be elsewhere: what of it this store has is read
// here, the rest from the source, without being stored. Errors are those of
// Open and of the source.
func (s *Store) OpenFrom(ctx context.Context, id PartID, manifest string, src Source) (*Part, error) {
	if err := ValidateDigest(manifest); err != nil {
		return nil, fmt.Errorf("open part: %w", err)
	}
	p, err := s.open(id, manifest, src)
	if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		return p, err
	}
	m, err := fetchManifest(ctx, id, manifest, src)
	if err != nil {
		return nil, fmt.Errorf("open part: %w", err)
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.opening(m, src), nil
}

// opening makes an open part. naming is held.
func (s *Store) opening(m stored, src Source) *Part {
	p := &Part{s: s, src: src, stored: m, nodes: map[object.ID][]byte{}, sent: map[object.ID][]byte{}}
	s.opened[p] = struct{}{}
	return p
}

// fetchManifest gets a manifest from a source.
func fetchManifest(ctx context.Context, id PartID, digest string, src Source) (stored, error) {
	raw, err := src.Manifest(ctx, id, digest)
	if err != nil {
		return stored{}, err
	}
	if got := Digest(raw); got != digest {
		return stored{}, fmt.Errorf("part %v: %w: manifest %s was sent, %s is wanted", id, ErrTransfer, got, digest)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return stored{}, fmt.Errorf("part %v: %w: %w", id, ErrTransfer, err)
	}
	if m.ID() != id {
		return stored{}, fmt.Errorf("part %v: %w: the manifest is that of %v", id, ErrMismatch, m.ID())
	}
	return stored{manifest: m, raw: raw, digest: digest}, nil
}

// named reads the manifest of a part and compares its digest; an empty one
// stands for any.
func (s *Store) named(id PartID, digest string) (stored, error) {
	if err := errors.Join(id.Validate(), s.alive()); err != nil {
		return stored{}, err
	}
	m, err := s.readManifest(id)
	if err == nil && digest != "" && m.digest != digest {
		err = fmt.Errorf("part %v: %w: its manifest is %s, not %s", id, ErrMismatch, m.digest, digest)
	}
	return m, err
}

func (s *Store) open(id PartID, digest string, src Source) (*Part, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	m, err := s.named(id, digest)
	if err != nil {
		return nil, err
	}
	return s.opening(m, src), nil
}

// Close lets what the part needs be collected, if it has been deleted. Other
// calls must have ended. The second call does nothing.
func (p *Part) Close() {
	p.s.naming.Lock()
	defer p.s.naming.Unlock()
	delete(p.s.opened, p)
}

// Manifest returns the part's manifest, which must not be changed.
func (p *Part) Manifest() *Manifest { return p.manifest }

// Info describes the part.
func (p *Part) Info() Info { return p.info() }

// Blocks returns the blocks of the guest's memory, in the order of the head.
func (p *Part) Blocks() []Block { return p.manifest.blocks() }

// Head returns what the guest's stream begins with.
func (p *Part) Head(ctx context.Context) ([]byte, error) {
	return p.section(ctx, "head", &p.manifest.Head)
}

// Tail returns what of the guest's stream follows the pages.
func (p *Part) Tail(ctx context.Context) ([]byte, error) {
	return p.section(ctx, "tail", &p.manifest.Tail)
}

// ChannelState returns the frames that were in the guest's port at the cut, in
// order.
func (p *Part) ChannelState(ctx context.Context) ([][]byte, error) {
	b, err := p.section(ctx, "channel", &p.manifest.Channel)
	if err != nil {
		return nil, err
	}
	frames, err := parseFrames(b, p.manifest.Frames)
	if err != nil {
		return nil, p.corrupt("channel", err.Error(), nil)
	}
	return frames, nil
}

// Hot returns pages that changed shortly before the cut, by block and number.
func (p *Part) Hot(ctx context.Context) ([]PageRange, error) {
	b, err := p.section(ctx, "hot", &p.manifest.Hot)
	if err != nil {
		return nil, err
	}
	hot, err := parseHot(b, p.manifest.Blocks)
	if err != nil {
		return nil, p.corrupt("hot", err.Error(), nil)
	}
	return hot, nil
}

// Page reads a page of a block, by its number, into dst, which has
// object.PageSize bytes. When it returns zero the page is all zero and dst is
// left as it is.
func (p *Part) Page(ctx context.Context, block int, page uint64, dst []byte) (zero bool, err error) {
	if block < 0 || block >= len(p.manifest.Blocks) || page >= p.manifest.Blocks[block].Pages() {
		return false, fmt.Errorf("part %v has no page %d of block %d", p.manifest.ID(), page, block)
	}
	leaf, err := p.leaf(ctx, block, page)
	if err != nil {
		return false, err
	}
	id := leaf.ID(int(page % table.Fanout))
	if id.IsZero() {
		return true, nil
	}
	b, err := p.get(ctx, object.KindPage, id, dst[:0])
	if err == nil && len(b) != object.PageSize {
		err = p.corrupt(p.place(block, page), fmt.Sprintf("it has %d bytes", len(b)), nil)
	}
	if err != nil {
		return false, p.locate(err, p.place(block, page))
	}
	copy(dst, b) // get may have moved it
	return false, nil
}

// Each calls fn for all pages of a block that are not zero, in order. data is
// valid during the call. An error of fn ends it and is returned.
func (p *Part) Each(ctx context.Context, block int, fn func(page uint64, data []byte) error) error {
	if block < 0 || block >= len(p.manifest.Blocks) {
		return fmt.Errorf("part %v has no block %d", p.manifest.ID(), block)
	}
	t := p.manifest.Blocks[block].table()
	buf := make([]byte, 0, object.PageSize)
	return t.Walk(ctx, p.nodeOf(block), func(r table.Ref, n table.Node) error {
		if r.Level > 1 {
			return nil
		}
		remote, err := p.ahead(ctx, n)
		if err != nil {
			return p.locate(err, fmt.Sprintf("pages from page %d of block %s on", r.First, p.manifest.Blocks[block].Name))
		}
		for i := range n.Len() {
			c := r.Child(n, i)
			if c.ID.IsZero() {
				continue
			}
			data := remote[c.ID]
			if data == nil {
				if buf, err = p.get(ctx, object.KindPage, c.ID, buf[:0]); err != nil {
					return p.locate(err, p.place(block, c.First))
				}
				data = buf
			}
			if err := fn(c.First, data); err != nil {
				return err
			}
		}
		return nil
	})
}

// ahead fetches the pages of a leaf that this store does not have.
func (p *Part) ahead(ctx context.Context, n table.Node) (map[object.ID][]byte, error) {
	if p.src == nil {
		return nil, nil
	}
	var missing []object.ID
	for i := range n.Len() {
		if id := n.ID(i); !p.s.objects.Has(id) {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	return p.fetch(ctx, object.KindPage, missing)
}

// fetch gets objects from the source, verified. There may be others among them.
func (p *Part) fetch(ctx context.Context, kind object.Kind, ids []object.ID) (map[object.ID][]byte, error) {
	all := map[object.ID][]byte{}
	if kind == object.KindPage {
		if ids = p.sentBefore(ids, all); len(ids) == 0 {
			return all, nil
		}
		defer p.keepSent(all)
	}
	err := p.src.Objects(ctx, kind, ids, func(e object.Extent) error {
		objects, err := decodeExtent(kind, &e)
		if err != nil {
			return err
		}
		for id, b := range objects {
			all[id] = b
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if all[id] == nil {
			return nil, fmt.Errorf("object %v: %w: it was not sent", id, ErrTransfer)
		}
	}
	return all, nil
}

// sentBefore adds those of the pages to all that the source has sent before, and
// returns the others.
func (p *Part) sentBefore(ids []object.ID, all map[object.ID][]byte) (rest []object.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if b := p.sent[id]; b != nil {
			all[id] = b
		} else {
			rest = append(rest, id)
		}
	}
	return rest
}

func (p *Part) keepSent(pages map[object.ID][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent)+len(pages) > maxSent {
		clear(p.sent)
	}
	if len(pages) <= maxSent {
		maps.Copy(p.sent, pages)
	}
}

// decodeExtent returns the objects of an extent that was sent.
func decodeExtent(kind object.Kind, e *object.Extent) (map[object.ID][]byte, error) {
	if e.Kind != kind {
		return nil, fmt.Errorf("%w: a %v where a %v is wanted", ErrTransfer, e.Kind, kind)
	}
	raw, err := e.Decode(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTransfer, err)
	}
	objects := make(map[object.ID][]byte, len(e.IDs))
	for i, id := range e.IDs {
		n := object.PageSize
		if e.Lengths != nil {
			n = int(e.Lengths[i])
		}
		objects[id] = raw[:n:n]
		raw = raw[n:]
	}
	return objects, nil
}

// get appends an object to dst, from the store or from the source.
func (p *Part) get(ctx context.Context, kind object.Kind, id object.ID, dst []byte) ([]byte, error) {
	b, err := p.s.objects.Get(ctx, id, dst)
	if err == nil || p.src == nil || !absent(err) {
		return b, err
	}
	sent, err := p.fetch(ctx, kind, []object.ID{id})
	if err != nil {
		return dst, err
	}
	return append(dst, sent[id]...), nil
}

// absent says that the store has no good copy of an object.
func absent(err error) bool {
	return errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrCorrupt)
}

// section reads a section.
func (p *Part) section(ctx context.Context, name string, s *Section) ([]byte, error) {
	var buf bytes.Buffer // grows with what there is, not with what is announced
	for i, id := range s.Chunks {
		what := fmt.Sprintf("chunk %d of %s", i, name)
		b, err := p.get(ctx, object.KindData, id, nil)
		if err != nil {
			return nil, p.locate(err, what)
		}
		if want := min(sectionChunk, s.Size-int64(i)*sectionChunk); int64(len(b)) != want {
			return nil, p.corrupt(what, fmt.Sprintf("it has %d bytes, the manifest says %d", len(b), want), nil)
		}
		buf.Write(b)
	}
	return buf.Bytes(), nil
}

// leaf returns the leaf over a page, empty when all of it is zero.
func (p *Part) leaf(ctx context.Context, block int, page uint64) (table.Node, error) {
	t, get := p.manifest.Blocks[block].table(), p.nodeOf(block)
	r, err := t.Lookup(ctx, get, page, 1)
	if err != nil || r.ID.IsZero() {
		return nil, p.badTable(block, err)
	}
	n, err := t.Node(ctx, get, r)
	return n, p.badTable(block, err)
}

func (p *Part) badTable(block int, err error) error {
	if errors.Is(err, table.ErrBad) {
		return p.corrupt("page table of block "+p.manifest.Blocks[block].Name, "it contradicts itself", err)
	}
	return err
}

// nodeOf returns a source of the nodes of a block.
func (p *Part) nodeOf(block int) table.Source {
	return func(ctx context.Context, r table.Ref) ([]byte, error) {
		p.mu.Lock()
		b := p.nodes[r.ID]
		p.mu.Unlock()
		if b != nil {
			return b, nil
		}
		b, err := p.get(ctx, object.KindNode, r.ID, nil)
		if err != nil {
			return nil, p.locate(err, fmt.Sprintf("page table of block %s at page %d", p.manifest.Blocks[block].Name, r.First))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.nodes) >= maxNodes {
			clear(p.nodes)
		}
		p.nodes[r.ID] = b
		return b, nil
	}
}

func (p *Part) place(block int, page uint64) string {
	return fmt.Sprintf("page %d of block %s", page, p.manifest.Blocks[block].Name)
}

// locate makes an error about an object one about the part.
func (p *Part) locate(err error, what string) error {
	if !absent(err) {
		return err
	}
	return p.corrupt(what, "it cannot be read", err)
}

func (p *Part) corrupt(what, reason string, err error) error {
	return &CorruptError{Part: p.manifest.ID(), What: what, Reason: reason, Err: err}
}
