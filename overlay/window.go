package overlay

import "fmt"

const segmentSize = 128 * 1024 // a segment is larger only for a larger message

// window is the numbered messages of a link that the peer has not
// acknowledged, as they go on the wire. The link's mu guards it.
type window struct {
	pool     *pool
	segments []*segment // oldest first
	next     uint64     // number of the next message, from 1
	offered  uint64     // highest number of which anything was ever given to a connection
	acked    uint64     // the peer has handled everything up to it
	size     int        // bytes of the messages in segments
}

// segment is whole messages. Its bytes do not move: they may be written to a
// connection while messages are added behind them.
type segment struct {
	buf     *buffer
	last    uint64 // number of the last message
	written int    // bytes given to the present connection
}

func newWindow(p *pool) window { return window{pool: p, next: 1} }

// add makes room for a message of n bytes. The caller appends exactly that
// much to the segment's buffer, with the number that add returns.
func (w *window) add(n int) (*segment, uint64) {
	number := w.next
	w.next++
	w.size += n
	if k := len(w.segments); k > 0 {
		if s := w.segments[k-1]; cap(s.buf.b)-len(s.buf.b) >= n {
			s.last = number
			return s, number
		}
	}
	s := &segment{buf: w.pool.get(max(n, segmentSize)), last: number}
	w.segments = append(w.segments, s)
	return s, number
}

// offer returns the oldest bytes that the present connection has not been
// given, and the segment that they are in; nil when there are none. They stay
// valid until wrote or failed is called with the segment.
func (w *window) offer() (*segment, []byte) {
	for _, s := range w.segments {
		if s.written < len(s.buf.b) {
			w.offered = max(w.offered, s.last)
			return s, s.buf.b[s.written:len(s.buf.b):len(s.buf.b)]
		}
	}
	return nil, nil
}

// waiting reports whether there is something to offer.
func (w *window) waiting() bool {
	k := len(w.segments)
	return k > 0 && w.segments[k-1].written < len(w.segments[k-1].buf.b)
}

// ack notes that the peer has handled the messages up to number. Segments
// that it has handled are given back, but for busy, which is being written.
func (w *window) ack(number uint64, busy *segment) error {
	if number > w.offered {
		return fmt.Errorf("%w: message %d acknowledged, %d were sent", errMessage, number, w.offered)
	}
	w.acked = max(w.acked, number)
	w.trim(busy)
	return nil
}

func (w *window) trim(busy *segment) {
	done := 0
	for done < len(w.segments) && w.segments[done].last <= w.acked && w.segments[done] != busy {
		s := w.segments[done]
		w.size -= len(s.buf.b)
		w.pool.put(s.buf)
		done++
	}
	if done > 0 {
		kept := copy(w.segments, w.segments[done:])
		clear(w.segments[kept:])
		w.segments = w.segments[:kept]
	}
}

// rewind makes what is left be offered again, to a new connection.
func (w *window) rewind() {
	for _, s := range w.segments {
		s.written = 0
	}
}

// drop forgets everything and returns how many frames of it the peer has not
// acknowledged. Nothing may be being written.
func (w *window) drop() (frames int) {
	for _, s := range w.segments {
		for rest := s.buf.b; len(rest) > 0; {
			m, size, _ := parseMessage(rest) // we made it ourselves
			if m.kind == messageFrames && m.number > w.acked {
				n, _ := countFrames(m.body[pairHeader:])
				frames += n
			}
			rest = rest[size:]
		}
		w.pool.put(s.buf)
	}
	*w = newWindow(w.pool)
	return frames
}
