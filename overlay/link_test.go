package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestBreaksLoseNothing breaks the connections between two nodes again and
// again while their guests send to each other: every frame arrives once, in
// order.
func TestBreaksLoseNothing(t *testing.T) {
	const frames, every = 3000, 150
	c := newCluster(t, Limits{RedialMin: time.Millisecond, RedialMax: 2 * time.Millisecond}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	guests := []*guest{newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)}
	var traffic sync.WaitGroup
	for i, g := range guests {
		traffic.Go(func() {
			random := rand.New(rand.NewPCG(2, uint64(i)))
			for n := range uint64(frames) {
				g.write(testFrame(i, 1-i, n+1, 60+random.IntN(3000)))
			}
		})
		traffic.Go(func() {
			for n := range uint64(frames) {
				if got := frameNumber(g.receive()); got != n+1 {
					t.Errorf("guest %d got frame %d, want %d", i, got, n+1)
					return
				}
				if n%every == every/2 {
					c.breakLinks(members[i].Node)
				}
			}
		})
	}
	traffic.Wait()
	verify(t, c, members, holdAll(t, nets, 1))
	for node, s := range c.switches {
		link := s.Stats().Links[0]
		assert.Greater(t, link.Resumed, uint64(3), "connections of node %s", node)
		assert.Zero(t, link.Lost+link.Down+link.Overflow)
	}
}

// TestBreakAtEveryStepOfHold breaks the connections before each step of a hold.
func TestBreakAtEveryStepOfHold(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	ctx := timeout(t, 10*time.Second)
	link := nets["a"].peers[0].link.current()
	steps := []func(epoch uint64) error{
		func(uint64) error { g0.send(1); return nil },
		func(e uint64) error { return nets["a"].Hold(ctx, e) },
		func(e uint64) error { return nets["b"].Hold(ctx, e) },
		func(e uint64) error { _, err := nets["a"].Drained(ctx, e); return err },
		func(e uint64) error { _, err := nets["b"].Drained(ctx, e); return err },
		func(e uint64) error { nets["b"].Release(e); return nil },
		func(e uint64) error { nets["a"].Release(e); return nil },
	}
	epoch := uint64(0)
	for at := range steps {
		epoch++
		for i, step := range steps {
			if i == at {
				c.breakLinks("a")
				c.breakLinks("b")
			}
			require.NoError(t, step(epoch), "epoch %d, step %d", at, i)
			if i == 0 {
				require.EqualValues(t, epoch, frameNumber(g1.receive()))
			}
		}
	}
	reports := holdAll(t, nets, epoch+1)
	verify(t, c, members, reports)
	require.Len(t, reports["b"], 1)
	assert.EqualValues(t, epoch, reports["b"][0].GetDelivered(), "the counting goes on")
	assert.Equal(t, link, reports["b"][0].GetLink())
}

// restart replaces a node's switch by a new one, as when its process ends and
// another begins.
func (c *cluster) restart(node string, session uint64) *Switch {
	old := c.serving(node)
	old.Close()
	s, err := New(Config{Node: node, Session: session, MAC: testMAC, Limits: old.limits, Dial: c.dial})
	require.NoError(c.t, err)
	c.mu.Lock()
	c.switches[node] = s
	c.mu.Unlock()
	return s
}

