package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// TestPublishedPort: a port of the node leads to a guest, both ways, to the
// end of each direction, and as often as one likes.
func TestPublishedPort(t *testing.T) {
	g := run(t, testConfig())
	m := boot(t, guests[0], false)
	m.plug(t, g.socket)
	to := m.listen(t, 80, echo)
	at := freePort(t)
	g.Apply(Policy{Ports: []Port{{Listen: at, To: to}}})
	g.opened(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for range 2 {
		c, err := net.Dial("tcp", at)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, exchange(t, c, data)))
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return g.Status().Ports[0].Open == 0 }, patience, time.Millisecond)
	assert.EqualValues(t, 2, g.Status().Ports[0].Accepted)

	// A port of a guest that nobody listens on is reset.
	other := freePort(t)
	g.Apply(Policy{Ports: []Port{{Listen: other, To: netip.AddrPortFrom(m.addr, 81)}}})
	g.opened(t)
	c, err := net.Dial("tcp", other)
	if err == nil { // the reset may be here already
		defer c.Close() //nolint:errcheck // the test is over
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = c.Read(make([]byte, 1))
	}
	assert.ErrorContains(t, err, "reset")
}

// TestUnpublish: a port that is not published any more is closed, with its
// connections; others are not touched.
func TestUnpublish(t *testing.T) {
	g := run(t, testConfig())
	m := boot(t, guests[0], false)
	m.plug(t, g.socket)
	to := m.listen(t, 80, func(c net.Conn) { go echo(c) })
	one, two := Port{Listen: freePort(t), To: to}, Port{Listen: freePort(t), To: to}
	g.Apply(Policy{Ports: []Port{one, two}})
	connect := func(p Port) net.Conn {
		var c net.Conn
		require.Eventually(t, func() (ok bool) {
			var err error
			c, err = net.Dial("tcp", p.Listen)
			return err == nil
		}, patience, time.Millisecond)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 1))
		require.NoError(t, err)
		return c
	}
	gone, stays := connect(one), connect(two)
	g.Apply(Policy{Ports: []Port{two}})
	_, err := gone.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", one.Listen)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, patience, time.Millisecond)
	_, err = stays.Write([]byte("y"))
	require.NoError(t, err)
	_, err = io.ReadFull(stays, make([]byte, 1))
	require.NoError(t, err)
}

// TestPortTaken: a port that somebody else has is said to be taken, and had as
// soon as it is free.
func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	g := run(t, testConfig())
	g.Apply(Policy{Ports: []Port{{Listen: ln.Addr().String(), To: netip.AddrPortFrom(guests[0].Addr, 80)}}})
	require.Eventually(t, func() bool {
		s := g.Status()
		return len(s.Ports) == 1 && bytes.Contains([]byte(s.Ports[0].Error), []byte("address already in use"))
	}, patience, time.Millisecond)
	require.NoError(t, ln.Close())
	g.opened(t)
}

// TestNextGateway: when the gateway of an incarnation ends, its outer
// connections are reset; the guest's end is reset by the one that comes next,
// which never knew of it. A switch that connects again is served.
func TestNextGateway(t *testing.T) {
	g := run(t, testConfig())
	m := boot(t, guests[0], false)
	unplug := m.plug(t, g.socket)
	ends := make(chan net.Conn, 1)
	to := m.listen(t, 80, func(c net.Conn) { ends <- c })
	port := Port{Listen: freePort(t), To: to}
	g.Apply(Policy{Ports: []Port{port}})
	g.opened(t)
	outer, err := net.Dial("tcp", port.Listen)
	require.NoError(t, err)
	defer outer.Close() //nolint:errcheck // the test is over
	inner := <-ends
	defer inner.Close() //nolint:errcheck // the test is over
	require.NoError(t, inner.SetDeadline(time.Now().Add(patience)))
	require.NoError(t, outer.SetDeadline(time.Now().Add(patience)))
	_, err = outer.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(inner, make([]byte, 1))
	require.NoError(t, err)

	unplug() // nothing that the old one says at its end comes to the guest
	g.end()
	_, err = outer.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	assert.NotEmpty(t, g.Status().Ports[0].Error)

	next := run(t, testConfig())
	m.plug(t, next.socket)()
	m.plug(t, next.socket)
	_, err = inner.Write([]byte("y"))
	require.NoError(t, err)
	_, err = inner.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	next.Apply(Policy{Ports: []Port{port}})
	next.opened(t)
	again, err := net.Dial("tcp", port.Listen)
	require.NoError(t, err)
	defer again.Close() //nolint:errcheck // the test is over
	require.NoError(t, (<-ends).Close())
}

