package outside

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// What is read with one request: extents whose distance is at most readGap,
// together at most readMost bytes or one extent. readAhead requests are on
// their way at once.
const (
	readGap   = 128 << 10
	readMost  = 4 << 20
	readAhead = 3
)

// Source is a part at a level, as a ckpt.Source. It reads packs by their
// indexes, which it keeps: about 20 bytes for each page.
type Source struct {
	l        *Level
	id       ckpt.PartID
	manifest string

	mu      sync.Mutex // held while an index is read
	entry   *entry
	order   []object.PackName // the one that gave most lately first
	indexes map[object.PackName]*object.PackIndex
}

var _ ckpt.Source = (*Source)(nil)

// Source returns the part with this manifest as a source of it. Nothing is read
// yet. Errors of its methods are an ErrGone when to ask again would not help.
func (l *Level) Source(id ckpt.PartID, manifest string) *Source {
	return &Source{l: l, id: id, manifest: manifest, indexes: map[object.PackName]*object.PackIndex{}}
}

// Manifest implements ckpt.Source.
func (s *Source) Manifest(ctx context.Context, id ckpt.PartID, digest string) ([]byte, error) {
	if id != s.id || digest != s.manifest {
		return nil, fmt.Errorf("part %v with manifest %s: %w: the source is of %v", id, digest, ckpt.ErrMismatch, s.id)
	}
	e, err := s.load(ctx)
	if err != nil {
		return nil, asGone(err)
	}
	return e.manifest, nil
}

// load reads the part's entry, once.
func (s *Source) load(ctx context.Context) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entry != nil {
		return s.entry, nil
	}
	e, err := s.l.readPart(ctx, s.id, s.manifest)
	if err != nil {
		return nil, err
	}
	s.entry, s.order = e, slices.Clone(e.packs)
	return e, nil
}

// Objects implements ckpt.Source.
func (s *Source) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	if _, err := s.load(ctx); err != nil {
		return asGone(err)
	}
	r := reading{Source: s, kind: kind, got: got, missing: map[object.ID]bool{}}
	for _, id := range ids {
		if !id.IsZero() {
			r.missing[id] = true
		}
	}
	s.mu.Lock()
	order := slices.Clone(s.order)
	s.mu.Unlock()
	for _, name := range order {
		if len(r.missing) == 0 {
			break
		}
		before := len(r.missing)
		if err := r.pack(ctx, name, ids); err != nil {
			return err
		}
		if before-len(r.missing) > before/2 {
			s.prefer(name)
		}
	}
	for _, id := range ids {
		if r.missing[id] {
			return r.failure(id)
		}
	}
	return nil
}

// prefer has a pack be looked into first: what is wanted next is probably there.
func (s *Source) prefer(name object.PackName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.order, name); i > 0 {
		s.order = slices.Insert(slices.Delete(s.order, i, i+1), 0, name)
	}
}

// index reads the index of a pack, once.
func (s *Source) index(ctx context.Context, name object.PackName) (*object.PackIndex, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.indexes[name]; x != nil {
		return x, nil
	}
	x, err := s.l.readIndex(ctx, name)
	if err != nil {
		return nil, err
	}
	s.indexes[name] = x
	return x, nil
}

// readIndex reads the index of a pack, and compares its name. Damage is noted.
func (l *Level) readIndex(ctx context.Context, name object.PackName) (*object.PackIndex, error) {
	info, err := l.b.Stat(ctx, packName(name))
	if err != nil {
		return nil, err
	}
	x, err := object.ReadPackIndex(&packReader{ctx: ctx, l: l, name: name}, info.Size)
	var corrupt *object.CorruptError
	switch {
	case errors.As(err, &corrupt):
		corrupt.Pack = name
		err = corrupt
	case errors.Is(err, io.ErrUnexpectedEOF): // as packReader has it
		err = &object.CorruptError{Pack: name, Extent: -1, Reason: "it is too short", Err: err}
	case err == nil && x.Name() != name:
		err = &object.CorruptError{Pack: name, Extent: -1, Reason: fmt.Sprintf("it is the pack %v", x.Name())}
	}
	if err != nil {
		if isDamage(err) {
			l.suspect(ctx, name, err)
		}
		return nil, err
	}
	return x, nil
}

// packReader reads a pack at a level, without keeping anything.
type packReader struct {
	ctx  context.Context //nolint:containedctx // io.ReaderAt has none
	l    *Level
	name object.PackName
}

// ReadAt implements io.ReaderAt.
func (r *packReader) ReadAt(p []byte, off int64) (int, error) {
	return r.l.readPack(r.ctx, r.name, p, off)
}

// readPack reads like io.ReaderAt. An io.ErrUnexpectedEOF of package object then
// means that a pack is too short, and never that a connection broke.
func (l *Level) readPack(ctx context.Context, name object.PackName, p []byte, off int64) (int, error) {
	n, err := l.b.ReadAt(ctx, packName(name), p, off)
	if n < len(p) && errors.Is(err, io.ErrUnexpectedEOF) {
		err = &brokenError{err}
	}
	return n, err
}

