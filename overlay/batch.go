package overlay

// batch sorts what one read brought by destination, so that each destination
// is called once. The runs alias the read buffer until flush.
type batch struct {
	ports  []portRuns
	links  []linkRuns
	nports int
	nlinks int
}

type portRuns struct {
	port *Port
	runs []run
}

type linkRuns struct {
	link   *outLink
	handle uint32
	runs   []run
}

func (b *batch) toPort(p *Port, r run) {
	for i := range b.ports[:b.nports] {
		if e := &b.ports[i]; e.port == p {
			e.runs = append(e.runs, r)
			return
		}
	}
	if b.nports == len(b.ports) {
		b.ports = append(b.ports, portRuns{})
	}
	e := &b.ports[b.nports]
	e.port, e.runs = p, append(e.runs[:0], r)
	b.nports++
}

func (b *batch) toLink(l *outLink, handle uint32, r run) {
	for i := range b.links[:b.nlinks] {
		if e := &b.links[i]; e.link == l && e.handle == handle {
			e.runs = append(e.runs, r)
			return
		}
	}
	if b.nlinks == len(b.links) {
		b.links = append(b.links, linkRuns{})
	}
	e := &b.links[b.nlinks]
	e.link, e.handle, e.runs = l, handle, append(e.runs[:0], r)
	b.nlinks++
}

// flush hands everything over and empties the batch.
func (b *batch) flush(force bool) {
	for i := range b.ports[:b.nports] {
		e := &b.ports[i]
		e.port.out.send(e.runs, force)
		clear(e.runs)
		e.port = nil
	}
	for i := range b.links[:b.nlinks] {
		e := &b.links[i]
		e.link.send(e.handle, e.runs, force)
		clear(e.runs)
		e.link = nil
	}
	b.nports, b.nlinks = 0, 0
}
