package sidecar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/internal/cutcheck"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/quiesce"
)

// simJob is a job of guests that talk all the time, on nodes whose switches
// and participants are the real ones; links and QEMU's sockets are in memory
// and take their time, which is simulated.
type simJob struct {
	ctx    context.Context
	wg     sync.WaitGroup
	guests []*simGuest
	nodes  []*simNode
	lag    time.Duration // longest delay of a piece on a link
	swap   bool          // marks overtake the frames before them

	mu         sync.Mutex
	random     *rand.Rand
	quiet      bool // guests send nothing any more
	links      map[net.Conn]struct{}
	violations []error
}

type simNode struct {
	name string
	sw   *overlay.Switch
	net  *overlay.Network
	part *quiesce.Participant
}

// simGuest is a guest, its QEMU, and QEMU's end of the port. The job's mu
// guards it.
type simGuest struct {
	j          *simJob
	index      int
	node       *simNode
	changed    *sync.Cond
	to, from   []byte // in the socket
	ended      bool
	stopped    bool
	sent, seen []uint64
}

const simSocketRoom = 4096

// dice returns a number below n.
func (j *simJob) dice(n int) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.random.IntN(n)
}

// sleep waits for up to most; false: the job is over.
func (j *simJob) sleep(most time.Duration) bool {
	select {
	case <-j.ctx.Done():
		return false
	case <-time.After(time.Duration(j.dice(int(most) + 1))):
		return true
	}
}

func (j *simJob) complain(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.violations = append(j.violations, fmt.Errorf(format, args...))
}

// newSimJob makes a job. Each participant sees its network through sabotage,
// if there is any.
func newSimJob(ctx context.Context, seed uint64, perNode []int, lag time.Duration, swap bool, sabotage func(*overlay.Network) quiesce.Network) (*simJob, error) {
	j := &simJob{ctx: ctx, lag: lag, swap: swap, random: rand.New(rand.NewPCG(seed, 0)), links: map[net.Conn]struct{}{}}
	var members []overlay.Member
	for i, n := range perNode {
		node := &simNode{name: fmt.Sprint("n", i)}
		j.nodes = append(j.nodes, node)
		for range n {
			g := &simGuest{j: j, index: len(j.guests), node: node, changed: sync.NewCond(&j.mu)}
			j.guests = append(j.guests, g)
			members = append(members, overlay.Member{Guest: g.index, Node: node.name, Address: node.name})
		}
	}
	for _, node := range j.nodes {
		var err error
		node.sw, err = overlay.New(overlay.Config{
			Node: node.name, Session: uint64(j.dice(1 << 30)), MAC: guest.MAC, Dial: j.dial,
			LinkID: func() uint64 { return 1 + uint64(j.dice(1<<40)) },
			DialPort: func(_ context.Context, socket string) (overlay.Socket, error) {
				return simSocket{j.guests[socket[0]-'a']}, nil
			},
		})
		if err != nil {
			return nil, err
		}
	}
	for _, node := range j.nodes {
		var err error
		if node.net, err = node.sw.Open(overlay.NetworkID{Job: "job", Incarnation: 1}, members); err != nil {
			return nil, err
		}
		network := quiesce.Network(node.net)
		if sabotage != nil {
			network = sabotage(node.net)
		}
		node.part = quiesce.NewParticipant(quiesce.Config{Network: network})
	}
	for _, g := range j.guests {
		g.sent, g.seen = make([]uint64, len(j.guests)), make([]uint64, len(j.guests))
		if _, err := g.node.net.AttachPort(ctx, g.index, string(rune('a'+g.index))); err != nil {
			return nil, err
		}
		j.wg.Go(g.take)
		j.wg.Go(g.chat)
	}
	return j, nil
}

// close ends everything and waits for it.
func (j *simJob) close(cancel context.CancelFunc) {
	for _, n := range j.nodes {
		n.part.Close()
	}
	for _, n := range j.nodes {
		n.sw.Close()
	}
	cancel()
	j.mu.Lock()
	for _, g := range j.guests {
		g.ended = true
		g.changed.Broadcast()
	}
	j.mu.Unlock()
	j.breakLinks()
	j.wg.Wait()
}

// chat sends a few numbered frames now and then.
func (g *simGuest) chat() {
	j := g.j
	for j.sleep(500 * time.Microsecond) {
		j.mu.Lock()
		for range j.random.IntN(4) {
			to := j.random.IntN(len(j.guests))
			if to == g.index || g.stopped {
				continue
			}
			g.sent[to]++
			size := 26 + j.random.IntN(300)
			frame := make([]byte, 4+size)
			binary.BigEndian.PutUint32(frame, uint32(size))
			copy(frame[4:], guest.MAC(to))
			copy(frame[10:], guest.MAC(g.index))
			frame[16], frame[17] = 0x88, 0xb5
			frame[18], frame[19] = byte(g.index), byte(to)
			binary.BigEndian.PutUint64(frame[20:], g.sent[to])
			g.from = append(g.from, frame...)
		}
		g.changed.Broadcast()
		quiet := j.quiet
		j.mu.Unlock()
		if quiet {
			return
		}
	}
}

// take takes frames one by one, as long as the guest runs.
func (g *simGuest) take() {
	j := g.j
	for {
		j.mu.Lock()
		for !g.ended && (g.stopped || len(g.to) < 4 || len(g.to) < 4+int(binary.BigEndian.Uint32(g.to))) {
			g.changed.Wait()
		}
		if g.ended {
			j.mu.Unlock()
			return
		}
		size := 4 + int(binary.BigEndian.Uint32(g.to))
		from, to, number := decode(g.to[4:size])
		g.to = slices.Clone(g.to[size:])
		d := cutcheck.Delivery{From: from, To: to, Frame: 1, At: 1, Number: number, Sent: j.guests[from].sent[g.index], Seen: g.seen[from]}
		if err := cutcheck.Deliver(d); err != nil || to != g.index {
			j.violations = append(j.violations, fmt.Errorf("at guest %d: %w", g.index, err))
		}
		g.seen[from] = number
		g.changed.Broadcast()
		slow := j.random.IntN(20) == 0
		j.mu.Unlock()
		if slow && !j.sleep(time.Millisecond) {
			return
		}
	}
}

