package sidecar

import (
	"context"
	"errors"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/vm"
)

const (
	// nodePatience is how long one node is waited for while a guest waits for a
	// page, and pagePatience how long all of them are asked again and again: a
	// sidecar that is started anew, or a link that comes back, is worth waiting
	// for, since the guest is lost otherwise.
	nodePatience = 5 * time.Second
	pagePatience = 20 * time.Second
	// pageAgain is the pause between two rounds.
	pageAgain = 200 * time.Millisecond
)

// patient is a source for a guest that runs: it never waits for ever, and does
// not give up at once.
type patient struct{ from *holders }

// Manifest implements ckpt.Source.
func (p patient) Manifest(ctx context.Context, id ckpt.PartID, digest string) (raw []byte, err error) {
	err = p.insist(ctx, func(ctx context.Context) error {
		raw, err = p.from.Manifest(ctx, id, digest)
		return err
	})
	return raw, err
}

// Objects implements ckpt.Source.
func (p patient) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	return p.insist(ctx, func(ctx context.Context) error { return p.from.Objects(ctx, kind, ids, got) })
}

// insist asks until it is answered, asking again would not help, or it has
// taken too long.
func (p patient) insist(ctx context.Context, ask func(context.Context) error) error {
	for begun := time.Now(); ; {
		err := ask(ctx)
		var none *noHolder
		if err == nil || !errors.As(err, &none) || none.lost || time.Since(begun) > pagePatience {
			return err
		}
		select {
		case <-time.After(pageAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// startLazily starts a guest whose memory follows, from this node's store, from
// other nodes and from levels outside; what comes from there is not stored here. The part is read
// until the guest has its memory.
func (inc *incarnation) startLazily(ctx context.Context, index uint32, id ckpt.PartID, src *vftv1.PartSource) (*restored, error) {
	from := inc.s.holders(id, src, 0)
	from.patience = true
	p, err := inc.s.parts.OpenFrom(ctx, id, src.GetManifest(), patient{from})
	if err != nil {
		return nil, err
	}
	r, err := inc.start(ctx, index, p, vm.RestoreLazy)
	if err != nil {
		p.Close()
		return nil, err
	}
	if !inc.s.life.run(func(context.Context) { <-r.machine.Filled(); p.Close() }) {
		err := errors.Join(context.Canceled, r.machine.Kill(context.WithoutCancel(ctx)), r.machine.Close())
		p.Close()
		return nil, err
	}
	return r, nil
}
