package gateway

import (
	"context"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testMTU = 65520

var (
	testNetwork = netip.MustParsePrefix("10.77.0.0/16")
	gatewayAddr = netip.MustParseAddr("10.77.0.1")
	hostAddr    = netip.MustParseAddr("10.77.0.2")
	gatewayMAC  = net.HardwareAddr{0x52, 0x54, 0, 0x77, 0xff, 0xff}
	guests      = []Guest{
		{Name: "guest0", Addr: netip.MustParseAddr("10.77.1.1"), MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, 0}},
		{Name: "guest1", Addr: netip.MustParseAddr("10.77.1.2"), MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, 1}},
	}
)

// patience bounds every wait for something that must happen.
const patience = 10 * time.Second

func testConfig() Config {
	return Config{
		Network: testNetwork, Addr: gatewayAddr, Host: hostAddr, MAC: gatewayMAC, MTU: testMTU, Guests: guests,
		Limits: Limits{ListenRetry: 20 * time.Millisecond},
	}
}

// running is a gateway that runs, and the socket that a switch connects to.
type running struct {
	*Gateway
	socket string
	end    func() // ends it and waits
}

func run(t *testing.T, cfg Config) *running {
	t.Helper()
	g, err := New(cfg)
	require.NoError(t, err)
	r := &running{Gateway: g, socket: filepath.Join(t.TempDir(), "gw")}
	ln, err := net.Listen("unix", r.socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, ln) }()
	ended := false
	r.end = func() {
		if !ended {
			ended = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(r.end)
	return r
}

// machine is a guest: a TCP/IP stack of its own.
type machine struct {
	stack *stack.Stack
	link  *channel.Endpoint
	addr  netip.Addr
}

func boot(t *testing.T, guest Guest, router bool) *machine {
	t.Helper()
	m := &machine{addr: guest.Addr, link: channel.New(512, testMTU+header.EthernetMinimumSize, tcpip.LinkAddress(guest.MAC))}
	m.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	require.Nil(t, m.stack.CreateNIC(nicID, ethernet.New(m.link)))
	own := tcpip.AddressWithPrefix{Address: address(guest.Addr), PrefixLen: 16}
	require.Nil(t, m.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: own}, stack.AddressProperties{}))
	routes := []tcpip.Route{{Destination: own.Subnet(), NIC: nicID}}
	if router {
		routes = append(routes, tcpip.Route{Destination: header.IPv4EmptySubnet, Gateway: address(gatewayAddr), NIC: nicID})
	}
	m.stack.SetRouteTable(routes)
	t.Cleanup(func() {
		m.stack.Close()
		m.link.Close()
		m.stack.Wait()
	})
	return m
}

// plug connects the machine to a gateway until the test ends or unplug is called.
func (m *machine) plug(t *testing.T, socket string) (unplug func()) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		give(ctx, &serving{link: m.link}, conn)
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			frame, err := readFrame(conn)
			if err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			m.link.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	}()
	unplugged := false
	unplug = func() {
		if !unplugged {
			unplugged = true
			cancel()
			_ = conn.Close()
			<-done
			<-done
		}
	}
	t.Cleanup(unplug)
	return unplug
}

func (m *machine) dial(t *testing.T, to string) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, m.stack, full(netip.MustParseAddrPort(to)), ipv4.ProtocolNumber)
	if err == nil {
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func (m *machine) dialUDP(t *testing.T, to string) *gonet.UDPConn {
	t.Helper()
	remote := full(netip.MustParseAddrPort(to))
	c, err := gonet.DialUDP(m.stack, nil, &remote, ipv4.ProtocolNumber)
	require.NoError(t, err)
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// serve answers each connection to a listener with f until the test ends.
func serve(t *testing.T, ln net.Listener, f func(net.Conn)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f(c)
		}
	}()
	t.Cleanup(func() {
		if l, ok := ln.(*gonet.TCPListener); ok {
			l.Shutdown()
		}
		_ = ln.Close()
		<-done
	})
}

// echo sends back what comes, to its end.
func echo(c net.Conn) {
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

// listen has a machine answer on a port.
func (m *machine) listen(t *testing.T, port uint16, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(m.addr, port)
	ln, err := gonet.ListenTCP(m.stack, full(at), ipv4.ProtocolNumber)
	require.NoError(t, err)
	serve(t, ln, f)
	return at
}

// node has a real server on this machine's loopback address.
func node(t *testing.T, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	serve(t, ln, f)
	return netip.MustParseAddrPort(ln.Addr().String())
}

// freePort is a port of the loopback address that nobody had a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close() //nolint:errcheck // the test is over
	return ln.Addr().String()
}

// opened waits until the only port of a gateway is open.
func (r *running) opened(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		s := r.Status()
		return len(s.Ports) == 1 && s.Ports[0].Error == ""
	}, patience, time.Millisecond)
}

func exchange(t *testing.T, c net.Conn, data []byte) []byte {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.(halfCloser).CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.NoError(t, <-sent)
	return got
}
