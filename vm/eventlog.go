package vm

import (
	"context"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/vm/qmp"
)

// eventLog follows QEMU's events during a snapshot.
type eventLog struct {
	sub   *qmp.Subscription
	early chan time.Time

	mu       sync.Mutex
	cutting  bool
	watching bool
	stop     time.Time     // first STOP since the last RESUME before the cut
	resume   time.Time     // first RESUME after stop, once cutting
	changed  chan struct{} // closed and replaced at every event

	done chan struct{}
}

func newEventLog(sub *qmp.Subscription) *eventLog {
	l := &eventLog{sub: sub, early: make(chan time.Time, 1), changed: make(chan struct{}), done: make(chan struct{})}
	go l.run()
	return l
}

func (l *eventLog) run() {
	defer close(l.done)
	for e := range l.sub.C {
		l.note(e)
	}
}

func (l *eventLog) note(e qmp.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := qmp.EventTime(e)
	switch e.Event {
	case "STOP":
		if l.stop.IsZero() {
			l.stop = at
			if l.watching && !l.cutting {
				select {
				case l.early <- at:
				default:
				}
			}
		}
	case "RESUME":
		switch {
		case l.stop.IsZero():
		case !l.cutting:
			l.stop = time.Time{}
		case l.resume.IsZero():
			l.resume = at
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// next is closed at the next event.
func (l *eventLog) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// watchEarly makes a STOP from now on, before the cut, an early one. The guest
// has just been resumed; the event of that is waited for.
func (l *eventLog) watchEarly(ctx context.Context) {
	l.await(ctx, func() bool { s, _ := l.pause(); return s.IsZero() })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watching = true
}

// stoppedEarly reports the guest, which has been stopped, as stopped early.
func (l *eventLog) stoppedEarly() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.early <- l.stop:
	default:
	}
}

// cutBegins makes a STOP from now on that of the cut.
func (l *eventLog) cutBegins() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting = true
}

func (l *eventLog) pause() (stop, resume time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stop, l.resume
}

// awaitStop and awaitResume wait for an event that was sent before a reply
// that we have, and is therefore only waiting to be noted.
func (l *eventLog) awaitStop(ctx context.Context) {
	l.await(ctx, func() bool { s, _ := l.pause(); return !s.IsZero() })
}

func (l *eventLog) awaitResume(ctx context.Context) {
	l.await(ctx, func() bool { _, r := l.pause(); return !r.IsZero() })
}

func (l *eventLog) await(ctx context.Context, ok func() bool) {
	for {
		next := l.next()
		if ok() {
			return
		}
		select {
		case <-next:
		case <-l.done:
			return
		case <-ctx.Done():
			return
		case <-time.After(time.Second): // dropped
			return
		}
	}
}

func (l *eventLog) close() {
	l.sub.Close()
	<-l.done
}
