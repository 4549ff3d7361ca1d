package overlay

import (
	"fmt"
	"slices"
	"sync"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// inbound is the traffic of one network that comes from one peer node.
type inbound struct {
	network *Network
	node    string

	mu         sync.Mutex
	former     uint64     // link of the node from before it became a peer; the network may have had no use of it
	hold       bool       // frames queue in late instead of being delivered
	counts     *pairTable // of the latest frame or mark
	mark       uint64     // highest MARK
	markCounts *pairTable // that it closed
	unmark     uint64     // highest UNMARK
	late       []lateRun
	bytes      int
}

// lateRun is frames that must not be delivered yet.
type lateRun struct {
	epoch  uint64 // the mark that they came behind
	port   *Port
	buf    *buffer
	frames int
	pair   *pair
}

// accept takes a run of a pair in table off a link.
func (in *inbound) accept(b *batch, p *Port, table *pairTable, counts *pair, data []byte, frames int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.counts = table
	r := run{data: data, frames: frames, pair: counts}
	if !in.hold {
		b.toPort(p, r)
		return
	}
	if in.bytes+len(data) > in.network.sw.limits.Late {
		counts.dropped.Add(uint64(frames))
		p.out.stats.overflow.Add(uint64(frames))
		return
	}
	buf := in.network.sw.pool.get(len(data))
	buf.b = append(buf.b, data...)
	in.bytes += cap(buf.b)
	in.late = append(in.late, lateRun{epoch: in.mark, port: p, buf: buf, frames: frames, pair: counts})
}

// settle brings hold and late up to date after the network's state or the
// marks have changed. Called with the network's mu held.
func (in *inbound) settle() {
	n := in.network
	in.mu.Lock()
	defer in.mu.Unlock()
	if n.suspended || n.initial {
		in.hold = true
		return
	}
	free := n.released
	if !n.held {
		free = max(free, in.unmark)
	}
	sent := 0
	for _, r := range in.late {
		if r.epoch > free {
			break
		}
		r.port.out.send([]run{{data: r.buf.b, frames: r.frames, pair: r.pair}}, true)
		in.bytes -= cap(r.buf.b)
		n.sw.pool.put(r.buf)
		sent++
	}
	if sent == len(in.late) {
		in.late = nil
	} else {
		in.late = in.late[sent:]
	}
	in.hold = in.mark > free
}

// drop forgets what waits. Called when the network closes.
func (in *inbound) drop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range in.late {
		in.network.sw.pool.put(r.buf)
	}
	in.late, in.bytes, in.hold = nil, 0, true
}

// closed reports whether the mark of epoch has come, so that the counts
// before it are final.
func (in *inbound) closed(epoch uint64) (bool, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.mark < epoch:
		return false, nil
	case in.mark > epoch:
		return false, fmt.Errorf("node %s holds epoch %d already", in.node, in.mark)
	case in.counts != in.markCounts:
		return false, fmt.Errorf("%w: from node %s since the hold began", ErrLinkBroken, in.node)
	}
	return true, nil
}

// report returns the counts that the latest mark closed.
func (in *inbound) report() []*vftv1.PairCount {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.markCounts.report()
}

// marked notes MARK(epoch) from a peer.
func (n *Network) marked(in *inbound, table *pairTable, epoch uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if epoch <= n.released {
		return
	}
	in.mu.Lock()
	in.counts = table
	if epoch > in.mark {
		in.mark, in.markCounts = epoch, table
	}
	in.mu.Unlock()
	in.settle()
}

// unmarked notes UNMARK(epoch) from a peer.
func (n *Network) unmarked(in *inbound, epoch uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	in.mu.Lock()
	in.unmark = max(in.unmark, epoch)
	in.mu.Unlock()
	in.settle()
}

// linkEnded notes that a link from a peer has ended for good. A hold that waits for the
// peer's mark fails. What waits behind a mark without a hold of ours is let
// go, because the UNMARK may be lost with the link.
func (n *Network) linkEnded(node string, link uint64) {
	in := n.from(node)
	if in == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	in.mu.Lock()
	peer := slices.ContainsFunc(n.peers, func(p peer) bool { return p.node == node })
	unused := !peer || link == in.former && (in.counts == nil || in.counts.link != link)
	if n.held && !n.initial && in.mark < n.epoch && n.broken == nil && !unused {
		n.broken = fmt.Errorf("%w: from node %s before its mark", ErrLinkBroken, node)
	}
	if !n.held && in.markCounts != nil && in.markCounts.link == link {
		in.unmark = max(in.unmark, in.mark)
	}
	in.mu.Unlock()
	in.settle()
}
