package outside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// verifyingPacks is how many packs are read at once.
const verifyingPacks = 2

// Verify reads every byte of a part and of the packs that it names, and checks
// that everything is there that the part needs. Packs that are damaged are
// marked, so that the next Put sends them again. It returns how many bytes it
// read. Errors to decide on: ErrGone when the part cannot be had whole from the
// level.
func (l *Level) Verify(ctx context.Context, id ckpt.PartID, manifest string) (int64, error) {
	v := &verifying{Level: l}
	err := v.part(ctx, id, manifest)
	if err != nil {
		err = fmt.Errorf("verify part %v at %s: %w", id, l, asGone(err))
	}
	return v.read, err
}

// verifying is a call of Verify.
type verifying struct {
	*Level
	mu      sync.Mutex
	indexes []*object.PackIndex // the one that was found in last first
	read    int64
	damage  []error
}

func (v *verifying) part(ctx context.Context, id ckpt.PartID, manifest string) error {
	e, err := v.readPart(ctx, id, manifest)
	if err != nil {
		return err
	}
	v.read += int64(len(e.encode()))
	all, group := errgroup.WithContext(ctx)
	all.SetLimit(verifyingPacks)
	for _, name := range e.packs {
		all.Go(func() error { return v.pack(group, name) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if len(v.damage) > 0 {
		return errors.Join(v.damage...)
	}
	return v.reach(ctx, e.manifest)
}

// pack reads a pack. Damage is noted, other errors are returned.
func (v *verifying) pack(ctx context.Context, name object.PackName) error {
	x, err := v.readIndex(ctx, name)
	if err == nil {
		if err = x.Verify(&window{ctx: ctx, l: v.Level, name: name, size: x.Size()}); isDamage(err) {
			v.suspect(ctx, name, err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case err == nil:
		v.read += x.Size()
		v.indexes = append(v.indexes, x)
	case gone(err):
		v.damage = append(v.damage, err)
	default:
		return err
	}
	return nil
}

// reach checks that the packs have everything that a manifest needs.
func (v *verifying) reach(ctx context.Context, raw []byte) error {
	m, err := ckpt.ReadManifest(raw)
	if err != nil {
		return err
	}
	nodes := map[object.ID]bool{}
	var last struct { // neighbours are next to one another
		pack    *object.PackIndex
		extent  int
		content []byte
	}
	return m.Visit(ctx, func(ctx context.Context, id object.ID) ([]byte, error) {
		if nodes[id] {
			return nil, nil
		}
		nodes[id] = true
		x, o := v.find(object.KindNode, id)
		if x == nil {
			return nil, fmt.Errorf("node %v: %w", id, errIncomplete)
		}
		if last.pack != x || last.extent != o.Extent {
			content, err := x.ReadExtent(&packReader{ctx, v.Level, x.Name()}, o.Extent)
			if err != nil {
				return nil, err
			}
			last.pack, last.extent, last.content = x, o.Extent, content
		}
		return last.content[o.Offset:][:o.Length], nil
	}, func(kind object.Kind, id object.ID, at ckpt.Place) error {
		if x, _ := v.find(kind, id); x == nil {
			return fmt.Errorf("%v: %v %v: %w", at, kind, id, errIncomplete)
		}
		return nil
	})
}

// errIncomplete is about a part whose packs lack something.
var errIncomplete = fmt.Errorf("%w: no pack of the part has it", ckpt.ErrCorrupt)

func (v *verifying) find(kind object.Kind, id object.ID) (*object.PackIndex, object.Object) {
	for i, x := range v.indexes {
		if o, ok := x.Find(id); ok && o.Kind == kind {
			v.indexes[0], v.indexes[i] = v.indexes[i], v.indexes[0]
			return x, o
		}
	}
	return nil, object.Object{}
}

// window reads a pack at a level from the beginning to the end with few
// requests. It is for one goroutine.
type window struct {
	ctx  context.Context //nolint:containedctx // io.ReaderAt has none
	l    *Level
	name object.PackName
	size int64

	off  int64
	data []byte
}

// ReadAt implements io.ReaderAt.
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if off < w.off || off+int64(len(p)) > w.off+int64(len(w.data)) {
		n := max(int64(len(p)), min(readMost, w.size-off))
		w.off, w.data = off, make([]byte, n)
		got, err := w.l.readPack(w.ctx, w.name, w.data, off)
		if w.data = w.data[:got]; got < len(p) {
			copy(p, w.data)
			if err == nil {
				err = io.EOF
			}
			return got, err
		}
	}
	return copy(p, w.data[off-w.off:]), nil
}
