package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	nicID     = 1
	linkQueue = 512 // packets that wait for the switch; what is beyond is lost, as on any link

	framePrefix = 4     // be32 length, as QEMU's stream sockets have it
	maxFrame    = 69632 // as docs/NETWORK.md says
)

// build makes the TCP/IP stack.
func (g *Gateway) build(s *serving) error {
	s.link = channel.New(linkQueue, uint32(g.cfg.MTU)+header.EthernetMinimumSize, tcpip.LinkAddress(g.cfg.MAC))
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	fail := func(what string, err tcpip.Error) error {
		s.stack.Destroy()
		return fmt.Errorf("gateway: %s: %s", what, err)
	}
	sack := tcpip.TCPSACKEnabled(true)
	if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return fail("set up TCP", err)
	}
	if err := s.stack.CreateNIC(nicID, ethernet.New(s.link)); err != nil {
		return fail("set up the link", err)
	}
	own := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(g.cfg.Addr), PrefixLen: g.cfg.Network.Bits()},
	}
	if err := s.stack.AddProtocolAddress(nicID, own, stack.AddressProperties{}); err != nil {
		return fail("set its address", err)
	}
	// It answers for the whole world; wanted keeps from it what it has no
	// business with.
	if err := s.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fail("take packets for others", err)
	}
	if err := s.stack.SetSpoofing(nicID, true); err != nil {
		return fail("answer for others", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: own.AddressWithPrefix.Subnet(), NIC: nicID}})
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, g.forwardTCP(s))
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, g.forwardUDP(s))
	return nil
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func fromAddress(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(a.Addr()), Port: a.Port()}
}

// accept carries frames for whoever connected last, until ctx ends.
func (g *Gateway) accept(ctx context.Context, s *serving, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	hangUp := func() {}
	defer func() { hangUp() }()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("gateway: wait for the switch: %w", err)
		}
		hangUp() // a switch connects again when it has given the former connection up
		cctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		if !s.start(func(context.Context) {
			defer close(done)
			g.carry(cctx, s, conn)
		}) {
			cancel()
			return conn.Close()
		}
		hangUp = func() {
			cancel()
			<-done
		}
	}
}

// carry moves frames until the connection breaks or ctx ends.
func (g *Gateway) carry(ctx context.Context, s *serving, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s.link.Drain() // what waits was for the connection before
	var both sync.WaitGroup
	both.Go(func() {
		defer cancel()
		if err := g.take(s, conn); ctx.Err() == nil && !errors.Is(err, io.EOF) {
			g.log.Warn("the gateway's connection to the switch broke", "err", err)
		}
	})
	both.Go(func() {
		defer cancel()
		give(ctx, s, conn)
	})
	both.Wait()
}

// take hands the stack what comes from the switch.
func (g *Gateway) take(s *serving, conn io.Reader) error {
	r := bufio.NewReaderSize(conn, 256<<10)
	for {
		frame, err := readFrame(r)
		if err != nil {
			return err
		}
		if !g.wanted(frame) {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		s.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

// give hands the switch what the stack has to say.
func give(ctx context.Context, s *serving, conn net.Conn) {
	for {
		pkt := s.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		var prefix [framePrefix]byte
		binary.BigEndian.PutUint32(prefix[:], uint32(pkt.Size()))
		out := append(net.Buffers{prefix[:]}, pkt.AsSlices()...)
		_, err := out.WriteTo(conn)
		pkt.DecRef()
		if err != nil {
			return
		}
	}
}

// readFrame reads one frame into memory of its own.
func readFrame(r io.Reader) ([]byte, error) {
	var prefix [framePrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(prefix[:])
	if length < header.EthernetMinimumSize || length > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes", length)
	}
	frame := make([]byte, length)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return frame, nil
}

// wanted says whether a frame is the gateway's business. The stack answers for
// every address there is; it must not do so for the guests', whose ARP it
// hears, nor claim by echo that hosts of the world are there.
func (g *Gateway) wanted(frame []byte) bool {
	if len(frame) < header.EthernetMinimumSize {
		return false
	}
	eth := header.Ethernet(frame)
	rest := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		a := header.ARP(rest)
		if len(rest) < header.ARPSize || !a.IsValid() {
			return false
		}
		target := netip.AddrFrom4([4]byte(a.ProtocolAddressTarget()))
		return target == g.cfg.Addr || target == g.cfg.Host
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(rest)
		if len(rest) < header.IPv4MinimumSize || !ip.IsValid(len(rest)) {
			return false
		}
		to := fromAddress(ip.DestinationAddress())
		if header.IsMulticastEthernetAddress(eth.DestinationAddress()) || eth.DestinationAddress() == header.EthernetBroadcastAddress {
			payload := ip.Payload()
			return ip.TransportProtocol() == header.UDPProtocolNumber && len(payload) >= header.UDPMinimumSize &&
				ip.FragmentOffset() == 0 && header.UDP(payload).DestinationPort() == dhcpServerPort
		}
		return ip.TransportProtocol() != header.ICMPv4ProtocolNumber || to == g.cfg.Addr
	}
	return false
}
