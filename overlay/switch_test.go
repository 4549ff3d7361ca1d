package overlay

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestForwarding(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a", "b"))
	g0, g1, g2 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1), newGuest(t, nets["b"], 2)

	for _, size := range []int{60, 1514, 9014, 65534} {
		for _, to := range []*guest{g1, g2} {
			frame := testFrame(0, to.index, 7, size)
			g0.write(frame)
			require.Equal(t, frame, to.receive())
		}
	}
	frame := testFrame(2, -1, 1, 60)
	g2.write(frame)
	assert.Equal(t, frame, g0.receive(), "broadcast reaches every other guest")
	assert.Equal(t, frame, g1.receive())
	g2.quiet()

	g0.write(testFrame(1, 2, 1, 60), testFrame(0, 9, 1, 60), testFrame(0, 0, 1, 60), make([]byte, 13), testFrame(0, 1, 99, 60))
	assert.Equal(t, uint64(99), frameNumber(g1.receive()), "refused frames do not stop what follows")
	g2.quiet()
	p := nets["a"].members[0].port
	assert.EqualValues(t, 1, p.stats.spoofed.Load())
	assert.EqualValues(t, 1, p.stats.unknown.Load())
	assert.EqualValues(t, 1, p.stats.reflections.Load())
	assert.EqualValues(t, 1, p.stats.runts.Load())
}

func TestTrafficBeforePeerOpens(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	id, members := NetworkID{"job", 1}, c.members("a", "b")
	a, err := c.switches["a"].Open(id, members)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return a.peers[0].link.missing(time.Now()) == 0 }, 5*time.Second, time.Millisecond)
	g0 := newGuest(t, a, 0)
	g0.send(1)
	require.Eventually(t, func() bool { return c.switches["b"].stats.unknownNetwork.Load() == 1 }, 5*time.Second, time.Millisecond)
	nets := c.open(id, members)
	g1 := newGuest(t, nets["b"], 1)
	g0.send(1)
	assert.EqualValues(t, 2, frameNumber(g1.receive()))
	counts := holdAll(t, nets, 1)
	verify(t, c, members, counts)
	releaseAll(nets, 1)
}

func TestSlowGuestStallsNobody(t *testing.T) {
	c := newCluster(t, Limits{PortQueue: 1 << 20}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a", "a"))
	g0 := newGuest(t, nets["a"], 0)
	newGuest(t, nets["a"], 1) // never reads
	g2 := newGuest(t, nets["a"], 2)
	for range 3000 {
		g0.send(1)
		g0.write(testFrame(0, 1, 1, 1514))
	}
	g0.send(2)
	assert.EqualValues(t, 3001, frameNumber(g2.receive()))
	slow := nets["a"].members[1].port
	assert.Positive(t, slow.out.stats.overflow.Load(), "the slow guest's frames are dropped")
	assert.LessOrEqual(t, slow.out.length(), 3<<20)
}

func TestBadFramingReconnects(t *testing.T) {
	c := newCluster(t, Limits{}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1)
	g0.send(1)
	g1.receive()
	_, err := g0.conn.Write(binary.BigEndian.AppendUint32(nil, maxFrame+1))
	require.NoError(t, err)
	g0.accept()
	g0.send(1)
	assert.EqualValues(t, 2, frameNumber(g1.receive()))

	_, err = g0.conn.Write(appendFrame(nil, testFrame(0, 1, 3, 60))[:20])
	require.NoError(t, err)
	_ = g0.conn.Close()
	g0.accept()
	g0.write(testFrame(0, 1, 4, 60))
	assert.EqualValues(t, 4, frameNumber(g1.receive()), "half a frame is forgotten with its connection")
}

func TestFencing(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	old := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, old["a"], 0), newGuest(t, old["b"], 1)
	g0.send(1)
	g1.receive()

	again, err := c.switches["a"].Open(NetworkID{"job", 1}, members)
	require.NoError(t, err)
	assert.Same(t, old["a"], again)
	_, err = c.switches["a"].Open(NetworkID{"job", 1}, members[:1])
	require.Error(t, err, "other members under the same name")

	_, err = c.switches["b"].Open(NetworkID{"job", 2}, members)
	require.NoError(t, err)
	g0.send(1) // of the old incarnation, from a node that has not heard
	require.Eventually(t, func() bool { return c.switches["b"].stats.unknownNetwork.Load() == 1 }, 5*time.Second, time.Millisecond)
	_, err = c.switches["b"].Open(NetworkID{"job", 1}, members)
	require.ErrorIs(t, err, ErrFenced)

	c.switches["a"].Fence("job", 2)
	_, err = c.switches["a"].Open(NetworkID{"job", 1}, members)
	require.ErrorIs(t, err, ErrFenced)
	require.ErrorIs(t, old["a"].Hold(context.Background(), 1), ErrClosed)
	_, err = old["a"].AttachPort(context.Background(), 0, g0.socket)
	require.ErrorIs(t, err, ErrClosed)

	fresh := c.open(NetworkID{"job", 2}, members)
	n0, n1 := newGuest(t, fresh["a"], 0), newGuest(t, fresh["b"], 1)
	n0.send(1)
	assert.EqualValues(t, 1, frameNumber(n1.receive()))
	c.switches["a"].Forget("job")
	assert.Empty(t, c.switches["a"].networks)
}

