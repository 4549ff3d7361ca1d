package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	dnsPort       = 53
	domain        = "vft" // of the guests; never asked for outside
	nameTTL       = 60    // seconds
	answerTimeout = 2 * time.Second
	resolvConf    = "/etc/resolv.conf"
)

// names are those of one network.
type names struct {
	network netip.Prefix
	host    netip.Addr
	byName  map[string]netip.Addr
	byAddr  map[netip.Addr]string
}

func newNames(cfg Config) *names {
	n := &names{network: cfg.Network, host: cfg.Host, byName: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}}
	add := func(name string, addr netip.Addr) { n.byName[name], n.byAddr[addr] = addr, name }
	add("gateway", cfg.Addr)
	add("host", cfg.Host)
	for _, g := range cfg.Guests {
		add(g.Name, g.Addr)
	}
	return n
}

// question is what a message asks for, as far as the network knows.
type question struct {
	local bool       // it is the network's business, whether or not it has an answer
	addr  netip.Addr // of the name asked for, invalid: there is none
	name  string     // of the address asked for, empty: there is none
}

// look reads the name of a question, which ends with a dot.
func (n *names) look(q string, host bool) question {
	q = strings.TrimSuffix(strings.ToLower(q), ".")
	if r, ok := strings.CutSuffix(q, ".in-addr.arpa"); ok {
		addr, err := netip.ParseAddr(reversed(r))
		if err != nil || !n.network.Contains(addr) {
			return question{}
		}
		if addr == n.host && !host {
			return question{local: true}
		}
		return question{local: true, name: n.byAddr[addr]}
	}
	name, inDomain := strings.CutSuffix(q, "."+domain)
	if !inDomain && strings.Contains(q, ".") {
		return question{}
	}
	addr := n.byName[name]
	if addr == n.host && !host {
		addr = netip.Addr{}
	}
	return question{local: true, addr: addr}
}

// reversed turns d.c.b.a into a.b.c.d.
func reversed(s string) string {
	parts := strings.Split(s, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, ".")
}

// listen serves names and leases.
func (g *Gateway) listen(s *serving) error {
	at := full(netip.AddrPortFrom(g.cfg.Addr, dnsPort))
	packets, err := gonet.DialUDP(s.stack, &at, nil, tcpipIPv4)
	if err != nil {
		return fmt.Errorf("gateway: serve names: %w", err)
	}
	streams, err := gonet.ListenTCP(s.stack, at, tcpipIPv4)
	if err != nil {
		return fmt.Errorf("gateway: serve names: %w", errors.Join(err, packets.Close()))
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: g.handler(s.ctx)}, {Listener: streams, Handler: g.handler(s.ctx)}} {
		up := make(chan struct{})
		server.NotifyStartedFunc = func() { close(up) }
		ended := make(chan error, 1)
		s.start(func(context.Context) {
			ended <- server.ActivateAndServe()
		})
		s.start(func(ctx context.Context) {
			select {
			case err := <-ended:
				g.log.Error("the name server of a gateway ended", "err", err)
			case <-ctx.Done():
				select { // Shutdown before it has started does nothing
				case <-up:
					_ = server.ShutdownContext(ctx) // does not wait: ctx has ended
				case <-ended: //nolint:errcheck // it ends because it shall
				}
			}
		})
	}
	return g.lease(s)
}

func (g *Gateway) handler(ctx context.Context) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, ask *dns.Msg) {
		stream := w.LocalAddr().Network() == "tcp"
		answer := g.answer(ctx, ask, stream)
		if !stream {
			size := dns.MinMsgSize
			if opt := ask.IsEdns0(); opt != nil {
				size = max(size, int(opt.UDPSize()))
			}
			answer.Truncate(size)
		}
		_ = w.WriteMsg(answer) // who asked asks again
	})
}

// answer answers one message.
func (g *Gateway) answer(ctx context.Context, ask *dns.Msg, stream bool) *dns.Msg {
	m := new(dns.Msg)
	if ask.Opcode != dns.OpcodeQuery || len(ask.Question) != 1 || ask.Question[0].Qclass != dns.ClassINET {
		return m.SetRcode(ask, dns.RcodeNotImplemented)
	}
	m.SetReply(ask)
	m.RecursionAvailable = true
	p, asked := g.allowed(), ask.Question[0]
	q := g.names.look(asked.Name, p.Host)
	hdr := dns.RR_Header{Name: asked.Name, Rrtype: asked.Qtype, Class: dns.ClassINET, Ttl: nameTTL}
	switch {
	case q.addr.IsValid():
		m.Authoritative = true
		if asked.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IP(q.addr.AsSlice())}}
		}
	case q.name != "":
		m.Authoritative = true
		if asked.Qtype == dns.TypePTR {
			m.Answer = []dns.RR{&dns.PTR{Hdr: hdr, Ptr: q.name + "." + domain + "."}}
		}
	case q.local || !p.Out:
		return m.SetRcode(ask, dns.RcodeNameError)
	case asked.Qtype == dns.TypeAAAA: // there is no way there
	default:
		return g.forwardQuestion(ctx, ask, stream)
	}
	return m
}

// forwardQuestion asks the node's name servers, one after the other.
func (g *Gateway) forwardQuestion(ctx context.Context, ask *dns.Msg, stream bool) *dns.Msg {
	failed := new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure)
	if !take(g.asking) {
		return failed
	}
	defer func() { <-g.asking }()
	servers, err := g.cfg.Resolvers()
	if err != nil {
		return failed
	}
	client := &dns.Client{Net: "udp", Timeout: answerTimeout, UDPSize: dns.MaxMsgSize}
	if stream {
		client.Net = "tcp"
	}
	for _, server := range servers {
		if m, _, err := client.ExchangeContext(ctx, ask, server); err == nil {
			return m
		}
	}
	return failed
}

func nodeResolvers() ([]string, error) {
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil, err
	}
	var servers []string
	for _, s := range conf.Servers {
		servers = append(servers, net.JoinHostPort(s, conf.Port))
	}
	return servers, nil
}