// TestWayOut: guests reach the world if that is allowed, and never what is the
// node's own.
func TestWayOut(t *testing.T) {
	server := node(t, echo)
	cfg := testConfig()
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "192.0.2.1:80" { // the world
			address = server.String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	g := run(t, cfg)
	m := boot(t, guests[0], true)
	m.plug(t, g.socket)
	loopbackService := netip.AddrPortFrom(hostAddr, server.Port()).String()

	for _, to := range []string{"192.0.2.1:80", loopbackService} {
		_, err := m.dial(t, to)
		require.ErrorContains(t, err, "refused", to)
	}
	assert.EqualValues(t, 2, g.Status().Refused)

	g.Apply(Policy{Out: true})
	c, err := m.dial(t, "192.0.2.1:80")
	require.NoError(t, err)
	data := bytes.Repeat([]byte("out"), 100_000)
	assert.True(t, bytes.Equal(data, exchange(t, c, data)))
	_, err = m.dial(t, loopbackService)
	require.ErrorContains(t, err, "refused")

	g.Apply(Policy{Host: true})
	_, err = m.dial(t, "192.0.2.1:80")
	require.ErrorContains(t, err, "refused")
	c, err = m.dial(t, loopbackService)
	require.NoError(t, err)
	assert.Equal(t, "here", string(exchange(t, c, []byte("here"))))
}

// TestOuter: what is the world, and what is not.
func TestOuter(t *testing.T) {
	cfg := testConfig()
	cfg.Own = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("198.51.100.7")}, nil }
	g, err := New(cfg)
	require.NoError(t, err)
	out, host := Policy{Out: true}, Policy{Host: true}
	for _, c := range []struct {
		policy Policy
		to     string
		want   string // empty: refused
	}{
		{out, "192.0.2.1:80", "192.0.2.1:80"},
		{out, "10.0.0.1:22", "10.0.0.1:22"},
		{Policy{}, "192.0.2.1:80", ""},
		{host, "192.0.2.1:80", ""},
		{host, "10.77.0.2:22", "127.0.0.1:22"},
		{out, "10.77.0.2:22", ""},
		{out, "10.77.0.1:22", ""},
		{out, "10.77.1.2:22", ""},
		{out, "198.51.100.7:22", ""},
		{host, "198.51.100.7:22", ""},
		{out, "127.0.0.1:22", ""},
		{host, "127.0.0.1:22", ""},
		{out, "127.9.9.9:22", ""},
		{out, "0.0.0.0:22", ""},
		{out, "0.1.2.3:22", ""},
		{out, "169.254.169.254:80", ""},
		{out, "224.0.0.251:5353", ""},
		{out, "255.255.255.255:9", ""},
		{out, "[::1]:22", ""},
	} {
		got, err := g.outer(c.policy, netip.MustParseAddrPort(c.to))
		if c.want == "" {
			assert.ErrorIs(t, err, errRefused, "%+v %s", c.policy, c.to)
		} else if assert.NoError(t, err, c.to) {
			assert.Equal(t, c.want, got.String())
		}
	}
	cfg.Own = func() ([]netip.Addr, error) { return nil, errors.New("no idea") }
	g, err = New(cfg)
	require.NoError(t, err)
	_, err = g.outer(out, netip.MustParseAddrPort("192.0.2.1:80"))
	assert.ErrorIs(t, err, errRefused, "what may be the node's own is not reached")
}