// brokenError is about a place that did not give what it should have been able
// to give.
type brokenError struct{ err error }

// Error is that of the place.
func (e *brokenError) Error() string { return e.err.Error() }

// Is finds what the error wraps, but for what would make it damage.
func (e *brokenError) Is(target error) bool {
	return target != io.ErrUnexpectedEOF && errors.Is(e.err, target)
}

// reading is a call of Objects.
type reading struct {
	*Source
	kind    object.Kind
	got     func(object.Extent) error
	missing map[object.ID]bool
	failed  []error
}

// fail notes an error of the level that is not the end: other packs may have
// what is missing.
func (r *reading) fail(ctx context.Context, name object.PackName, err error) {
	r.failed = append(r.failed, err)
	if isDamage(err) {
		r.l.suspect(ctx, name, err)
	}
}

// failure says why an object could not be had.
func (r *reading) failure(id object.ID) error {
	err := fmt.Errorf("%v %v cannot be had from %s", r.kind, id, r.l)
	if len(r.failed) == 0 {
		return fmt.Errorf("%w: %w: no pack of the part has it", err, ErrGone)
	}
	err = fmt.Errorf("%w: %w", err, errors.Join(r.failed...))
	if slices.ContainsFunc(r.failed, func(e error) bool { return !gone(e) }) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrGone, err)
}

// pack hands over what a pack has of what is missing. An error is not the
// level's.
func (r *reading) pack(ctx context.Context, name object.PackName, ids []object.ID) error {
	x, err := r.index(ctx, name)
	if err != nil {
		r.failed = append(r.failed, err)
		return endOf(ctx)
	}
	wanted := map[int][]object.ID{} // by extent
	for _, id := range ids {
		if !r.missing[id] {
			continue
		}
		if o, ok := x.Find(id); ok && o.Kind == r.kind && !slices.Contains(wanted[o.Extent], id) {
			wanted[o.Extent] = append(wanted[o.Extent], id)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	return r.runs(ctx, x, runsOf(x, wanted))
}

// endOf is the error of a context that has ended.
func endOf(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// run is extents of a pack that are read with one request.
type run struct {
	extents []int
	off     int64
	length  int64

	data []byte // what came
	err  error  // why not all of it
	done chan struct{}
}

// ReadAt implements io.ReaderAt for what lies in the run.
func (r *run) ReadAt(p []byte, off int64) (int, error) {
	at := off - r.off
	if at < 0 || at > int64(len(r.data)) {
		return 0, io.EOF
	}
	n := copy(p, r.data[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// runsOf puts extents together that are close to one another.
func runsOf(x *object.PackIndex, wanted map[int][]object.ID) []*run {
	extents := make([]int, 0, len(wanted))
	for i := range wanted {
		extents = append(extents, i)
	}
	slices.SortFunc(extents, cmp.Compare)
	var all []*run
	for _, i := range extents {
		off, n := x.ExtentRange(i)
		if len(all) > 0 {
			last := all[len(all)-1]
			if end := off + int64(n); off-(last.off+last.length) <= readGap && end-last.off <= readMost {
				last.extents, last.length = append(last.extents, i), end-last.off
				continue
			}
		}
		all = append(all, &run{extents: []int{i}, off: off, length: int64(n), done: make(chan struct{})})
	}
	return all
}

// runs reads runs, some ahead, and hands over what is in them, in order.
func (r *reading) runs(ctx context.Context, x *object.PackIndex, all []*run) error {
	ctx, cancel := context.WithCancel(ctx)
	var requests sync.WaitGroup
	defer requests.Wait()
	defer cancel()
	begun := 0
	for i, u := range all {
		for ; begun < min(i+readAhead, len(all)); begun++ {
			next := all[begun]
			requests.Go(func() {
				defer close(next.done)
				next.data = make([]byte, next.length)
				n, err := r.l.readPack(ctx, x.Name(), next.data, next.off)
				if next.data = next.data[:n]; err != nil && !errors.Is(err, io.EOF) {
					next.err = err
				}
			})
		}
		<-u.done
		if err := r.hand(ctx, x, u); err != nil {
			return err
		}
		u.data = nil
	}
	return nil
}

// hand hands over the extents of a run.
func (r *reading) hand(ctx context.Context, x *object.PackIndex, u *run) error {
	if u.err != nil {
		r.failed = append(r.failed, u.err)
		return endOf(ctx)
	}
	for _, i := range u.extents {
		e, err := x.LoadExtent(u, i)
		if err != nil {
			r.fail(ctx, x.Name(), err)
			continue
		}
		switch err := r.got(e); {
		case err == nil:
			for _, id := range e.IDs {
				delete(r.missing, id)
			}
		case errors.Is(err, ckpt.ErrTransfer):
			r.fail(ctx, x.Name(), err)
		default:
			return err
		}
	}
	return nil
}
