package wrapper

import (
	"fmt"
	"net"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Resources is what a plan can use.
type Resources struct {
	Embedded bool // the nodes are this machine
	Hostname string
	Nodes    []Node // alive, at least one
}

// Node is a node as far as planning is concerned.
type Node struct {
	Name    string
	Address string // host:port
	CPUs    int
}

// Plan is a command laid out on guests.
type Plan struct {
	Guests        []GuestPlan
	Ranks         int // of all programs
	CPUs          int // per guest
	Oversubscribe bool
	Levels        []string // where checkpoints are kept, local first
	Commit        string   // at which of them one must be safe to count

	hosts [][]GuestPlan // of each context after the first that has its own
}

// GuestPlan is one guest.
type GuestPlan struct {
	Name  string
	Slots int
	Node  string // the user wants it there; empty: anywhere
}

// embeddedGuests is how many guests one machine is divided into by itself.
const embeddedGuests = 2

// GuestName is the host name of guest i.
func GuestName(i int) string { return fmt.Sprintf("guest%d", i) }

// Plan decides how many guests there are and how many ranks fit into each.
//
// Processors per guest: --vft-cpus, else those of the smallest node. Number of
// guests: --vft-nodes; else one per host that the user named; else as many as
// the ranks need with so many per node (-ppn, -npernode, ppr:N:node); else in
// a cluster one per node, at most one per rank, and on one machine as few as
// hold the ranks, at most two. Slots: of the host list; else the processors of
// a guest, over which the ranks are spread evenly.
func (c *Command) Plan(r Resources) (*Plan, error) {
	if len(r.Nodes) == 0 {
		return nil, failf(ExitUnavailable, "the cluster has no node that is alive; start its sidecars, or leave --vft-cluster out to run on this machine")
	}
	p := &Plan{Ranks: c.Ranks, CPUs: c.CPUs, Oversubscribe: c.Oversubscribe || r.Embedded}
	if p.CPUs == 0 {
		p.CPUs = r.Nodes[0].CPUs
		for _, n := range r.Nodes {
			p.CPUs = min(p.CPUs, n.CPUs)
		}
		p.CPUs = max(1, p.CPUs)
	}
	if err := c.planLevels(p, r); err != nil {
		return nil, err
	}
	var err error
	if c.Hosts != nil {
		p.hosts, err = c.planHosts(p, r)
	} else {
		err = c.planFree(p, r)
	}
	if err != nil {
		return nil, err
	}
	for i := range p.Guests {
		p.Guests[i].Name = GuestName(i)
	}
	return p, nil
}

// planFree lays out a command that names no hosts.
func (c *Command) planFree(p *Plan, r Resources) error {
	guests := c.Nodes
	switch {
	case guests > 0:
	case c.RanksPerGuest > 0 && p.Ranks > 0:
		guests = divide(p.Ranks, c.RanksPerGuest)
	case r.Embedded:
		guests = min(embeddedGuests, divide(max(1, p.Ranks), p.CPUs))
	case p.Ranks == 0:
		guests = len(r.Nodes)
	default:
		guests = min(p.Ranks, len(r.Nodes))
	}
	if !r.Embedded && guests > len(r.Nodes) && !c.Oversubscribe {
		return failf(ExitSlots, "the job needs %s and the cluster has %s; ask for fewer (--vft-nodes, -ppn) or add --oversubscribe", plural(guests, "guest"), plural(len(r.Nodes), "node"))
	}
	slots := p.CPUs
	if c.RanksPerGuest > slots && !c.Oversubscribe {
		return notEnough(c.RanksPerGuest, slots, "on each guest")
	}
	if c.RanksPerGuest > 0 {
		slots = c.RanksPerGuest
	}
	if p.Ranks == 0 {
		p.Ranks = guests * slots
	}
	if p.Ranks > guests*slots && (!c.Oversubscribe || c.RanksPerGuest > 0 && c.Flavour == vftv1.Flavour_FLAVOUR_OPENMPI) {
		return notEnough(p.Ranks, guests*slots, fmt.Sprintf("(%s of %d)", plural(guests, "guest"), slots))
	}
	for i := range guests {
		share := share(p.Ranks, guests, i)
		if c.RanksPerGuest > 0 {
			share = c.RanksPerGuest
		}
		p.Guests = append(p.Guests, GuestPlan{Slots: max(1, share)})
	}
	if c.NoLocal {
		p.Guests = append([]GuestPlan{{Slots: 1}}, p.Guests...)
	}
	return nil
}

// planHosts lays out a command that names hosts. The result is the host list
// of each context after the first that has its own.
func (c *Command) planHosts(p *Plan, r Resources) ([][]GuestPlan, error) {
	hosts, err := c.resolve(p, r, c.Hosts)
	if err != nil {
		return nil, err
	}
	total, most, bounded := 0, 0, true
	for _, h := range hosts {
		total += h.Slots
		most += h.MaxSlots
		bounded = bounded && h.MaxSlots > 0
		if c.RanksPerGuest > h.Slots && !c.Oversubscribe {
			return nil, notEnough(c.RanksPerGuest, h.Slots, "on host "+h.Name)
		}
	}
	if p.Ranks == 0 {
		p.Ranks = total
		if c.RanksPerGuest > 0 {
			p.Ranks = c.RanksPerGuest * len(hosts)
		}
	}
	if p.Ranks > total && !c.Oversubscribe {
		return nil, notEnough(p.Ranks, total, "on the hosts named")
	}
	if bounded && p.Ranks > most && c.Flavour == vftv1.Flavour_FLAVOUR_OPENMPI {
		return nil, notEnough(p.Ranks, most, "by max-slots in the host file")
	}
	// Ranks fill hosts in order or one each, so that no more hosts than ranks
	// are used.
	separate := false
	for _, x := range c.Contexts {
		separate = separate || x.Hosts != nil
	}
	if !c.NoLocal && !separate {
		hosts = hosts[:min(len(hosts), p.Ranks)]
	}
	guests := len(hosts)
	if c.Nodes > 0 {
		if c.Nodes < guests || separate && c.Nodes != guests {
			return nil, failf(ExitUsage, "--vft-nodes %d does not fit %s; there is one guest per host or more", c.Nodes, plural(guests, "host"))
		}
		guests = c.Nodes
	}
	first := map[string]int{}
	for i, h := range hosts {
		n := share(guests, len(hosts), i)
		first[h.Name] = len(p.Guests)
		for j := range n {
			g := GuestPlan{Slots: max(1, share(h.Slots, n, j))}
			if !r.Embedded {
				g.Node = h.Name
			}
			p.Guests = append(p.Guests, g)
		}
	}
	if !separate {
		return nil, nil
	}
	lists := make([][]GuestPlan, len(c.Contexts))
	for i, x := range c.Contexts {
		own, err := c.resolve(p, r, x.Hosts)
		if err != nil {
			return nil, err
		}
		for _, h := range own {
			lists[i] = append(lists[i], GuestPlan{Name: GuestName(first[h.Name]), Slots: h.Slots})
		}
	}
	return lists, nil
}

// resolve replaces host names by those of nodes, and fills in slots.
func (c *Command) resolve(p *Plan, r Resources, hosts []Host) ([]Host, error) {
	out := make([]Host, 0, len(hosts))
	for _, h := range hosts {
		n, err := r.node(h.Name)
		if err != nil {
			return nil, err
		}
		h.Name = n.Name
		if h.Slots == 0 {
			h.Slots = p.CPUs
			if c.CPUs == 0 {
				h.Slots = max(1, n.CPUs)
			}
		}
		out = append(out, h)
	}
	return mergeHosts(out), nil
}

// node finds the node that the user calls name.
func (r Resources) node(name string) (Node, error) {
	local := name == "localhost" || name == "127.0.0.1" || name == "::1" || sameHost(name, r.Hostname)
	if r.Embedded {
		if local {
			return r.Nodes[0], nil
		}
		return Node{}, failf(ExitHost, "host %s is not this machine (%s), and no cluster is configured; name a cluster with --vft-cluster FILE, or leave the host list out", name, r.Hostname)
	}
	known := make([]string, 0, len(r.Nodes))
	for _, n := range r.Nodes {
		at, _, _ := net.SplitHostPort(n.Address)
		if n.Name == name || sameHost(n.Name, name) || at == name && !local || local && sameHost(n.Name, r.Hostname) {
			return n, nil
		}
		known = append(known, n.Name)
	}
	return Node{}, failf(ExitHost, "host %s is not a live node of the cluster; it has %s", name, strings.Join(known, ", "))
}

// sameHost compares names, of which one may lack its domain.
func sameHost(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	if strings.EqualFold(a, b) {
		return true
	}
	shortA, domainA, _ := strings.Cut(a, ".")
	shortB, domainB, _ := strings.Cut(b, ".")
	return (domainA == "" || domainB == "") && strings.EqualFold(shortA, shortB) && net.ParseIP(a) == nil && net.ParseIP(b) == nil
}

func notEnough(want, have int, where string) error {
	return failf(ExitSlots, "there are not enough slots: %s asked for, %d available %s; ask for fewer ranks, name more hosts or slots, give guests more processors (--vft-cpus) or more guests (--vft-nodes), or add --oversubscribe",
		plural(want, "rank"), have, where)
}

// divide rounds up.
func divide(a, b int) int { return (a + b - 1) / b }

// share is part i of n nearly equal parts of total, larger ones first.
func share(total, n, i int) int {
	s := total / n
	if i < total%n {
		s++
	}
	return s
}
