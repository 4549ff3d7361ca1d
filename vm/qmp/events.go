package qmp

import (
	"context"
	"sync"
	"sync/atomic"
)

// DefaultDepth is the queue length of a subscription made by Events.
const DefaultDepth = 256

// Subscription is a bounded queue of events. An event that finds the queue
// full is dropped and counted, so that a slow reader holds nobody up; a reader
// that sees Dropped grow must ask QEMU for the present state.
type Subscription struct {
	// C delivers the events in order. It is closed when the subscription or
	// the connection ends.
	C <-chan Event

	m       *Monitor
	mu      sync.Mutex
	ch      chan Event
	closed  bool
	dropped atomic.Uint64
}

// Subscribe starts a subscription with a queue of depth events. It sees the
// events that arrive after the call. On a dead connection C is closed.
func (m *Monitor) Subscribe(depth int) *Subscription {
	ch := make(chan Event, max(depth, 1))
	s := &Subscription{C: ch, m: m, ch: ch}
	m.mu.Lock()
	dead := m.err != nil
	if !dead {
		m.subs[s] = struct{}{}
	}
	m.mu.Unlock()
	if dead {
		s.end()
	}
	return s
}

// Dropped is the number of events that found the queue full.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Close ends the subscription and closes C. It may be called again.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	delete(s.m.subs, s)
	s.m.mu.Unlock()
	s.end()
}

func (s *Subscription) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.ch)
	}
}

func (s *Subscription) offer(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	select {
	case s.ch <- e:
	default:
		s.dropped.Add(1)
	}
}

func (m *Monitor) publish(e Event) {
	m.mu.Lock()
	subs := make([]*Subscription, 0, len(m.subs))
	for s := range m.subs {
		subs = append(subs, s)
	}
	m.mu.Unlock()
	for _, s := range subs {
		s.offer(e)
	}
}

// Events returns a channel of events that is closed when ctx or the
// connection ends, for go-qemu's interface. Events beyond DefaultDepth unread
// ones are dropped.
func (m *Monitor) Events(ctx context.Context) (<-chan Event, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	s := m.Subscribe(DefaultDepth)
	context.AfterFunc(ctx, s.Close)
	return s.C, nil
}
