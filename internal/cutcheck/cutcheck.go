// Package cutcheck says whether what an observer who sees everything saw of a
// job's checkpoints agrees with the invariants. One checker serves the search
// of the model, random histories and the real switch: docs/CUT.md, "What is
// checked".
package cutcheck

import "fmt"

// Guest is what the snapshot of one guest says of its traffic. The slices are
// indexed by the other guest.
type Guest struct {
	Sent    []uint64 // frames that it had sent at its cut
	Seen    []uint64 // number of the last frame that it had got at its cut
	Channel []uint64 // frames to that guest that are channel state, whoever's part they are in
}

// Cut checks I4: no guest had got at its cut what the sender had not sent at
// its own.
func Cut(guests []Guest) error {
	for from := range guests {
		for to := range guests {
			if seen, sent := guests[to].Seen[from], guests[from].Sent[to]; seen > sent {
				return fmt.Errorf("I4: guest %d has seen frame %d of guest %d, which had sent %d", to, seen, from, sent)
			}
		}
	}
	return nil
}

// Whole checks that channel state is all that the receivers miss. It holds
// where no frame was dropped.
func Whole(guests []Guest) error {
	for from := range guests {
		for to := range guests {
			sent, seen, channel := guests[from].Sent[to], guests[to].Seen[from], guests[from].Channel[to]
			if sent != seen+channel {
				return fmt.Errorf("guest %d had sent %d frames to %d, %d were seen and %d are channel state", from, sent, to, seen, channel)
			}
		}
	}
	return nil
}

// Epoch is an epoch at the moment of its commit.
type Epoch struct {
	Number      uint64
	Incarnation uint64
	ByOrder     []bool  // by node: its network was held until the order to release
	Durable     []bool  // by guest: its part is stored
	Guests      []Guest // what the parts say
}

// Commit checks I1 and I4 for an epoch that the log commits, after epoch last
// and while incarnation is current.
func Commit(last, incarnation uint64, e Epoch) error {
	switch {
	case e.Number <= last:
		return fmt.Errorf("I1: epoch %d is committed after epoch %d", e.Number, last)
	case e.Incarnation != incarnation:
		return fmt.Errorf("I1: epoch %d of incarnation %d is committed in incarnation %d", e.Number, e.Incarnation, incarnation)
	}
	for guest, durable := range e.Durable {
		if !durable {
			return fmt.Errorf("I1: epoch %d is committed without the part of guest %d", e.Number, guest)
		}
	}
	if err := Cut(e.Guests); err != nil {
		return fmt.Errorf("epoch %d: %w", e.Number, err)
	}
	for node, ordered := range e.ByOrder {
		if !ordered {
			return fmt.Errorf("I1: epoch %d is committed, node %d had not held until it was told to release", e.Number, node)
		}
	}
	return nil
}

// Delivery is a frame at the moment when a guest gets it.
type Delivery struct {
	From, To  int
	Frame, At uint64 // incarnations of the frame and of the guest that gets it
	Number    uint64 // of the frame, from 1 in its pair
	Sent      uint64 // by the sender in that incarnation, those before a restore included
	Seen      uint64 // number of the last frame of the pair that the guest has got
	Lossy     bool   // frames may have been dropped
}

// Deliver checks I3, that no frame comes twice or in the wrong order, and that
// nothing is received that was never sent: after a restore that is I4 as the
// guests would notice it.
func Deliver(d Delivery) error {
	switch {
	case d.Frame != d.At:
		return fmt.Errorf("I3: guest %d of incarnation %d got a frame of incarnation %d from guest %d", d.To, d.At, d.Frame, d.From)
	case d.Number > d.Sent:
		return fmt.Errorf("I4: guest %d got frame %d of guest %d, which has sent %d", d.To, d.Number, d.From, d.Sent)
	case d.Number <= d.Seen:
		return fmt.Errorf("guest %d got frame %d of guest %d after frame %d", d.To, d.Number, d.From, d.Seen)
	case d.Number > d.Seen+1 && !d.Lossy:
		return fmt.Errorf("guest %d got frame %d of guest %d after frame %d: frames are lost", d.To, d.Number, d.From, d.Seen)
	}
	return nil
}

// Harmless checks I6: a call that came late or again changed nothing.
func Harmless[T comparable](call string, before, after T) error {
	if before != after {
		return fmt.Errorf("I6: %s changed something", call)
	}
	return nil
}
