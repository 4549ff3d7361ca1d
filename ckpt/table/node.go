package table

import "github.com/mpirun-vft/vft/ckpt/object"

// Node is a node's bytes: ids, those that are zero at its end left out.
type Node []byte

// Len returns how many ids the node has. All further ones are zero.
func (n Node) Len() int { return len(n) / idSize }

// ID returns the i-th id.
func (n Node) ID(i int) object.ID {
	if i >= n.Len() {
		return object.ID{}
	}
	return object.ID(n[i*idSize:])
}

// Append appends the bytes of the node with these ids, at most Fanout, to b.
// Nothing is appended when all are zero.
func Append(b []byte, ids []object.ID) []byte {
	for len(ids) > 0 && ids[len(ids)-1].IsZero() {
		ids = ids[:len(ids)-1]
	}
	for i := range ids {
		b = append(b, ids[i][:]...)
	}
	return b
}

// Build makes the nodes above the leaves and returns the root. leaf returns the
// id of a leaf, and put stores a node, whose bytes it must not keep.
func Build(pages uint64, leaf func(i uint64) object.ID, put func(node []byte) (object.ID, error)) (object.ID, error) {
	if pages == 0 {
		return object.ID{}, nil
	}
	b := builder{leaves: Leaves(pages), leaf: leaf, put: put}
	return b.build(Height(pages), 0)
}

type builder struct {
	leaves uint64
	leaf   func(i uint64) object.ID
	put    func(node []byte) (object.ID, error)
}

// build returns the id of the node of this level whose first leaf is first.
func (b *builder) build(level int, first uint64) (object.ID, error) {
	if level == 1 {
		return b.leaf(first), nil
	}
	step := span(level-1) / Fanout // leaves below a child
	ids := make([]object.ID, 0, Fanout)
	for i := first; i < b.leaves && len(ids) < Fanout; i += step {
		id, err := b.build(level-1, i)
		if err != nil {
			return object.ID{}, err
		}
		ids = append(ids, id)
	}
	node := Append(make([]byte, 0, len(ids)*idSize), ids)
	if len(node) == 0 {
		return object.ID{}, nil
	}
	return b.put(node)
}
