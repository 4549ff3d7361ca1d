package object

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// Verified says what Verify has read.
type Verified struct {
	Packs   int
	Objects int64
	Bytes   int64 // of files
	Damaged int   // reports
}

// Verify reads every byte of every pack from the device and compares it with
// its digests, decodes it, and hashes every object. Each damaged object, and
// other damage, is reported by a call of report, one call at a time. A damaged
// object counts as missing from then on (see Get). The error is about not being
// able to go on.
func (s *Store) Verify(ctx context.Context, report func(*CorruptError)) (Verified, error) {
	done, err := s.use()
	if err != nil {
		return Verified{}, err
	}
	defer done()
	ctx, stop := s.untilClose(ctx)
	defer stop()
	v := &verification{s: s, report: report}
	for _, damage := range s.Unreadable() {
		v.damaged(damage)
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range s.packs.all() {
		all.Go(func() error { return v.pack(ctx, p) })
	}
	err = all.Wait()
	return v.Verified, err
}

// DropCaches makes what is read next come from the device, as far as the kernel
// grants that.
func (s *Store) DropCaches() error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	s.decoded.drop(func(extentKey) bool { return true })
	for _, p := range s.packs.all() {
		// What cannot be opened is found when it is read.
		if f, err := s.fs.Open(s.packPath(p.name)); err == nil {
			f.DropCache()
			_ = f.Close() // only read from
		}
	}
	return nil
}

type verification struct {
	s      *Store
	mu     sync.Mutex
	report func(*CorruptError)
	Verified
}

func (v *verification) damaged(err *CorruptError) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Damaged++
	v.report(err)
}

// pack verifies one pack. One that has been deleted meanwhile is good.
func (v *verification) pack(ctx context.Context, p *pack) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f, err := v.s.fs.Open(v.s.packPath(p.name))
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.removed.Load():
		return nil
	case errors.Is(err, fs.ErrNotExist):
		p.damaged.Store(true)
		v.damaged(missingFile(p.name))
		return nil
	case err != nil:
		return err
	}
	defer func() { _ = f.Close() }() // only read from
	f.DropCache()
	return v.file(ctx, p, f)
}

func (v *verification) file(ctx context.Context, p *pack, f fsys.File) error {
	x, err := v.s.readIndexFrom(f, p.name)
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		p.damaged.Store(true)
		v.damaged(corrupt)
		return nil
	case err != nil:
		return err
	}
	if err := x.checkHeader(f); err != nil {
		p.damaged.Store(true)
		v.damaged(err)
	}
	raw := v.s.buffers.get(MaxSize)
	defer v.s.buffers.put(raw)
	for i := range x.extents {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.extent(p, x, i, f, raw)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Packs++
	v.Objects += int64(len(x.ids))
	v.Bytes += x.size
	return nil
}

// extent verifies one extent. Damage is reported for each object that it hits,
// or once, when it hits none.
func (v *verification) extent(p *pack, x *PackIndex, i int, f fsys.File, raw *[]byte) {
	e, damage := x.LoadExtent(f, i)
	if damage == nil {
		if _, damage = e.Decode(*raw); damage == nil {
			return
		}
	}
	p.damaged.Store(true)
	// Which objects are still good?
	readable := p.decode(f, i, raw, v.s.buffers) == nil
	hit, number := false, 0
	for o := range x.objects(i) {
		if !readable || Sum(o.Kind, (*raw)[o.Offset:][:o.Length]) != o.ID {
			hit = true
			c := blame(p.name, i, damage)
			c.ID = o.ID
			v.s.setBad(p, place(p.number, i, number), o.ID, c)
			v.damaged(c)
		}
		number++
	}
	if !hit {
		v.damaged(blame(p.name, i, damage))
	}
}

// VerifyPack reads every byte of one pack as Verify does, and returns the first
// damage, a CorruptError. A pack that has been deleted is an ErrNotFound.
func (s *Store) VerifyPack(ctx context.Context, name PackName) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	ctx, stop := s.untilClose(ctx)
	defer stop()
	p := s.packs.name(name)
	if p == nil {
		return fmt.Errorf("pack %v: %w", name, ErrNotFound)
	}
	var first *CorruptError
	v := &verification{s: s, report: func(err *CorruptError) {
		if first == nil {
			first = err
		}
	}}
	if err := v.pack(ctx, p); err != nil {
		return err
	}
	switch {
	case first != nil:
		return first
	case v.Packs == 0: // deleted meanwhile
		return fmt.Errorf("pack %v: %w", name, ErrNotFound)
	}
	return nil
}
