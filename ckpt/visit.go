package ckpt

import (
	"context"
	"errors"
	"fmt"

	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// ReadManifest reads a manifest that was verified by its digest. Errors to
// decide on: ErrVersion.
func ReadManifest(raw []byte) (*Manifest, error) { return parseManifest(raw) }

// Place says for people what an object is in a part.
type Place struct {
	section string // empty: of a block
	block   string
	node    bool
	number  uint64 // of the chunk, the page, or the first page below the node
}

// String names the place as errors about it do: "page 7 of block pc.ram".
func (p Place) String() string {
	switch {
	case p.section != "":
		return fmt.Sprintf("chunk %d of %s", p.number, p.section)
	case p.node:
		return fmt.Sprintf("page table of block %s at page %d", p.block, p.number)
	}
	return fmt.Sprintf("page %d of block %s", p.number, p.block)
}

// Visit calls each with every object that the part needs, some of them more than
// once; zero pages are none. node gets the verified content of a node of a page
// table; when it returns nil without an error, the node and what is below it
// are left out. Errors are those of the two, with the place, and ErrCorrupt for
// a page table that contradicts itself.
func (m *Manifest) Visit(ctx context.Context, node func(ctx context.Context, id object.ID) ([]byte, error), each func(kind object.Kind, id object.ID, at Place) error) error {
	for _, s := range m.sections() {
		for i, id := range s.Chunks {
			if err := each(object.KindData, id, Place{section: s.name, number: uint64(i)}); err != nil {
				return err
			}
		}
	}
	for _, b := range m.Blocks {
		err := b.table().Walk(ctx, func(ctx context.Context, r table.Ref) ([]byte, error) {
			content, err := node(ctx, r.ID)
			if err != nil {
				return nil, fmt.Errorf("%v: %w", Place{block: b.Name, node: true, number: r.First}, err)
			}
			return content, nil
		}, func(r table.Ref, n table.Node) error {
			if err := each(object.KindNode, r.ID, Place{block: b.Name, node: true, number: r.First}); err != nil || r.Level > 1 {
				return err
			}
			for i := range n.Len() {
				c := r.Child(n, i)
				if c.ID.IsZero() {
					continue
				}
				if err := each(object.KindPage, c.ID, Place{block: b.Name, number: c.First}); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, table.ErrBad) {
			return &CorruptError{Part: m.ID(), What: "page table of block " + b.Name, Reason: "it contradicts itself", Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Packs returns the packs of the store that everything the part needs is in, in
// the order in which the part needs them. A collection may move objects to
// other packs at any time; the objects stay until the part is closed. The error
// is an ErrCorrupt when the store lacks something of the part.
func (p *Part) Packs(ctx context.Context) ([]object.PackName, error) {
	var packs []object.PackName
	seen := map[object.PackName]bool{}
	nodes := map[object.ID]bool{}
	err := p.manifest.Visit(ctx, func(ctx context.Context, id object.ID) ([]byte, error) {
		if nodes[id] {
			return nil, nil
		}
		nodes[id] = true
		return p.s.objects.Get(ctx, id, nil)
	}, func(_ object.Kind, id object.ID, at Place) error {
		name, ok := p.s.objects.Locate(id)
		if !ok {
			return p.corrupt(at.String(), "it is missing", nil)
		}
		if !seen[name] {
			seen[name] = true
			packs = append(packs, name)
		}
		return nil
	})
	if absent(err) && !errors.Is(err, ErrCorrupt) {
		err = p.corrupt("page table", "it cannot be read", err)
	}
	return packs, err
}

// OpenPack opens a pack of the store as it is; VerifyPack says whether it is
// good. Errors to decide on: object.ErrNotFound, when a collection has moved
// what was in it.
func (s *Store) OpenPack(name object.PackName) (object.PackFile, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	return s.objects.OpenPack(name)
}

// VerifyPack reads every byte of a pack from the device. What is damaged counts
// as missing from then on. Errors to decide on: object.ErrCorrupt,
// object.ErrNotFound.
func (s *Store) VerifyPack(ctx context.Context, name object.PackName) error {
	if err := s.alive(); err != nil {
		return err
	}
	return s.objects.VerifyPack(ctx, name)
}