// TestDatagrams: UDP goes out and its answers come back, within bounds, and a
// flow that is idle is forgotten.
func TestDatagrams(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	defer func() {
		_ = server.Close()
		<-done
	}()
	cfg := testConfig()
	cfg.Limits.Flows, cfg.Limits.FlowIdle = 1, 2*time.Second
	cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.LocalAddr().String())
	}
	g := run(t, cfg)
	m := boot(t, guests[0], true)
	m.plug(t, g.socket)
	ask := func(c net.Conn) {
		t.Helper()
		// Asked again: a datagram may be lost, and one that was sent before the
		// way was open may hold the only flow until it is idle.
		require.Eventually(t, func() bool {
			if _, err := c.Write([]byte("hello")); err != nil {
				return false
			}
			buf := make([]byte, 100)
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return false
			}
			n, err := c.Read(buf)
			return err == nil && string(buf[:n]) == "re:hello"
		}, patience, time.Millisecond)
	}
	refused := func(to string) {
		t.Helper()
		c := m.dialUDP(t, to)
		require.Eventually(t, func() bool { // a read does not notice: the next write tells
			_, err := c.Write([]byte("hello"))
			return err != nil && strings.Contains(err.Error(), "refused")
		}, patience, time.Millisecond)
	}
	refused("192.0.2.1:9")
	g.Apply(Policy{Out: true})
	first := m.dialUDP(t, "192.0.2.1:9")
	ask(first)
	assert.Equal(t, 1, g.Status().UDP)
	refused("192.0.2.2:9") // one more than there may be
	require.Eventually(t, func() bool { return g.Status().UDP == 0 }, patience, time.Millisecond)
	ask(first) // it begins anew
}

