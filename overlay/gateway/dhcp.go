package gateway

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	leaseTime      = 24 * time.Hour // addresses are the guests' for as long as the job lives
)

// lease serves DHCP: each guest has the address that belongs to its Ethernet
// address, so there is nothing to remember.
func (g *Gateway) lease(s *serving) error {
	var wq waiter.Queue
	ep, terr := s.stack.NewEndpoint(udp.ProtocolNumber, tcpipIPv4, &wq)
	if terr != nil {
		return fmt.Errorf("gateway: serve DHCP: %s", terr)
	}
	ep.SocketOptions().SetBroadcast(true)
	if terr := ep.Bind(tcpip.FullAddress{NIC: nicID, Port: dhcpServerPort}); terr != nil {
		ep.Close()
		return fmt.Errorf("gateway: serve DHCP: %s", terr)
	}
	conn := gonet.NewUDPConn(&wq, ep)
	s.start(func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		defer stop()
		defer conn.Close() //nolint:errcheck // nothing follows
		buf := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				if ctx.Err() == nil {
					g.log.Error("the DHCP server of a gateway ended", "err", err)
				}
				return
			}
			if answer := g.offer(buf[:n]); answer != nil {
				// To all: who asks has no address yet.
				_, _ = conn.WriteTo(answer, &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpClientPort})
			}
		}
	})
	return nil
}

// offer answers one message of a client, or returns nil.
func (g *Gateway) offer(message []byte) []byte {
	ask, err := dhcpv4.FromBytes(message)
	if err != nil || ask.OpCode != dhcpv4.OpcodeBootRequest || len(ask.ClientHWAddr) != 6 {
		return nil
	}
	guest, known := g.byMAC[[6]byte(ask.ClientHWAddr)]
	if !known {
		return nil
	}
	own := net.IP(g.cfg.Addr.AsSlice())
	if id := ask.ServerIdentifier(); id != nil && !id.Equal(own) {
		return nil // it has chosen another server
	}
	addr := net.IP(guest.Addr.AsSlice())
	kind, give := dhcpv4.MessageTypeAck, true
	switch ask.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		wish := ask.RequestedIPAddress()
		if wish == nil {
			wish = ask.ClientIPAddr
		}
		if !wish.Equal(addr) {
			kind, give = dhcpv4.MessageTypeNak, false
		}
	case dhcpv4.MessageTypeInform:
		give = false
	default:
		return nil
	}
	with := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(own), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(own))}
	if give {
		with = append(with, dhcpv4.WithYourIP(addr), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
	}
	if kind != dhcpv4.MessageTypeNak {
		with = append(with,
			dhcpv4.WithNetmask(net.CIDRMask(g.cfg.Network.Bits(), 32)), dhcpv4.WithDNS(own),
			dhcpv4.WithOption(dhcpv4.OptHostName(guest.Name)),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(g.cfg.MTU >> 8), byte(g.cfg.MTU)}))
		if p := g.allowed(); p.Out {
			with = append(with, dhcpv4.WithRouter(own))
		}
	}
	answer, err := dhcpv4.NewReplyFromRequest(ask, with...)
	if err != nil {
		return nil
	}
	return answer.ToBytes()
}
