package outside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// sendingPacks is how many packs are verified and sent at once.
const sendingPacks = 2

// Put copies a part of a node's store to the level: the packs that it needs and
// that are not there, then the part. With a bandwidth it sends at most so many
// bytes per second. It may be repeated; of packs that are there it sends those
// that are short or marked as damaged again. It returns how many bytes were
// sent, also on an error. Errors to decide on: ckpt.ErrNotFound and ErrCorrupt
// of package ckpt or object, when the node's copy is not there or not whole;
// those of package backend.
func (l *Level) Put(ctx context.Context, store *ckpt.Store, id ckpt.PartID, manifest string, bandwidth int64) (int64, error) {
	p := &putting{Level: l, store: store, limit: rate.NewLimiter(rate.Inf, 0)}
	if bandwidth > 0 {
		p.limit = rate.NewLimiter(rate.Limit(bandwidth), limitBurst)
	}
	err := p.part(ctx, id, manifest)
	if err != nil {
		err = fmt.Errorf("put part %v to %s: %w", id, l, err)
	}
	return p.sent.Load(), err
}

// putting is a call of Put.
type putting struct {
	*Level
	store *ckpt.Store
	limit *rate.Limiter
	sent  atomic.Int64
}

// moves is how often a collection of the node's store may move what is to be
// sent to other packs before Put gives up.
const moves = 4

func (p *putting) part(ctx context.Context, id ckpt.PartID, manifest string) error {
	part, err := p.store.Open(id, manifest)
	if err != nil {
		return err
	}
	defer part.Close()
	raw, err := p.store.Manifest(ctx, id, manifest)
	if err != nil {
		return err
	}
	e := &entry{manifest: raw}
	for try := 1; ; try++ {
		if e.packs, err = part.Packs(ctx); err != nil {
			return err
		}
		over, err := p.claim(ctx, e.packs)
		if err != nil {
			return err
		}
		if err = p.packs(ctx, e.packs); err == nil {
			err = p.name(ctx, partName(id, manifest), e)
		}
		over()
		if !errors.Is(err, object.ErrNotFound) || try == moves {
			return err
		}
	}
}

// name makes the part be there.
func (p *putting) name(ctx context.Context, name string, e *entry) error {
	if err := p.opt.Faults.Hit(ctx, FaultBeforePart); err != nil {
		return err
	}
	content := e.encode()
	if err := p.put(ctx, name, content); err != nil {
		return err
	}
	p.sent.Add(int64(len(content)))
	return nil
}

// claim keeps packs, there or to come, from being collected until over is
// called. What an earlier collection was about to delete is gone by then.
func (l *Level) claim(ctx context.Context, packs []object.PackName) (over func(), err error) {
	over, err = l.announce(ctx, claimsPrefix, (&entry{packs: packs}).encode())
	if err != nil {
		return nil, err
	}
	if err := l.awaitCollections(ctx); err != nil {
		over()
		return nil, err
	}
	return over, nil
}

// collectionPoll is the pause between two looks at whether a collection is over.
const collectionPoll = 500 * time.Millisecond

// awaitCollections waits until none of the collections that delete now does so
// any more. One of which the object stays the same for deadAfter has died.
func (l *Level) awaitCollections(ctx context.Context) error {
	begun := time.Now()
	var waiting map[string]bool // those met at first; later ones see the claim
	for {
		still := map[string]bool{}
		if err := l.b.List(ctx, collectingPrefix, func(i backend.Info) error {
			if waiting == nil || waiting[i.Name] {
				still[i.Name] = true
			}
			return nil
		}); err != nil {
			return err
		}
		if waiting = still; len(waiting) == 0 || time.Since(begun) > deadAfter {
			return nil
		}
		select {
		case <-time.After(collectionPoll):
		case <-ctx.Done():
			return fmt.Errorf("a collection is deleting packs there: %w", context.Cause(ctx))
		}
	}
}

// packs makes packs be there.
func (p *putting) packs(ctx context.Context, packs []object.PackName) error {
	marked := map[string]bool{}
	if err := p.b.List(ctx, damagedPrefix, func(i backend.Info) error {
		marked[strings.TrimPrefix(i.Name, damagedPrefix)] = true
		return nil
	}); err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(sendingPacks)
	for _, name := range packs {
		all.Go(func() error { return p.pack(ctx, name, marked[name.String()]) })
	}
	return all.Wait()
}

// alone waits until nobody else in this process sends a pack: guests of one node
// share packs, and what one has sent the others need not.
func (l *Level) alone(ctx context.Context, name object.PackName) (over func(), err error) {
	for {
		l.mu.Lock()
		other := l.sending[name]
		if other == nil {
			mine := make(chan struct{})
			l.sending[name] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.sending, name)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *putting) pack(ctx context.Context, name object.PackName, marked bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	over, err := p.alone(ctx, name)
	if err != nil {
		return err
	}
	defer over()
	f, err := p.store.OpenPack(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read from
	size, err := f.Size()
	if err != nil {
		return err
	}
	there, err := p.b.Stat(ctx, packName(name))
	switch {
	case err == nil && there.Size == size && !marked:
		return nil
	case err != nil && !errors.Is(err, backend.ErrNotExist):
		return err
	}
	// A pack is never replaced by something worse.
	if err := p.store.VerifyPack(ctx, name); err != nil {
		return err
	}
	if err := p.opt.Faults.Hit(ctx, FaultBeforePack); err != nil {
		return err
	}
	if err := p.b.Put(ctx, packName(name), size, &limited{ctx, f, p.limit}); err != nil {
		return err
	}
	p.sent.Add(size)
	if marked {
		return p.b.Delete(ctx, damagedPrefix+name.String())
	}
	return nil
}

// limitBurst is what a limited reader takes at once, in bytes.
const limitBurst = 256 << 10

// limited is read at a limited speed.
type limited struct {
	ctx   context.Context //nolint:containedctx // io.ReaderAt has none
	r     io.ReaderAt
	limit *rate.Limiter
}

// ReadAt implements io.ReaderAt.
func (l *limited) ReadAt(p []byte, off int64) (int, error) {
	if l.limit.Limit() != rate.Inf {
		for left := len(p); left > 0; left -= limitBurst {
			if err := l.limit.WaitN(l.ctx, min(left, limitBurst)); err != nil {
				return 0, err
			}
		}
	}
	return l.r.ReadAt(p, off)
}