// TestNames: the network's names are answered here, others by the node's name
// servers and only if the world is reached.
func TestNames(t *testing.T) {
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	var asked []string
	up := make(chan struct{})
	upstream := &dns.Server{PacketConn: packets, NotifyStartedFunc: func() { close(up) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked = append(asked, r.Question[0].Name)
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan error, 1)
	go func() { ended <- upstream.ActivateAndServe() }()
	<-up
	defer func() {
		require.NoError(t, upstream.Shutdown())
		require.NoError(t, <-ended)
		assert.Equal(t, []string{"world.example.", "world.example."}, asked, "nothing else is asked outside")
	}()
	cfg := testConfig()
	cfg.Resolvers = func() ([]string, error) { return []string{packets.LocalAddr().String()}, nil }
	g := run(t, cfg)
	m := boot(t, guests[0], false)
	m.plug(t, g.socket)

	for _, c := range []struct {
		policy Policy
		name   string
		kind   uint16
		rcode  int
		want   string
	}{
		{Policy{}, "guest1.", dns.TypeA, dns.RcodeSuccess, "10.77.1.2"},
		{Policy{}, "GUEST1.vft.", dns.TypeA, dns.RcodeSuccess, "10.77.1.2"},
		{Policy{}, "gateway.", dns.TypeA, dns.RcodeSuccess, "10.77.0.1"},
		{Policy{}, "guest1.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{Policy{}, "guest7.", dns.TypeA, dns.RcodeNameError, ""},
		{Policy{Out: true}, "guest7.vft.", dns.TypeA, dns.RcodeNameError, ""},
		{Policy{}, "host.vft.", dns.TypeA, dns.RcodeNameError, ""},
		{Policy{Host: true}, "host.vft.", dns.TypeA, dns.RcodeSuccess, "10.77.0.2"},
		{Policy{}, "2.1.77.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "guest1.vft."},
		{Policy{}, "2.0.77.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{Policy{Out: true}, "9.9.77.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{Policy{}, "world.example.", dns.TypeA, dns.RcodeNameError, ""},
		{Policy{Host: true}, "world.example.", dns.TypeA, dns.RcodeNameError, ""},
		{Policy{Out: true}, "world.example.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{Policy{Out: true}, "world.example.", dns.TypeA, dns.RcodeSuccess, "192.0.2.1"},
		{Policy{}, ".", dns.TypeNS, dns.RcodeNameError, ""},
	} {
		g.Apply(c.policy)
		r := ask(t, m.dialUDP(t, "10.77.0.1:53"), c.name, c.kind)
		assert.Equal(t, dns.RcodeToString[c.rcode], dns.RcodeToString[r.Rcode], c.name)
		assert.Equal(t, c.want, said(r), c.name)
	}
	stream, err := m.dial(t, "10.77.0.1:53")
	require.NoError(t, err)
	assert.Equal(t, "10.77.1.1", said(ask(t, stream, "guest0.", dns.TypeA)))
	g.Apply(Policy{Out: true})
	assert.Equal(t, "192.0.2.1", said(ask(t, m.dialUDP(t, "10.77.0.1:53"), "world.example.", dns.TypeA)))
}

func ask(t *testing.T, c net.Conn, name string, kind uint16) *dns.Msg {
	t.Helper()
	conn := &dns.Conn{Conn: c, UDPSize: dns.MinMsgSize}
	m := new(dns.Msg).SetQuestion(name, kind)
	require.NoError(t, conn.WriteMsg(m))
	r, err := conn.ReadMsg()
	require.NoError(t, err)
	require.Equal(t, m.Id, r.Id)
	return r
}

// said is the only answer of a message.
func said(m *dns.Msg) string {
	if len(m.Answer) != 1 {
		return ""
	}
	switch rr := m.Answer[0].(type) {
	case *dns.A:
		return rr.A.String()
	case *dns.PTR:
		return rr.Ptr
	}
	return "?"
}

// TestLeases: a guest that asks gets the address that is its own, by way of
// the network and for every kind of message.
func TestLeases(t *testing.T) {
	g := run(t, testConfig())
	m := boot(t, guests[1], false)
	m.plug(t, g.socket)
	var wq waiter.Queue
	ep, terr := m.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	require.Nil(t, terr)
	ep.SocketOptions().SetBroadcast(true)
	require.Nil(t, ep.Bind(tcpip.FullAddress{NIC: nicID, Port: dhcpClientPort}))
	client := gonet.NewUDPConn(&wq, ep)
	defer client.Close() //nolint:errcheck // the test is over
	require.NoError(t, client.SetDeadline(time.Now().Add(patience)))
	discover, err := dhcpv4.NewDiscovery(guests[1].MAC)
	require.NoError(t, err)
	_, err = client.WriteTo(discover.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpServerPort})
	require.NoError(t, err)
	buf := make([]byte, 2048)
	n, _, err := client.ReadFrom(buf)
	require.NoError(t, err)
	offer, err := dhcpv4.FromBytes(buf[:n])
	require.NoError(t, err)
	assert.Equal(t, dhcpv4.MessageTypeOffer, offer.MessageType())
	assert.Equal(t, "10.77.1.2", offer.YourIPAddr.String())
	assert.Equal(t, "guest1", offer.HostName())
	assert.Equal(t, []net.IP{net.IP(gatewayAddr.AsSlice())}, offer.DNS())
	assert.Equal(t, "ffff0000", offer.SubnetMask().String())
	assert.Empty(t, offer.Router(), "there is no way out")

	reply := func(m *dhcpv4.DHCPv4, err error) *dhcpv4.DHCPv4 {
		t.Helper()
		require.NoError(t, err)
		raw := g.offer(m.ToBytes())
		if raw == nil {
			return nil
		}
		r, err := dhcpv4.FromBytes(raw)
		require.NoError(t, err)
		return r
	}
	g.Apply(Policy{Out: true})
	ack := reply(dhcpv4.NewRequestFromOffer(offer))
	assert.Equal(t, dhcpv4.MessageTypeAck, ack.MessageType())
	assert.Len(t, ack.Router(), 1)
	assert.Equal(t, []byte{0xff, 0xf0}, ack.Options.Get(dhcpv4.OptionInterfaceMTU))
	nak := reply(dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 1, 1)))))
	assert.Equal(t, dhcpv4.MessageTypeNak, nak.MessageType())
	assert.True(t, nak.YourIPAddr.IsUnspecified())
	assert.Nil(t, reply(dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 9})), "it is nobody of the network")
	assert.Nil(t, reply(dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 9))))))
	assert.Nil(t, reply(dhcpv4.NewReleaseFromACK(ack)))
	assert.Nil(t, g.offer([]byte("nonsense")))
}

// arpFor is an ARP request of guest 1.
func arpFor(target string) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guests[1].MAC...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	f = append(f, guests[1].MAC...)
	f = append(f, guests[1].Addr.AsSlice()...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, netip.MustParseAddr(target).AsSlice()...)
}

