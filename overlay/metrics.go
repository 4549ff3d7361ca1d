package overlay

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// PortStats is what a port has done since its network was opened. Frames and
// bytes with headers, In as seen from the switch.
type PortStats struct {
	Network                        NetworkID
	Guest                          int
	FramesIn, BytesIn              uint64
	FramesOut, BytesOut            uint64
	Runts, Spoofed, Unknown, Loops uint64 // refused frames from the guest
	Overflow, Detached             uint64 // dropped frames for the guest
	Reconnects                     uint64
	Queued, Held                   int // bytes
	Connected                      bool
}

// LinkStats is what the link to a peer has done since it was first needed.
type LinkStats struct {
	Peer           string
	Address        string // that is dialled: links are direct
	Up             bool   // there is a connection to the peer
	Accepted       bool   // and one from it
	Frames, Bytes  uint64
	Overflow, Down uint64 // frames dropped before they were on their way
	Lost           uint64 // frames of which nobody knows, when the link began anew
	Made, Resumed  uint64 // connections, and how many of them went on with a link
	Queued         int    // bytes that wait or are unacknowledged
}

// Stats is a look at the whole switch.
type Stats struct {
	Ports          []PortStats
	Links          []LinkStats
	UnknownNetwork uint64 // frames from peers for a network that is not open
	Misplaced      uint64 // frames from peers whose ends are not where they should be
	Duplicates     uint64 // messages that peers repeated and that were handled already
}

// Stats returns the switch's figures.
func (s *Switch) Stats() Stats {
	s.mu.Lock()
	networks := s.openNetworks()
	links := make([]*outLink, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	accepted := make(map[string]bool, len(s.inLinks))
	for node := range s.inLinks {
		accepted[node] = true
	}
	s.mu.Unlock()
	stats := Stats{UnknownNetwork: s.stats.unknownNetwork.Load(), Misplaced: s.stats.misplaced.Load(), Duplicates: s.stats.duplicates.Load()}
	for _, n := range networks {
		n.ports(func(p *Port) { stats.Ports = append(stats.Ports, p.Stats()) })
	}
	for _, l := range links {
		stats.Links = append(stats.Links, LinkStats{
			Peer: l.node, Address: l.target(), Up: l.missing(time.Now()) == 0, Accepted: accepted[l.node],
			Frames: l.stats.frames.Load(), Bytes: l.stats.bytes.Load(),
			Overflow: l.stats.overflow.Load(), Down: l.stats.down.Load(),
			Lost: l.stats.lost.Load(), Made: l.stats.made.Load(), Resumed: l.stats.resumed.Load(), Queued: l.length(),
		})
	}
	return stats
}

// Stats returns the port's figures.
func (p *Port) Stats() PortStats {
	p.mu.Lock()
	held, connected := p.held.bytes+p.preload.bytes, p.sock != nil
	p.mu.Unlock()
	return PortStats{
		Network: p.network.id, Guest: p.guest,
		FramesIn: p.stats.frames.Load(), BytesIn: p.stats.bytes.Load(),
		FramesOut: p.out.stats.frames.Load(), BytesOut: p.out.stats.bytes.Load(),
		Runts: p.stats.runts.Load(), Spoofed: p.stats.spoofed.Load(),
		Unknown: p.stats.unknown.Load(), Loops: p.stats.reflections.Load(),
		Overflow: p.out.stats.overflow.Load(), Detached: p.out.stats.detached.Load(),
		Reconnects: p.stats.reconnects.Load(),
		Queued:     p.out.length(), Held: held, Connected: connected,
	}
}

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("vft_overlay_"+name, help, labels, nil), kind}
}

