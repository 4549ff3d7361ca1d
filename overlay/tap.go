package overlay

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	tapArena = 256 * 1024 // frames are copied into pieces of this size
	maxTaps  = 8          // on one network
)

// ErrTooManyTaps says that a network is watched as often as it may be.
var ErrTooManyTaps = errors.New("overlay: too many taps")

// Captured is a copy of a frame that a local guest sent.
type Captured struct {
	Guest  int
	At     time.Time // when the switch read it
	Length int       // of the frame; Data may be only its beginning
	Data   []byte
}

// Tap copies what the local guests of a network send, each frame once, as it
// enters the switch: before it is refused, held, dropped or forwarded. A tap
// that is not read drops, and counts; the switch does not wait for it.
type Tap struct {
	network *Network
	snap    int
	limit   int
	wake    chan struct{} // capacity 1: there is something, or the end

	mu      sync.Mutex
	pending []Captured
	arena   []byte
	bytes   int // of pending
	dropped map[int]uint64
	ended   bool
}

// Tap begins a capture that lasts until the tap or the network is closed.
// Of each frame it keeps at most snap bytes, and at most queue bytes that
// have not been read.
func (n *Network) Tap(snap, queue int) (*Tap, error) {
	t := &Tap{network: n, snap: max(snap, minFrame), limit: queue, wake: make(chan struct{}, 1), dropped: map[int]uint64{}}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed.Load() {
		return nil, ErrClosed
	}
	taps := n.tapped()
	if len(taps) >= maxTaps {
		return nil, ErrTooManyTaps
	}
	taps = append(slices.Clone(taps), t)
	n.taps.Store(&taps)
	return t, nil
}

// tapped returns the network's taps.
func (n *Network) tapped() []*Tap {
	if taps := n.taps.Load(); taps != nil {
		return *taps
	}
	return nil
}

// endTaps ends all taps. Called when the network closes.
func (n *Network) endTaps() {
	n.mu.Lock()
	taps := n.tapped()
	n.taps.Store(nil)
	n.mu.Unlock()
	for _, t := range taps {
		t.end()
	}
}

// Close ends the capture. It may be repeated.
func (t *Tap) Close() {
	n := t.network
	n.mu.Lock()
	taps := slices.DeleteFunc(slices.Clone(n.tapped()), func(other *Tap) bool { return other == t })
	if len(taps) == 0 {
		n.taps.Store(nil)
	} else {
		n.taps.Store(&taps)
	}
	n.mu.Unlock()
	t.end()
}

func (t *Tap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.signal()
}

func (t *Tap) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// add takes whole frames off a port.
func (t *Tap) add(guest int, at time.Time, frames []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	for len(frames) > 0 {
		size, _ := frameSize(frames)
		frame := frames[frameHeader:size]
		frames = frames[size:]
		keep := min(len(frame), t.snap)
		if t.bytes+keep > t.limit {
			t.dropped[guest]++
			continue
		}
		if len(t.arena)+keep > cap(t.arena) {
			t.arena = make([]byte, 0, max(tapArena, keep))
		}
		begin := len(t.arena)
		t.arena = append(t.arena, frame[:keep]...)
		t.pending = append(t.pending, Captured{Guest: guest, At: at, Length: len(frame), Data: t.arena[begin:len(t.arena):len(t.arena)]})
		t.bytes += keep
	}
	t.signal()
}

// Next waits for frames and returns them, each port's in order, together with
// how many the tap has dropped so far of each guest. When the capture has
// ended and everything was returned the error is ErrClosed.
func (t *Tap) Next(ctx context.Context) ([]Captured, map[int]uint64, error) {
	for {
		t.mu.Lock()
		frames, dropped, ended := t.pending, maps.Clone(t.dropped), t.ended
		t.pending, t.arena, t.bytes = nil, nil, 0
		t.mu.Unlock()
		switch {
		case len(frames) > 0:
			return frames, dropped, nil
		case ended:
			return nil, dropped, ErrClosed
		}
		select {
		case <-ctx.Done():
			return nil, dropped, ctx.Err()
		case <-t.wake:
		}
	}
}
