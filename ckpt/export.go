package ckpt

import (
	"context"
	"fmt"
	"io"

	"github.com/mpirun-vft/vft/ckpt/export"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// Exported is a part that goes into an export file.
type Exported struct {
	ID       PartID
	Manifest string // its digest
	From     Source // of what this store lacks; nil: nothing can be had elsewhere
}

// Export writes a file (docs/CKPT.md, "Export files") with parts, which share
// what they have in common, and blobs of this store. job is what the file says
// of them to whoever imports it. Nothing is written when a part's manifest or a
// blob is not there. Errors to decide on: those of w, ErrNotFound, ErrCorrupt,
// and those of the sources.
func (s *Store) Export(ctx context.Context, w io.Writer, job []byte, parts []Exported, blobs []string) (size int64, err error) {
	x := &exporter{s: s, w: export.NewWriter(w), sent: map[object.ID]struct{}{}, walked: map[object.ID]bool{}}
	if err := x.all(ctx, job, parts, blobs); err != nil {
		return x.w.Bytes(), fmt.Errorf("export: %w", err)
	}
	return x.w.Bytes(), nil
}

// maxRemembered bounds how many objects an exporter knows that it has sent:
// about 32 MiB. What it has forgotten it sends again, which costs room.
const maxRemembered = 1 << 20

// exporter writes one file.
type exporter struct {
	s      *Store
	w      *export.Writer
	sent   map[object.ID]struct{} // nodes and data, and pages while there is room
	walked map[object.ID]bool     // nodes: what is below them was sent
}

func (x *exporter) all(ctx context.Context, job []byte, parts []Exported, blobs []string) error {
	var open []*Part
	var content []*BlobReader
	defer func() {
		for _, p := range open {
			p.Close()
		}
		for _, r := range content {
			_ = r.Close() // only read from
		}
	}()
	for _, e := range parts {
		p, err := x.open(ctx, e)
		if err != nil {
			return err
		}
		open = append(open, p)
	}
	for _, digest := range blobs {
		r, err := x.s.Blobs().Open(ctx, digest)
		if err != nil {
			return err
		}
		content = append(content, r)
	}
	if err := x.w.Job(job); err != nil {
		return err
	}
	for _, p := range open {
		if err := x.part(ctx, p); err != nil {
			return err
		}
	}
	for _, r := range content {
		if err := x.w.Blob(r.digest, r.size, r); err != nil {
			return err
		}
	}
	return x.w.End()
}

func (x *exporter) open(ctx context.Context, e Exported) (*Part, error) {
	if e.From == nil {
		return x.s.Open(e.ID, e.Manifest)
	}
	return x.s.OpenFrom(ctx, e.ID, e.Manifest, e.From)
}

// part writes a part's manifest and those of its objects that the file does not
// have yet, from the top down.
func (x *exporter) part(ctx context.Context, p *Part) error {
	if err := x.w.Manifest(p.raw); err != nil {
		return err
	}
	for _, s := range p.manifest.sections() {
		if err := x.objects(ctx, p, object.KindData, s.Chunks, nil, s.name); err != nil {
			return err
		}
	}
	for _, b := range p.manifest.Blocks {
		if err := x.block(ctx, p, b); err != nil {
			return err
		}
	}
	return nil
}

func (x *exporter) block(ctx context.Context, p *Part, b BlockTable) error {
	t := b.table()
	var level []table.Ref
	if root := t.Ref(); !root.ID.IsZero() {
		level = append(level, root)
	}
	for len(level) > 0 && level[0].Level > 1 {
		below, err := x.nodes(ctx, p, b, level)
		if err != nil {
			return err
		}
		level = below
	}
	for len(level) > 0 {
		group := level[:min(len(level), leafGroup)]
		level = level[len(group):]
		pages, err := x.nodes(ctx, p, b, group)
		if err != nil {
			return err
		}
		ids := make([]object.ID, len(pages))
		for i, r := range pages {
			ids[i] = r.ID
		}
		if err := x.objects(ctx, p, object.KindPage, ids, nil, fmt.Sprintf("pages of block %s", b.Name)); err != nil {
			return err
		}
	}
	return nil
}

// nodes writes nodes and returns what is below those that are met for the first
// time.
func (x *exporter) nodes(ctx context.Context, p *Part, b BlockTable, refs []table.Ref) (below []table.Ref, err error) {
	ids := make([]object.ID, len(refs))
	for i, r := range refs {
		ids[i] = r.ID
	}
	contents := map[object.ID][]byte{}
	if err := x.objects(ctx, p, object.KindNode, ids, contents, "page table of block "+b.Name); err != nil {
		return nil, err
	}
	for _, r := range refs {
		if x.walked[r.ID] {
			continue
		}
		x.walked[r.ID] = true
		content, ok := contents[r.ID]
		if !ok { // it came in an extent with another one
			if content, err = p.get(ctx, object.KindNode, r.ID, nil); err != nil {
				return nil, p.locate(err, "page table of block "+b.Name)
			}
		}
		n, err := b.table().Parse(r, content)
		if err != nil {
			return nil, p.corrupt(fmt.Sprintf("page table of block %s at page %d", b.Name, r.First), "it contradicts itself", err)
		}
		for j := range n.Len() {
			if child := r.Child(n, j); !child.ID.IsZero() {
				below = append(below, child)
			}
		}
	}
	return below, nil
}

// objects writes objects that the file does not have yet, those of this store
// as they are stored and others as they come. With contents it also gives those.
// what names them for people.
func (x *exporter) objects(ctx context.Context, p *Part, kind object.Kind, ids []object.ID, contents map[object.ID][]byte, what string) error {
	missing := map[object.ID]bool{}
	var order []object.ID
	for _, id := range ids {
		if _, sent := x.sent[id]; !sent && !missing[id] && !id.IsZero() {
			missing[id] = true
			order = append(order, id)
		}
	}
	take := func(e object.Extent) error {
		objects, err := decodeExtent(kind, &e)
		if err != nil {
			return err
		}
		if err := x.w.Extent(e); err != nil {
			return err
		}
		for id, b := range objects {
			if contents != nil && missing[id] {
				contents[id] = b
			}
			delete(missing, id)
			if kind != object.KindPage || len(x.sent) < maxRemembered {
				x.sent[id] = struct{}{}
			}
		}
		return nil
	}
	err := x.s.objects.Extents(ctx, kind, order, take)
	if absent(err) && p.src != nil {
		rest := order[:0]
		for _, id := range order {
			if missing[id] {
				rest = append(rest, id)
			}
		}
		err = p.src.Objects(ctx, kind, rest, take)
	}
	if err != nil {
		return p.locate(err, what)
	}
	for id := range missing {
		return fmt.Errorf("%s of part %v: object %v: %w: it was not sent", what, p.manifest.ID(), id, ErrTransfer)
	}
	return nil
}