// packet is an IPv4 packet of guest 1 with a UDP-like payload.
func packet(mac net.HardwareAddr, target string, protocol byte, port uint16) []byte {
	f := append(append([]byte{}, mac...), guests[1].MAC...)
	f = append(f, 0x08, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0)
	f = append(f, guests[1].Addr.AsSlice()...)
	f = append(f, netip.MustParseAddr(target).AsSlice()...)
	f = binary.BigEndian.AppendUint16(f, 1000)
	f = binary.BigEndian.AppendUint16(f, port)
	return append(f, 0, 8, 0, 0)
}

// TestWanted: the gateway answers for nobody of the network, and does not
// pretend that hosts of the world are there.
func TestWanted(t *testing.T) {
	g, err := New(testConfig())
	require.NoError(t, err)
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	multicast := net.HardwareAddr{0x01, 0, 0x5e, 0, 0, 0xfb}
	for _, c := range []struct {
		what  string
		frame []byte
		want  bool
	}{
		{"ARP for the gateway", arpFor("10.77.0.1"), true},
		{"ARP for the node", arpFor("10.77.0.2"), true},
		{"ARP for a guest", arpFor("10.77.1.1"), false},
		{"ARP for somebody in the world", arpFor("192.0.2.1"), false},
		{"short ARP", arpFor("10.77.0.1")[:40], false},
		{"ping", packet(gatewayMAC, "10.77.0.1", 1, 0), true},
		{"ping of the world", packet(gatewayMAC, "192.0.2.1", 1, 0), false},
		{"TCP to the world", packet(gatewayMAC, "192.0.2.1", 6, 80), true},
		{"UDP to the world", packet(gatewayMAC, "192.0.2.1", 17, 80), true},
		{"DHCP", packet(broadcast, "255.255.255.255", 17, 67), true},
		{"another broadcast", packet(broadcast, "10.77.255.255", 17, 138), false},
		{"TCP to all", packet(broadcast, "10.77.0.1", 6, 67), false},
		{"mDNS", packet(multicast, "224.0.0.251", 17, 5353), false},
		{"cut IPv4", packet(gatewayMAC, "192.0.2.1", 6, 80)[:30], false},
		{"IPv6", append(append(append([]byte{}, gatewayMAC...), guests[1].MAC...), 0x86, 0xdd, 0x60), false},
		{"RARP", append(append(append([]byte{}, broadcast...), guests[1].MAC...), 0x80, 0x35, 0, 1), false},
		{"nothing", nil, false},
	} {
		assert.Equal(t, c.want, g.wanted(c.frame), c.what)
	}
}

// FuzzFrames: nothing that a guest sends breaks the reader of frames, the
// filter, or DHCP.
func FuzzFrames(f *testing.F) {
	for _, frame := range [][]byte{arpFor("10.77.0.1"), packet(gatewayMAC, "10.77.0.1", 1, 0), packet(gatewayMAC, "192.0.2.1", 17, 53)} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	}
	f.Add([]byte{0, 0, 0, 13})
	f.Add([]byte{0, 1, 0x10, 1})
	g, err := New(testConfig())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			frame, err := readFrame(r)
			if err != nil {
				return
			}
			if len(frame) < 14 || len(frame) > maxFrame {
				t.Fatalf("frame of %d bytes", len(frame))
			}
			g.wanted(frame)
			g.offer(frame)
		}
	})
}

// TestBadConfigs: what no network can have is refused.
func TestBadConfigs(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"address elsewhere":   func(c *Config) { c.Addr = netip.MustParseAddr("10.78.0.1") },
		"one address for two": func(c *Config) { c.Host = c.Addr },
		"IPv6":                func(c *Config) { c.Network = netip.MustParsePrefix("fd00::/64") },
		"no MAC":              func(c *Config) { c.MAC = nil },
		"MTU":                 func(c *Config) { c.MTU = 70000 },
		"guest elsewhere": func(c *Config) {
			c.Guests = []Guest{{Name: "guest0", Addr: netip.MustParseAddr("10.78.0.1"), MAC: gatewayMAC}}
		},
	} {
		cfg := testConfig()
		change(&cfg)
		_, err := New(cfg)
		assert.Error(t, err, what)
	}
}
