package overlay

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testMAC(guest int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, 0x77, byte(guest >> 8), byte(guest)}
}

// testFrame is an Ethernet frame with a number in it.
func testFrame(source, destination int, number uint64, size int) []byte {
	frame := make([]byte, max(size, 14+8))
	if destination < 0 {
		copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	} else {
		copy(frame, testMAC(destination))
	}
	copy(frame[6:], testMAC(source))
	frame[12], frame[13] = 0x88, 0xb5
	binary.BigEndian.PutUint64(frame[14:], number)
	return frame
}

func sourceGuest(frame []byte) int    { return int(frame[10])<<8 | int(frame[11]) }
func frameNumber(frame []byte) uint64 { return binary.BigEndian.Uint64(frame[14:]) }

// cluster is several switches linked over loopback TCP.
type cluster struct {
	t        testing.TB
	switches map[string]*Switch
	address  map[string]string
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]string // accepted, by node
	cut   map[string]bool     // addresses that cannot be dialled

	wrap   func(net.Conn) net.Conn // accepted connections
	secure func(context.Context, net.Conn) (net.Conn, error)
}

func newCluster(t testing.TB, limits Limits, nodes ...string) *cluster {
	c := &cluster{
		t: t, switches: map[string]*Switch{}, address: map[string]string{},
		conns: map[net.Conn]string{}, cut: map[string]bool{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var listeners []net.Listener
	for i, node := range nodes {
		s, err := New(Config{Node: node, Session: uint64(i + 1), MAC: testMAC, Limits: limits, Dial: c.dial})
		require.NoError(t, err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners = append(listeners, l)
		c.switches[node], c.address[node] = s, l.Addr().String()
		c.wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c.mu.Lock()
				c.conns[conn] = node
				served := conn
				if c.wrap != nil {
					served = c.wrap(conn)
				}
				c.mu.Unlock()
				c.wg.Go(func() {
					_ = c.serving(node).ServeLink(ctx, served)
					c.mu.Lock()
					delete(c.conns, conn)
					c.mu.Unlock()
				})
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		for _, s := range c.switches {
			s.Close()
		}
		cancel()
		c.wg.Wait()
	})
	return c
}

func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	c.mu.Lock()
	cut, secure := c.cut[address], c.secure
	c.mu.Unlock()
	if cut {
		return nil, fmt.Errorf("%s is cut off", address)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil && secure != nil {
		return secure(ctx, conn)
	}
	return conn, err
}

// serving is the node's present switch.
func (c *cluster) serving(node string) *Switch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.switches[node]
}

// breakLinks closes all links that node has accepted.
func (c *cluster) breakLinks(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, n := range c.conns {
		if n == node {
			_ = conn.Close()
		}
	}
}

// members places guest i on the i-th of nodes.
func (c *cluster) members(nodes ...string) []Member {
	var all []Member
	for i, node := range nodes {
		all = append(all, Member{Guest: i, Node: node, Address: c.address[node]})
	}
	return all
}

// open opens the network on all nodes and waits for the links.
func (c *cluster) open(id NetworkID, members []Member) map[string]*Network {
	networks := map[string]*Network{}
	for _, m := range members {
		n, err := c.switches[m.Node].Open(id, members)
		require.NoError(c.t, err)
		networks[m.Node] = n
	}
	c.waitLinks(networks)
	return networks
}

func (c *cluster) waitLinks(networks map[string]*Network) {
	require.Eventually(c.t, func() bool {
		for node, n := range networks {
			for _, p := range n.peers {
				peer := c.switches[p.node]
				peer.mu.Lock()
				in := peer.inLinks[node]
				peer.mu.Unlock()
				if p.link.missing(time.Now()) != 0 || in == nil || in.link != p.link.current() {
					return false
				}
			}
		}
		return true
	}, 5*time.Second, time.Millisecond)
}

// guest plays QEMU: it listens on a unix socket.
type guest struct {
	t        testing.TB
	n        *Network
	index    int
	socket   string
	listener *net.UnixListener
	conn     net.Conn
	r        *bufio.Reader
	sent     atomic.Uint64
}

func newGuest(t testing.TB, n *Network, index int) *guest {
	dir, err := os.MkdirTemp("", "vft-overlay-")
	require.NoError(t, err)
	g := &guest{t: t, index: index, socket: filepath.Join(dir, "net")}
	l, err := net.Listen("unix", g.socket)
	require.NoError(t, err)
	g.listener = l.(*net.UnixListener)
	t.Cleanup(func() {
		_ = l.Close()
		if g.conn != nil {
			_ = g.conn.Close()
		}
		_ = os.RemoveAll(dir)
	})
	if n != nil {
		g.attach(n)
	}
	return g
}

func (g *guest) attach(n *Network) {
	g.n = n
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := n.AttachPort(ctx, g.index, g.socket)
	require.NoError(g.t, err)
	g.accept()
}

func (g *guest) accept() {
	_ = g.listener.SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := g.listener.Accept()
	require.NoError(g.t, err)
	g.conn, g.r = conn, bufio.NewReaderSize(conn, 256*1024)
}

func (g *guest) write(frames ...[]byte) {
	var buf []byte
	for _, f := range frames {
		buf = appendFrame(buf, f)
	}
	_, err := g.conn.Write(buf)
	require.NoError(g.t, err)
}

// send writes one frame with the next number.
func (g *guest) send(to int) {
	g.write(testFrame(g.index, to, g.sent.Add(1), 64))
}

func readFrame(r io.Reader) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(header[:]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func (g *guest) receive() []byte {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	frame, err := readFrame(g.r)
	require.NoError(g.t, err, "guest %d waits for a frame", g.index)
	return frame
}

// quiet checks that nothing arrives for a while.
func (g *guest) quiet() {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	_, err := g.r.Peek(1)
	require.ErrorIs(g.t, err, os.ErrDeadlineExceeded, "guest %d got a frame", g.index)
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