func (m metric) send(to chan<- prometheus.Metric, value float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

// metrics are the descriptions of what Collect sends.
type metrics struct {
	portFrames, portBytes, portDrops, portQueue, portHeld, portUp, portReconnects     metric
	linkFrames, linkBytes, linkDrops, linkQueue, linkUp, linkMade, strays, duplicates metric
}

func newMetrics() *metrics {
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	return &metrics{
		portFrames:     newMetric(counter, "port_frames_total", "Frames, by direction as the switch sees it.", "job", "guest", "direction"),
		portBytes:      newMetric(counter, "port_bytes_total", "Bytes with framing, by direction as the switch sees it.", "job", "guest", "direction"),
		portDrops:      newMetric(counter, "port_dropped_frames_total", "Frames refused from the guest or not delivered to it.", "job", "guest", "reason"),
		portQueue:      newMetric(gauge, "port_queue_bytes", "Memory of frames that wait for the guest.", "job", "guest"),
		portHeld:       newMetric(gauge, "port_held_bytes", "Memory of frames held from the guest.", "job", "guest"),
		portUp:         newMetric(gauge, "port_connected", "1 if the guest's QEMU is connected.", "job", "guest"),
		portReconnects: newMetric(counter, "port_reconnects_total", "Connections to the guest's QEMU after the first.", "job", "guest"),
		linkFrames:     newMetric(counter, "link_frames_total", "Frames sent to the peer node.", "peer"),
		linkBytes:      newMetric(counter, "link_bytes_total", "Bytes sent to the peer node.", "peer"),
		linkDrops:      newMetric(counter, "link_dropped_frames_total", "Frames not sent to the peer node.", "peer", "reason"),
		linkQueue:      newMetric(gauge, "link_queue_bytes", "Bytes that wait for the link or are unacknowledged.", "peer"),
		linkUp:         newMetric(gauge, "link_up", "1 if the link to the peer node is up.", "peer"),
		linkMade:       newMetric(counter, "link_made_total", "Connections of the link to the peer node, by whether they resumed it.", "peer", "resumed"),
		strays:         newMetric(counter, "stray_frames_total", "Frames from peer nodes that no open network wanted.", "reason"),
		duplicates:     newMetric(counter, "link_duplicate_messages_total", "Messages that peer nodes repeated after a break and that had been handled."),
	}
}

func (m *metrics) all() []metric {
	return []metric{
		m.portFrames, m.portBytes, m.portDrops, m.portQueue, m.portHeld, m.portUp, m.portReconnects,
		m.linkFrames, m.linkBytes, m.linkDrops, m.linkQueue, m.linkUp, m.linkMade, m.strays, m.duplicates,
	}
}

// Describe implements prometheus.Collector.
func (s *Switch) Describe(to chan<- *prometheus.Desc) {
	for _, m := range s.metrics.all() {
		to <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (s *Switch) Collect(to chan<- prometheus.Metric) {
	m, stats := s.metrics, s.Stats()
	for _, p := range stats.Ports {
		job, guest := p.Network.Job, strconv.Itoa(p.Guest)
		m.portFrames.send(to, float64(p.FramesIn), job, guest, "in")
		m.portFrames.send(to, float64(p.FramesOut), job, guest, "out")
		m.portBytes.send(to, float64(p.BytesIn), job, guest, "in")
		m.portBytes.send(to, float64(p.BytesOut), job, guest, "out")
		for reason, n := range map[string]uint64{
			"runt": p.Runts, "spoofed": p.Spoofed, "unknown": p.Unknown, "reflected": p.Loops,
			"overflow": p.Overflow, "detached": p.Detached,
		} {
			m.portDrops.send(to, float64(n), job, guest, reason)
		}
		m.portQueue.send(to, float64(p.Queued), job, guest)
		m.portHeld.send(to, float64(p.Held), job, guest)
		m.portUp.send(to, number(p.Connected), job, guest)
		m.portReconnects.send(to, float64(p.Reconnects), job, guest)
	}
	for _, l := range stats.Links {
		m.linkFrames.send(to, float64(l.Frames), l.Peer)
		m.linkBytes.send(to, float64(l.Bytes), l.Peer)
		m.linkDrops.send(to, float64(l.Overflow), l.Peer, "overflow")
		m.linkDrops.send(to, float64(l.Down), l.Peer, "down")
		m.linkQueue.send(to, float64(l.Queued), l.Peer)
		m.linkUp.send(to, number(l.Up), l.Peer)
		m.linkDrops.send(to, float64(l.Lost), l.Peer, "lost")
		m.linkMade.send(to, float64(l.Made-l.Resumed), l.Peer, "false")
		m.linkMade.send(to, float64(l.Resumed), l.Peer, "true")
	}
	m.strays.send(to, float64(stats.UnknownNetwork), "unknown-network")
	m.strays.send(to, float64(stats.Misplaced), "misplaced")
	m.duplicates.send(to, float64(stats.Duplicates))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
