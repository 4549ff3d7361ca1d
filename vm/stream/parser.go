package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Handler takes the parts of a stream in order: Head once, then pages, then
// Tail. Slices are valid only during the call. An error ends the parsing.
type Handler interface {
	// Head gets the head as it is and the blocks that it announces.
	Head(head []byte, blocks []Block) error
	// Page gets a page of PageSize bytes: block is an index into the blocks,
	// offset the page's place in it in bytes, a multiple of PageSize. A page
	// may come again and replaces the earlier one.
	Page(block int, offset uint64, data []byte) error
	// Zero says that a page is all zero.
	Zero(block int, offset uint64) error
	// Tail gets the tail in pieces.
	Tail(p []byte) error
}

// Parser takes a stream apart while it is written to it. The pieces may be of
// any size; a page that lies within one piece is handed on without a copy.
// What it keeps itself is bounded by the limit of the head.
type Parser struct {
	h      Handler
	limits Limits
	err    error

	state   parseState
	section byte  // type of the section that is being read
	pos     int64 // stream offset of what has been consumed

	// carry holds the beginning of an item that is not complete yet; it is of
	// need bytes at least.
	carry []byte
	need  int

	head  Head
	index map[string]int
	block int // of the last page, -1 before the first
	fill  []byte

	tail    int64
	trailer trailer
}

type parseState int

const (
	inHead     parseState = iota
	atSection             // between sections
	inRecords             // in a section of RAM
	afterPages            // behind the END section of RAM
	inTail
)

// NewParser returns a parser that calls h.
func NewParser(h Handler, limits Limits) *Parser {
	return &Parser{h: h, limits: limits.withDefaults(), block: -1, need: 1}
}

// Write takes the next piece of the stream. The error is a [*FormatError] when
// the stream is not as expected, or the handler's, as it is. After an error
// all calls return it.
func (p *Parser) Write(b []byte) (int, error) {
	n := len(b)
	for p.err == nil && len(b) > 0 {
		switch {
		case p.state == inTail:
			p.err = p.tailPiece(b)
			b = nil
		case len(p.carry) > 0 || p.state == inHead:
			k := min(p.need-len(p.carry), len(b))
			p.carry = append(p.carry, b[:k]...)
			b = b[k:]
			if len(p.carry) == p.need {
				p.complete()
			}
		default:
			used, err := p.consume(b)
			b = b[used:]
			p.err = err
			if err == nil && p.state != inTail {
				p.carry = append(p.carry, b...)
				b = nil
			}
		}
	}
	if p.err != nil {
		return n - len(b), p.err
	}
	return n, nil
}

// complete handles the item in carry, if all of it is there.
func (p *Parser) complete() {
	if p.state == inHead {
		p.err = p.parseHead()
		return
	}
	used, err := p.consume(p.carry)
	p.carry = append(p.carry[:0], p.carry[used:]...)
	p.err = err
}

// parseHead looks for the whole head in carry.
func (p *Parser) parseHead() error {
	h, err := parseHead(p.carry, p.limits)
	var short *shortError
	if errors.As(err, &short) {
		if int64(short.need) > p.limits.Head {
			return malformed(int64(len(p.carry)), "the head is longer than %d bytes", p.limits.Head)
		}
		p.need = short.need
		return nil
	}
	if err != nil {
		return err
	}
	p.head = h
	p.index = make(map[string]int, len(h.Blocks))
	for i, b := range h.Blocks {
		p.index[b.Name] = i
	}
	p.carry = make([]byte, 0, maxItem)
	p.pos = int64(len(h.Raw))
	p.state = atSection
	return p.h.Head(h.Raw, append([]Block(nil), h.Blocks...))
}

// maxItem is the length of the longest item behind the head: a page with the
// name of its block.
const maxItem = 8 + 1 + 255 + PageSize

// consume handles the complete items at the beginning of b and returns their
// length. When it leaves something, need is how much its item needs at least.
func (p *Parser) consume(b []byte) (used int, err error) {
	for used < len(b) && p.state != inTail {
		var n int
		if p.state == inRecords {
			n, err = p.records(b[used:])
		} else {
			n, err = p.sectionStart(b[used:])
		}
		used += n
		p.pos += int64(n)
		if err != nil || n == 0 {
			return used, err
		}
	}
	return used, nil
}

// sectionStart reads up to the first record of a section. It returns 0 when b
// is too short.
func (p *Parser) sectionStart(b []byte) (int, error) {
	switch t := b[0]; t {
	case secFull:
		p.state = inTail
		return 0, nil
	case secPart, secEnd:
		if p.state == afterPages {
			return 0, p.unexpected(b[0], "the device state")
		}
		if p.need = 5; len(b) < p.need {
			return 0, nil
		}
		if id := binary.BigEndian.Uint32(b[1:]); id != p.head.Section {
			return 0, malformed(p.pos, "expected section %d, which is RAM, found %d", p.head.Section, id)
		}
		p.section, p.state = t, inRecords
		return 5, nil
	case secCommand:
		return p.command(b)
	default:
		return 0, p.unexpected(t, "a section of RAM or the device state")
	}
}

