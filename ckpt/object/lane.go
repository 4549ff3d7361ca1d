package object

import (
	"errors"
	"sync"
)

// lane writes drafts into packs, one pack after the other, in the order in
// which they were submitted. While a pack is being finished the next one is
// written. Objects from outside and those that a collection moves have a lane
// each.
type lane struct {
	s       *Store
	memory  int64 // who uses this lane waits while more than this is used
	queue   *fifo[laneItem]
	packs   chan *packWriter // full, to be finished
	running sync.WaitGroup
}

// laneItem is a draft to be written, or something to do behind those before.
type laneItem struct {
	draft *draft
	flush bool // finish the pack
	tidy  bool // give the pack up if nobody relies on it
}

func (s *Store) startLane(memory int64) *lane {
	l := &lane{s: s, memory: memory, queue: newFIFO[laneItem](), packs: make(chan *packWriter, 1)}
	l.running.Go(l.write)
	l.running.Go(l.finish)
	return l
}

// close fails what is in the queue and waits for the pack that is being finished.
func (l *lane) close() {
	l.queue.close()
	l.running.Wait()
}

func (l *lane) write() {
	defer close(l.packs)
	var pack *packWriter
	for {
		item, ok := l.queue.pop()
		switch {
		case !ok:
			pack.abandon(ErrClosed)
			return
		case item.draft != nil:
			pack = l.writeDraft(pack, item.draft)
		case item.flush:
			pack = l.pass(pack)
		case item.tidy && pack.dropUnwanted():
			pack.abandon(errUnwanted)
			pack = nil
		}
	}
}

// errUnwanted is what a draft fails with when nobody relies on it.
var errUnwanted = errors.New("nobody needs it any more")

// pass hands the pack on to be finished. There is none then.
func (l *lane) pass(pack *packWriter) *packWriter {
	if pack != nil {
		l.packs <- pack
	}
	return nil
}

// writeDraft writes a draft into the pack, or into a new one, and returns the
// pack that the next one goes into.
func (l *lane) writeDraft(pack *packWriter, d *draft) *packWriter {
	<-d.encoded
	defer l.s.release(d)
	switch {
	case l.s.ctx.Err() != nil:
		l.s.fail(d, ErrClosed)
		return pack
	case d.dropUnwanted():
		l.s.settle(d, nil, errUnwanted)
		return pack
	}
	if pack != nil {
		if err := pack.failure(); err != nil {
			pack.abandon(err)
			pack = nil
		} else if !pack.fits(d) {
			pack = l.pass(pack)
		}
	}
	if pack == nil {
		var err error
		if pack, err = l.s.newPackWriter(); err != nil {
			l.s.fail(d, err)
			return nil
		}
	}
	if err := pack.add(d); err != nil {
		pack.abandon(err)
		return nil
	}
	return pack
}

func (l *lane) finish() {
	for pack := range l.packs {
		if err := pack.finish(); err != nil {
			pack.abandon(err)
		}
	}
}

// dropUnwanted ends joining of everything in the pack when nobody relies on any
// of it, and reports it. The pack must be abandoned then.
func (w *packWriter) dropUnwanted() bool {
	if w == nil {
		return false
	}
	unwanted := true
	for _, d := range w.drafts {
		d.mu.Lock()
		defer d.mu.Unlock()
		unwanted = unwanted && !d.finished && len(d.users) == 0
	}
	for _, d := range w.drafts {
		d.finished = d.finished || unwanted
	}
	return unwanted
}