func TestPeersDown(t *testing.T) {
	c := newCluster(t, Limits{PeerTimeout: 100 * time.Millisecond, PingInterval: 20 * time.Millisecond}, "a", "b")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "b"))
	assert.Empty(t, c.switches["a"].PeersDown())
	time.Sleep(300 * time.Millisecond)
	assert.Empty(t, c.switches["a"].PeersDown(), "pings keep an idle link alive")
	c.mu.Lock()
	c.cut[c.address["b"]] = true
	c.mu.Unlock()
	c.breakLinks("b")
	require.Eventually(t, func() bool { return len(c.switches["a"].PeersDown()) == 1 }, 5*time.Second, 5*time.Millisecond)
	assert.Equal(t, []string{"b"}, c.switches["a"].PeersDown())
	nets["a"].Close()
	assert.Empty(t, c.switches["a"].PeersDown(), "nobody needs the link any more")
}

// TestSilentPeer dials a listener that greets and then says nothing.
func TestSilentPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if _, err := readMessage(conn); err == nil {
				_, _ = conn.Write(appendWelcome(nil, welcome{session: 9, node: "b"}))
			}
		}
	}()
	s, err := New(Config{
		Node: "a", Session: 1, MAC: testMAC, Limits: Limits{PeerTimeout: 100 * time.Millisecond, GreetTimeout: 100 * time.Millisecond, PingInterval: 20 * time.Millisecond},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		},
	})
	require.NoError(t, err)
	defer func() { s.Close(); _ = l.Close(); <-done }()
	n, err := s.Open(NetworkID{"job", 1}, []Member{{0, "a", ""}, {1, "b", l.Addr().String()}})
	require.NoError(t, err)
	link := n.peers[0].link
	require.Eventually(t, func() bool { return link.stats.made.Load() >= 2 }, 5*time.Second, 5*time.Millisecond,
		"a link without answers is given up and made anew")
}

func TestAttachWaitsForSocket(t *testing.T) {
	c := newCluster(t, Limits{}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	_, err := nets["a"].AttachPort(timeout(t, 100*time.Millisecond), 0, filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = nets["a"].AttachPort(context.Background(), 5, "x")
	require.ErrorIs(t, err, ErrNotLocal)

	g := newGuest(t, nets["a"], 0)
	p, err := nets["a"].AttachPort(context.Background(), 0, g.socket)
	require.NoError(t, err)
	assert.Same(t, nets["a"].members[0].port, p)
	nets["a"].DetachPort(0)
	_, err = g.r.ReadByte()
	require.Error(t, err, "detaching closes the connection")
}