// simSocket is the switch's end of a guest's port.
type simSocket struct{ *simGuest }

func (s simSocket) await(ready func() bool, f func() bool) error {
	for !f() {
		s.j.mu.Lock()
		for !s.ended && !ready() {
			s.changed.Wait()
		}
		ended := s.ended
		s.j.mu.Unlock()
		if ended {
			return net.ErrClosed
		}
	}
	return nil
}

func (s simSocket) AwaitRead(f func() bool) error {
	return s.await(func() bool { return len(s.from) > 0 }, f)
}

func (s simSocket) AwaitWrite(f func() bool) error {
	return s.await(func() bool { return len(s.to) < simSocketRoom }, f)
}

func (s simSocket) Read(b []byte) (int, error) {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	if len(s.from) == 0 {
		if s.ended {
			return 0, nil
		}
		return 0, unix.EAGAIN
	}
	n := copy(b, s.from)
	s.from = slices.Clone(s.from[n:])
	return n, nil
}

func (s simSocket) Writev(iov []unix.Iovec) (int, error) {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	written := 0
	for _, v := range iov {
		data := unsafeBytes(v)
		n := min(len(data), simSocketRoom-len(s.to))
		s.to = append(s.to, data[:n]...)
		written += n
		if n < len(data) {
			break
		}
	}
	if written == 0 {
		return 0, unix.EAGAIN
	}
	s.changed.Broadcast()
	return written, nil
}

func (s simSocket) Unread() (int, error) {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	return len(s.to), nil
}

func (s simSocket) Shutdown() { s.Interrupt() }

func (s simSocket) Interrupt() {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	s.ended = true
	s.changed.Broadcast()
}

func (s simSocket) Close() error { return nil }

// dial makes a connection between two nodes that carries what it is given
// piece by piece, later.
func (j *simJob) dial(_ context.Context, address string) (net.Conn, error) {
	var sw *overlay.Switch
	for _, n := range j.nodes {
		if n.name == address {
			sw = n.sw
		}
	}
	near, a := net.Pipe()
	b, far := net.Pipe()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.links[a], j.links[b] = struct{}{}, struct{}{}
	forward := j.carry
	if j.swap {
		forward = j.carrySwapped
	}
	j.wg.Go(func() { forward(a, b) })
	j.wg.Go(func() { j.carry(b, a) })
	j.wg.Go(func() { _ = sw.ServeLink(j.ctx, far) })
	return near, nil
}

func (j *simJob) carry(from, to net.Conn) {
	defer j.cut(from, to)
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil || j.dice(4) == 0 && !j.sleep(j.lag) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// carrySwapped delays frames until something comes behind them, and lets a
// mark go first, with the number of the frames.
func (j *simJob) carrySwapped(from, to net.Conn) {
	defer j.cut(from, to)
	const frames, mark = 5, 6 // docs/NETWORK.md
	var waiting []byte
	for {
		head := make([]byte, 8)
		if _, err := readFull(from, head); err != nil {
			return
		}
		message := append(head, make([]byte, int(binary.BigEndian.Uint32(head)&0xffffff))...)
		if _, err := readFull(from, message[8:]); err != nil {
			return
		}
		if waiting == nil && message[0] == frames {
			waiting = message
			continue
		}
		if waiting != nil && message[0] == mark {
			for i := 8; i < 16; i++ {
				waiting[i], message[i] = message[i], waiting[i]
			}
			waiting, message = message, waiting
		}
		if _, err := to.Write(append(waiting, message...)); err != nil {
			return
		}
		waiting = nil
	}
}

func readFull(c net.Conn, b []byte) (int, error) {
	for at := 0; at < len(b); {
		n, err := c.Read(b[at:])
		if at += n; err != nil {
			return at, err
		}
	}
	return len(b), nil
}

func (j *simJob) cut(conns ...net.Conn) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(j.links, c)
	}
}

// breakLinks breaks all connections between nodes, wherever they are.
func (j *simJob) breakLinks() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for c := range j.links {
		_ = c.Close()
	}
}

// photo is the snapshot of a guest for one epoch.
type photo struct {
	g          *simGuest
	fails      bool
	sent, seen []uint64
}

func (p *photo) Prepare(context.Context) error { p.g.j.sleep(time.Millisecond); return nil }
func (p *photo) EarlyStop() <-chan time.Time   { return nil }
func (p *photo) Abort(context.Context) error   { p.run(); return nil }

func (p *photo) run() {
	p.g.j.mu.Lock()
	defer p.g.j.mu.Unlock()
	p.g.stopped = false
	p.g.changed.Broadcast()
}

func (p *photo) Cut(ctx context.Context, atCut func(context.Context) error) error {
	j := p.g.j
	j.sleep(time.Millisecond)
	if p.fails {
		return errors.New("the guest cannot be snapshot")
	}
	j.mu.Lock()
	p.g.stopped = true
	j.mu.Unlock()
	defer p.run()
	j.sleep(time.Millisecond)
	if err := atCut(ctx); err != nil {
		return err
	}
	j.mu.Lock()
	p.sent, p.seen = slices.Clone(p.g.sent), slices.Clone(p.g.seen)
	j.mu.Unlock()
	j.sleep(time.Millisecond)
	return ctx.Err()
}