// command accepts the one command that is no more than a remark: QEMU 10.0 and
// later say with it that the guest has stopped.
func (p *Parser) command(b []byte) (int, error) {
	if p.need = 5; len(b) < p.need {
		return 0, nil
	}
	cmd, n := binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:])
	if cmd != cmdSwitchoverStart || n != 0 {
		return 0, malformed(p.pos, "command %d with %d bytes, which is not expected in a snapshot", cmd, n)
	}
	return 5, nil
}

func (p *Parser) unexpected(t byte, want string) error {
	return malformed(p.pos, "expected %s, found %s", want, sectionName(t))
}

// records reads records of a RAM section until b or the section ends.
func (p *Parser) records(b []byte) (used int, err error) {
	begin := p.pos
	defer func() { p.pos = begin }() // consume adds what was used
	for {
		r := b[used:]
		if p.need = 8; len(r) < p.need {
			return used, nil
		}
		p.pos = begin + int64(used)
		w := binary.BigEndian.Uint64(r)
		flags := w & flagMask
		n, body := 8, 1
		switch flags &^ flagContinue {
		case flagPage:
			body = PageSize
		case flagZero:
		case flagEOS:
			k, err := p.endSection(w, r)
			return used + k, err
		default:
			return used, malformed(p.pos, "expected a page, found a record with flags %#x", flags)
		}
		block := p.block
		if flags&flagContinue == 0 {
			if n, block, err = p.named(r); n == 0 {
				return used, err
			}
		}
		if p.need = n + body; len(r) < p.need {
			return used, nil
		}
		if err := p.record(block, w&^flagMask, flags&flagZero != 0, r[n:p.need]); err != nil {
			return used, err
		}
		used += p.need
	}
}

// named reads the name of the block in a record and returns where the page
// follows, 0 when the record is too short.
func (p *Parser) named(r []byte) (n, block int, err error) {
	if p.need = 9; len(r) < p.need {
		return 0, 0, nil
	}
	if p.need += int(r[8]); len(r) < p.need {
		return 0, 0, nil
	}
	name := r[9:p.need]
	block, ok := p.index[string(name)]
	if !ok {
		return 0, 0, malformed(p.pos, "page of block %q, which was not announced", name)
	}
	return p.need, block, nil
}

// record hands one page on. body is the page, or the fill byte.
func (p *Parser) record(block int, offset uint64, zero bool, body []byte) error {
	if block < 0 {
		return malformed(p.pos, "the first page does not name its block")
	}
	if bl := p.head.Blocks[block]; offset >= bl.Length {
		return malformed(p.pos, "page at %#x of block %q, which has %#x bytes", offset, bl.Name, bl.Length)
	}
	p.block = block
	switch {
	case !zero:
		return p.h.Page(block, offset, body)
	case body[0] == 0:
		return p.h.Zero(block, offset)
	}
	if p.fill == nil {
		p.fill = make([]byte, PageSize)
	}
	for i := range p.fill {
		p.fill[i] = body[0]
	}
	return p.h.Page(block, offset, p.fill)
}

// endSection reads the end of a section and its footer, 13 bytes.
func (p *Parser) endSection(w uint64, b []byte) (int, error) {
	if w != flagEOS {
		return 0, malformed(p.pos, "expected the end of a section, found record %#x", w)
	}
	if p.need = 13; len(b) < p.need {
		return 0, nil
	}
	if b[8] != secFooter {
		return 0, malformed(p.pos+8, "expected a section footer (7e), found %s", sectionName(b[8]))
	}
	if id := binary.BigEndian.Uint32(b[9:]); id != p.head.Section {
		return 0, malformed(p.pos+8, "expected the footer of section %d, found that of %d", p.head.Section, id)
	}
	p.state = atSection
	if p.section == secEnd {
		p.state = afterPages
	}
	return 13, nil
}

func (p *Parser) tailPiece(b []byte) error {
	if p.tail += int64(len(b)); p.tail > p.limits.Tail {
		return malformed(p.pos, "the device state is longer than %d bytes", p.limits.Tail)
	}
	p.trailer.write(b)
	p.pos += int64(len(b))
	return p.h.Tail(b)
}

// Head is what the head said, once Handler.Head was called.
func (p *Parser) Head() Head { return p.head }

// Close says whether the stream was complete: nil, the error of an earlier
// Write, or a [*FormatError] that wraps io.ErrUnexpectedEOF.
func (p *Parser) Close() error {
	end := p.pos + int64(len(p.carry))
	if p.state == inHead {
		end = int64(len(p.carry))
	}
	truncated := func(format string, a ...any) error {
		return &FormatError{Offset: end, Problem: "the stream ends " + fmt.Sprintf(format, a...), Truncated: true}
	}
	switch {
	case p.err != nil:
		return p.err
	case p.state == inHead:
		return truncated("in the head")
	case p.state == inRecords:
		return truncated("among the pages of RAM")
	case p.state != inTail:
		return truncated("before the device state")
	case !p.trailer.complete():
		return truncated("in the device state")
	}
	return nil
}
