// Package table is the form in which a guest's memory is recorded: for each RAM
// block a tree of object ids whose leaves name pages. Subtrees that did not
// change between two epochs are the same objects, and subtrees of zero pages
// are no objects at all. docs/CKPT.md specifies the format.
//
// The package knows no store: nodes come from a [Source] and go to a function.
package table

import (
	"context"
	"errors"
	"fmt"

	"github.com/mpirun-vft/vft/ckpt/object"
)

const (
	// Fanout is the largest number of ids in a node: of pages in a leaf, of
	// nodes above.
	Fanout = 512
	// MaxNode is the largest size of a node, in bytes.
	MaxNode = Fanout * idSize
	// MaxPages is the largest number of pages of one table.
	MaxPages = 1 << 36

	idSize = len(object.ID{})
)

// ErrBad means that a node is not one, or not one of the table it was found in.
var ErrBad = errors.New("bad page table")

// Height returns the number of levels of nodes of a table, at least 1.
func Height(pages uint64) int {
	height := 1
	for span := uint64(Fanout); span < pages; span *= Fanout {
		height++
	}
	return height
}

// Leaves returns how many leaves so many pages need.
func Leaves(pages uint64) uint64 { return (pages + Fanout - 1) / Fanout }

// Ref is a place in a table and what is there.
type Ref struct {
	ID    object.ID
	Level int    // 0: a page, 1: a leaf, above: inner nodes
	First uint64 // the first page below it
}

// span is how many pages are below a ref of this level.
func span(level int) uint64 { return 1 << (9 * level) }

// Child returns the i-th child of r, whose node is n.
func (r Ref) Child(n Node, i int) Ref {
	return Ref{ID: n.ID(i), Level: r.Level - 1, First: r.First + uint64(i)*span(r.Level-1)}
}

// Table is the memory of one RAM block.
type Table struct {
	Pages uint64    // length of the block
	Root  object.ID // zero: nothing but zero pages
}

// Ref returns the root's place.
func (t Table) Ref() Ref { return Ref{ID: t.Root, Level: Height(t.Pages)} }

// Parse checks that b can be the node at r.
func (t Table) Parse(r Ref, b []byte) (Node, error) {
	count := len(b) / idSize
	switch {
	case r.Level < 1 || r.First >= t.Pages:
		return nil, fmt.Errorf("%w: a node at level %d, page %d of %d", ErrBad, r.Level, r.First, t.Pages)
	case len(b)%idSize != 0 || count == 0 || count > Fanout:
		return nil, fmt.Errorf("%w: a node of %d bytes", ErrBad, len(b))
	case Node(b).ID(count - 1).IsZero():
		return nil, fmt.Errorf("%w: a node that ends in an id of zero", ErrBad)
	case r.First+uint64(count-1)*span(r.Level-1) >= t.Pages:
		return nil, fmt.Errorf("%w: a node at page %d reaches past the end, page %d", ErrBad, r.First, t.Pages)
	}
	return Node(b), nil
}

// Source returns the bytes of the node at r, which are those of its id. They
// must not change as long as the node is in use.
type Source func(ctx context.Context, r Ref) ([]byte, error)

// Lookup returns what is at a level over a page: 0 the page itself, 1 its leaf.
// The id is zero when all of it is.
func (t Table) Lookup(ctx context.Context, get Source, page uint64, level int) (Ref, error) {
	r := t.Ref()
	if page >= t.Pages || level < 0 || level > r.Level {
		return Ref{}, fmt.Errorf("%w: level %d of page %d of %d", ErrBad, level, page, t.Pages)
	}
	for r.Level > level {
		if r.ID.IsZero() {
			return Ref{Level: level, First: page &^ (span(level) - 1)}, nil
		}
		n, err := t.Node(ctx, get, r)
		if err != nil {
			return Ref{}, err
		}
		r = r.Child(n, int((page-r.First)/span(r.Level-1)))
	}
	return r, nil
}

// Node returns the node at r.
func (t Table) Node(ctx context.Context, get Source, r Ref) (Node, error) {
	b, err := get(ctx, r)
	if err != nil {
		return nil, err
	}
	return t.Parse(r, b)
}

// Walk visits the nodes that are not zero from the first page to the last, a
// node before its children. It leaves out a node for which get returns nil and
// no error, and what is below it.
func (t Table) Walk(ctx context.Context, get Source, visit func(r Ref, n Node) error) error {
	if t.Root.IsZero() {
		return nil
	}
	return t.walk(ctx, get, t.Ref(), visit)
}

func (t Table) walk(ctx context.Context, get Source, r Ref, visit func(Ref, Node) error) error {
	b, err := get(ctx, r)
	if err != nil || b == nil {
		return err
	}
	n, err := t.Parse(r, b)
	if err != nil {
		return err
	}
	if err := visit(r, n); err != nil || r.Level == 1 {
		return err
	}
	for i := range n.Len() {
		if child := r.Child(n, i); !child.ID.IsZero() {
			if err := t.walk(ctx, get, child, visit); err != nil {
				return err
			}
		}
	}
	return nil
}