func TestPeerStartsAnew(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	id, members := NetworkID{"job", 1}, c.members("a", "b")
	nets := c.open(id, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	ctx := timeout(t, 10*time.Second)
	g0.send(1)
	g1.receive()
	verify(t, c, members, holdAll(t, nets, 1))
	releaseAll(nets, 1)
	require.NoError(t, nets["a"].Hold(ctx, 2))
	former := nets["a"].peers[0].link.current()

	b, err := c.restart("b", 99).Open(id, members)
	require.NoError(t, err)
	nets["b"] = b
	g1.attach(b)
	require.Eventually(t, func() bool { return nets["a"].peers[0].link.current() != former }, 5*time.Second, time.Millisecond)
	require.NoError(t, b.Hold(ctx, 2))
	_, err = nets["a"].Drained(ctx, 2)
	require.ErrorIs(t, err, ErrLinkBroken)
	releaseAll(nets, 2)
	c.waitLinks(nets)

	g0.send(1)
	assert.EqualValues(t, 2, frameNumber(g1.receive()))
	reports := holdAll(t, nets, 3)
	verify(t, c, members, reports)
	for _, report := range reports {
		for _, count := range report {
			assert.EqualValues(t, 1, count.GetSent()+count.GetDelivered(), "both ends began again at 0: %v", count)
		}
	}
	releaseAll(nets, 3)

	// What was under way when the peer ended is lost, and counted.
	c.mu.Lock()
	c.cut[c.address["b"]] = true
	c.mu.Unlock()
	c.breakLinks("b")
	link := nets["a"].peers[0].link
	require.Eventually(t, func() bool { return link.missing(time.Now()) > 0 }, 5*time.Second, time.Millisecond)
	g0.send(1)
	g0.send(1)
	require.Eventually(t, func() bool { return nets["a"].members[0].port.stats.frames.Load() == 4 }, 5*time.Second, time.Millisecond)
	b, err = c.restart("b", 100).Open(id, members)
	require.NoError(t, err)
	nets["b"] = b
	g1.attach(b)
	c.mu.Lock()
	clear(c.cut)
	c.mu.Unlock()
	c.waitLinks(nets)
	assert.GreaterOrEqual(t, link.stats.lost.Load(), uint64(2))
	g0.send(1)
	assert.EqualValues(t, 5, frameNumber(g1.receive()))
	verify(t, c, members, holdAll(t, nets, 4))
}

func TestPeerAwayForLong(t *testing.T) {
	limits := Limits{PeerTimeout: 50 * time.Millisecond, PingInterval: 10 * time.Millisecond, RedialMax: 20 * time.Millisecond}
	c := newCluster(t, limits, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	g0.send(1)
	g1.receive()
	c.mu.Lock()
	c.cut[c.address["b"]] = true
	c.mu.Unlock()
	c.breakLinks("b")
	link := nets["a"].peers[0].link
	require.Eventually(t, func() bool { return link.missing(time.Now()) > 0 }, 5*time.Second, time.Millisecond)
	g0.send(1)
	require.Eventually(t, func() bool { return link.missing(time.Now()) > limits.PeerTimeout }, 5*time.Second, time.Millisecond)
	g0.send(1)
	g0.send(1)
	require.Eventually(t, func() bool { return link.stats.down.Load() >= 2 }, 5*time.Second, time.Millisecond)
	dropped := link.stats.down.Load()
	c.mu.Lock()
	clear(c.cut)
	c.mu.Unlock()
	c.waitLinks(nets)
	g0.send(1)
	if dropped == 2 { // else the machine was slow, and it came too late
		assert.EqualValues(t, 2, frameNumber(g1.receive()), "sent while the break was fresh")
	}
	assert.EqualValues(t, 5, frameNumber(g1.receive()))
	reports := holdAll(t, nets, 1)
	verify(t, c, members, reports)
	assert.EqualValues(t, dropped, reports["a"][0].GetDropped())
	assert.EqualValues(t, 5, reports["a"][0].GetSent())
}

// TestUnwillingPeer speaks to a listener as no peer should.
func TestUnwillingPeer(t *testing.T) {
	s, err := New(Config{Node: "b", Session: 1, MAC: testMAC, Dial: (&cluster{cut: map[string]bool{"": true}}).dial})
	require.NoError(t, err)
	defer s.Close()
	greeting := func(dial, link uint64) []byte {
		return appendHello(nil, hello{session: 7, dial: dial, link: link, node: "a"})
	}
	run := appendFrame(nil, testFrame(0, 1, 1, 60))
	frames := func(number uint64) []byte {
		return append(appendFramesHeader(nil, 0, number, 0, 1, len(run)), run...)
	}
	network := appendNetwork(nil, 0, 1, NetworkID{"job", 1})
	talk := func(parts ...[]byte) (welcome, error) {
		here, there := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- s.ServeLink(context.Background(), there) }()
		_, err := here.Write(parts[0])
		require.NoError(t, err)
		m, err := readMessage(here)
		require.NoError(t, err)
		answer, refused := m.welcome()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		for _, part := range parts[1:] {
			_, _ = here.Write(part)
		}
		_ = here.Close()
		err = <-ended
		if refused != nil {
			return answer, refused
		}
		return answer, err
	}
	answer, err := talk(greeting(1, 5), network, frames(2), frames(2), frames(3))
	require.ErrorIs(t, err, io.EOF)
	assert.False(t, answer.known)
	assert.EqualValues(t, 1, s.Stats().Duplicates)
	answer, err = talk(greeting(2, 5), frames(4), frames(6))
	require.ErrorIs(t, err, errMessage, "a gap")
	assert.Equal(t, welcome{session: 1, known: true, received: 3, node: "b"}, answer)
	assert.EqualValues(t, 3, s.Stats().UnknownNetwork)
	answer, err = talk(greeting(3, 6), frames(1))
	require.ErrorIs(t, err, errMessage, "a network that was not announced")
	assert.Equal(t, welcome{session: 1, node: "b"}, answer)
	_, err = talk(appendHello(nil, hello{session: 7, dial: 4, link: 5}))
	require.ErrorContains(t, err, "no greeting", "a node without a name")
	_, err = talk(appendHello(nil, hello{session: 7, dial: 4, node: "a"}))
	require.ErrorContains(t, err, "link 0")
	old := greeting(4, 5)
	binary.BigEndian.PutUint16(old[messageHeader+4:], 1)
	_, err = talk(old)
	require.ErrorContains(t, err, "version 1")
}

// TestWindow checks the window against a peer that handles what it is given:
// whatever is cut off, repeated, acknowledged late or never, the peer gets
// every message once, in order, and memory is given back.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var buffers pool
		w := newWindow(&buffers)
		var (
			received uint64 // by the peer
			stream   []byte // at the peer, not yet a message
			bodies   = map[uint64]int{}
		)
		handle := func(data []byte) {
			for stream = append(stream, data...); ; {
				m, size, err := parseMessage(stream)
				if err != nil {
					t.Fatal(err)
				}
				if size == 0 {
					return
				}
				switch {
				case m.number <= received:
				case m.number != received+1 || len(m.body) != bodies[m.number]:
					t.Fatalf("message %d of %d bytes after %d", m.number, len(m.body), received)
				default:
					received++
				}
				stream = stream[size:]
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := rapid.SampledFrom([]int{8, 100, 9000, 60000, 300000}).Draw(t, "size")
				s, number := w.add(messageHeader + numberSize + n)
				s.buf.b = append(appendNumbered(s.buf.b, messageMark, 0, number, n), make([]byte, n)...)
				bodies[number] = n
			},
			"write": func(*rapid.T) {
				if s, data := w.offer(); s != nil {
					handle(data)
					s.written += len(data)
					w.trim(nil)
				}
			},
			"write, acknowledged meanwhile": func(*rapid.T) {
				if s, data := w.offer(); s != nil {
					handle(data)
					if err := w.ack(received, s); err != nil {
						t.Fatal(err)
					}
					if len(w.segments) == 0 || w.segments[len(w.segments)-1].last < s.last {
						t.Fatal("what is being written was given back")
					}
					s.written += len(data)
					w.trim(nil)
				}
			},
			"break": func(t *rapid.T) {
				if s, data := w.offer(); s != nil {
					handle(data[:rapid.IntRange(0, len(data)).Draw(t, "arrives")])
				}
				stream = nil
				if err := w.ack(received, nil); err != nil {
					t.Fatal(err)
				}
				w.rewind()
			},
			"ack": func(t *rapid.T) {
				if err := w.ack(rapid.Uint64Range(0, received).Draw(t, "number"), nil); err != nil {
					t.Fatal(err)
				}
			},
			"ack too much": func(t *rapid.T) {
				if w.ack(w.offered+1+rapid.Uint64Range(0, 9).Draw(t, "more"), nil) == nil {
					t.Fatal("accepted")
				}
			},
			"": func(t *rapid.T) {
				size := 0
				for _, s := range w.segments {
					size += len(s.buf.b)
				}
				if size != w.size {
					t.Fatalf("size is %d, want %d", w.size, size)
				}
				if w.acked == w.next-1 && (size != 0 || w.waiting()) {
					t.Fatalf("everything is acknowledged, %d bytes are kept", size)
				}
			},
		})
	})
}

func TestWindowDrop(t *testing.T) {
	var buffers pool
	w := newWindow(&buffers)
	run := appendFrame(appendFrame(nil, testFrame(0, 1, 1, 60)), testFrame(0, 1, 2, 60))
	for range 3 {
		s, number := w.add(framesOverhead + len(run))
		s.buf.b = append(appendFramesHeader(s.buf.b, 0, number, 0, 1, len(run)), run...)
	}
	s, number := w.add(messageHeader + numberSize + 8)
	s.buf.b = appendMark(s.buf.b, messageMark, 0, number, 1)
	_, _ = w.offer()
	require.NoError(t, w.ack(1, nil))
	assert.Equal(t, 4, w.drop(), "frames that are not acknowledged")
	assert.Equal(t, fmt.Sprint(newWindow(&buffers)), fmt.Sprint(w))
}
