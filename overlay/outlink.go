package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	linkDirect  = 32 * 1024 // most that is written without the writer
	linkBacklog = 64 * 1024 // most that may be unsent for a direct write
)

// outLink sends this node's frames to one peer, for all networks. It dials,
// and dials again, from run until its context ends; what the peer has not
// acknowledged is kept in window and repeated on the next connection.
type outLink struct {
	sw     *Switch
	node   string
	wake   chan struct{} // capacity 1
	cancel context.CancelFunc
	refs   int // guarded by the switch

	mu       sync.Mutex
	address  string
	id       uint64   // of the link: the counting period
	conn     net.Conn // nil: there is no connection
	raw      syscall.RawConn
	downAt   time.Time // since when there is none
	window   window
	pings    []byte   // goes before the next of window
	writing  bool     // somebody writes to a connection, perhaps a former one
	busy     *segment // that is being written
	idle     sync.Cond
	networks map[uint32]NetworkID // by handle

	stats linkStats
}

type linkStats struct {
	frames, bytes, made, resumed atomic.Uint64
	overflow, down, lost         atomic.Uint64
}

// errLinkBroken ends one connection of a link.
var errLinkBroken = errors.New("connection of a link broken")

func newOutLink(s *Switch, node, address string, cancel context.CancelFunc) *outLink {
	l := &outLink{
		sw: s, node: node, address: address, wake: make(chan struct{}, 1), cancel: cancel,
		id: s.linkID(), downAt: time.Now(), window: newWindow(&s.pool), networks: map[uint32]NetworkID{},
	}
	l.idle.L = &l.mu
	return l
}

// add gives the network a handle and announces it.
func (l *outLink) add(id NetworkID) (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	handle := uint32(0)
	for ; handle < maxHandles; handle++ {
		if _, taken := l.networks[handle]; !taken {
			break
		}
	}
	if handle == maxHandles {
		return 0, fmt.Errorf("link to %s: too many networks", l.node)
	}
	l.networks[handle] = id
	l.announce(handle, id)
	l.signal()
	return handle, nil
}

func (l *outLink) announce(handle uint32, id NetworkID) {
	s, number := l.window.add(messageHeader + numberSize + 8 + len(id.Job))
	s.buf.b = appendNetwork(s.buf.b, handle, number, id)
}

func (l *outLink) remove(handle uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.networks, handle)
}

func (l *outLink) setAddress(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if address != l.address {
		l.address = address
		if l.conn != nil {
			abort(l.conn)
		}
	}
}

func (l *outLink) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// send queues runs for the peer and counts them as sent. The data is the
// caller's again when send returns.
func (l *outLink) send(handle uint32, runs []run, force bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	away := l.conn == nil && time.Since(l.downAt) > l.sw.limits.PeerTimeout
	for _, r := range runs {
		p := r.pair
		if p.link != l.id {
			p.link = l.id
			p.sent.Store(0)
			p.dropped.Store(0)
		}
		p.sent.Add(uint64(r.frames))
		if room := l.sw.limits.LinkQueue - l.window.size - framesOverhead; away {
			r = l.refuse(r, 0, &l.stats.down)
		} else if !force && len(r.data) > room {
			r = l.refuse(r, room, &l.stats.overflow)
		}
		if len(r.data) == 0 {
			continue
		}
		s, number := l.window.add(framesOverhead + len(r.data))
		s.buf.b = appendFramesHeader(s.buf.b, handle, number, p.source, p.destination, len(r.data))
		s.buf.b = append(s.buf.b, r.data...)
		l.stats.frames.Add(uint64(r.frames))
	}
	l.push()
}

// refuse drops the frames of r that do not fit in room, and counts them.
func (l *outLink) refuse(r run, room int, reason *atomic.Uint64) run {
	n, frames := prefix(r.data, room)
	r.pair.dropped.Add(uint64(r.frames - frames))
	reason.Add(uint64(r.frames - frames))
	r.data, r.frames = r.data[:n], frames
	return r
}

// mark queues MARK or UNMARK behind everything sent so far. It returns the id
// of the link that carries it.
func (l *outLink) mark(kind messageType, handle uint32, epoch uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, number := l.window.add(messageHeader + numberSize + 8)
	s.buf.b = appendMark(s.buf.b, kind, handle, number, epoch)
	l.push()
	return l.id
}

// push gets what waits on its way. If it is little and the socket is nearly
// empty, it is written here and now, which saves waking the writer. Called
// with mu held.
func (l *outLink) push() {
	if l.conn == nil || l.writing {
		return // up, or the one who writes, looks again
	}
	if _, data := l.window.offer(); len(data) == 0 {
		return
	} else if len(data) > linkDirect || !l.roomy() {
		l.signal()
		return
	}
	_ = l.writeOut() // an error closed the connection; its owner notices
	if l.due() {
		l.signal()
	}
}

// due reports whether there is something to write. Called with mu held.
func (l *outLink) due() bool { return len(l.pings) > 0 || l.window.waiting() }

// roomy reports whether a small write will not block.
func (l *outLink) roomy() bool {
	if l.raw == nil {
		return false
	}
	unsent, err := linkBacklog, error(nil)
	if cerr := l.raw.Control(func(fd uintptr) {
		unsent, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	}); cerr != nil || err != nil {
		return false
	}
	return unsent < linkBacklog
}

// writeOut writes pings, then one segment's worth of messages. Called with mu
// held, writing unset; it gives mu up while it writes.
func (l *outLink) writeOut() error {
	conn, pings := l.conn, l.pings
	s, data := l.window.offer()
	l.pings, l.busy, l.writing = nil, s, true
	l.mu.Unlock()
	var err error
	if len(pings) > 0 {
		_, err = conn.Write(pings)
	}
	if err == nil && len(data) > 0 {
		_, err = conn.Write(data)
	}
	if err != nil {
		abort(conn)
	}
	l.stats.bytes.Add(uint64(len(pings) + len(data)))
	l.mu.Lock()
	l.busy, l.writing = nil, false
	if l.conn == conn && s != nil {
		s.written += len(data)
	}
	l.window.trim(nil)
	l.idle.Broadcast()
	if err == nil && l.conn != conn {
		err = errLinkBroken
	}
	return err
}

// current returns the id of the link.
func (l *outLink) current() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// target returns the address that is dialled.
func (l *outLink) target() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.address
}

// missing returns for how long there has been no connection, 0 if there is one.
func (l *outLink) missing(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		return 0
	}
	return max(1, now.Sub(l.downAt))
}

// length returns the bytes that wait or are unacknowledged.
func (l *outLink) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.window.size
}
