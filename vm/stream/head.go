package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Head is what the head of a stream says.
type Head struct {
	// Raw is the head itself: everything up to and including the section that
	// announces the RAM blocks.
	Raw []byte
	// Machine is QEMU's name of the machine type, such as "pc-q35-7.2".
	Machine string
	// Blocks in the order of the stream; pages refer to them by their index.
	Blocks []Block
	// Section, Instance and Version are the numbers of the RAM section.
	Section, Instance, Version uint32

	start int // where the RAM section begins in Raw
}

// ParseHead reads a head, which must be complete and have nothing behind it.
// Head.Raw is raw, not a copy.
func ParseHead(raw []byte, limits Limits) (Head, error) {
	h, err := parseHead(raw, limits.withDefaults())
	var short *shortError
	switch {
	case errors.As(err, &short):
		return Head{}, &FormatError{Offset: int64(len(raw)), Problem: "the head ends before " + short.before, Truncated: true}
	case err != nil:
		return Head{}, err
	case len(h.Raw) != len(raw):
		return Head{}, malformed(int64(len(h.Raw)), "%d bytes behind the head", len(raw)-len(h.Raw))
	}
	return h, nil
}

// parseHead reads a head from the beginning of b. The error is a *shortError
// when b ends before the head does.
func parseHead(b []byte, limits Limits) (Head, error) {
	c := &cursor{b: b}
	var h Head
	c.header(&h)
	h.start = c.off
	if t := c.u8("the RAM section"); c.err == nil && t != secStart {
		c.fail(h.start, "expected the START section of RAM, found %s", sectionName(t))
	}
	c.ramStart(&h, limits)
	if c.err != nil {
		return Head{}, c.err
	}
	h.Raw = b[:c.off]
	return h, nil
}

// header is the signature and the configuration section.
func (c *cursor) header(h *Head) {
	if v := c.u32("the signature"); c.err == nil && v != magic {
		c.fail(0, "expected the signature %q of a migration stream, found %08x", "QEVM", v)
	}
	if v := c.u32("the version"); c.err == nil && v != version {
		c.fail(4, "expected version %d of the migration stream, found %d", version, v)
	}
	if t := c.u8("the configuration"); c.err == nil && t != secConfig {
		c.fail(c.off-1, "expected the configuration (07), found %s", sectionName(t))
	}
	n := c.u32("the machine type")
	if c.err == nil && n > 255 {
		c.fail(c.off-4, "expected the name of a machine type, found one of %d bytes", n)
	}
	h.Machine = string(c.bytes(int(n), "the machine type"))
	for c.err == nil && c.peek("a section") == secSubsection {
		c.subsection()
	}
}

// subsection is one of the configuration's.
func (c *cursor) subsection() {
	at := c.off
	c.u8("a subsection")
	name := c.counted("the name of a subsection")
	ver := c.u32("the version of a subsection")
	if c.err != nil {
		return
	}
	if ver != 1 {
		c.fail(at, "expected version 1 of subsection %q, found %d", name, ver)
		return
	}
	switch name {
	case "configuration/target-page-bits":
		if bits := c.u32("the page size"); c.err == nil && bits != 12 {
			c.fail(at, "expected pages of %d bytes, found 2^%d", PageSize, bits)
		}
	case "configuration/uuid":
		c.bytes(16, "the UUID")
	case "configuration/capabilities":
		// These change the format of what follows.
		if n := c.u32("the capabilities"); c.err == nil && n != 0 {
			c.fail(at, "the stream was made with capability %q, which is not supported here", c.counted("a capability"))
		}
	default:
		c.fail(at, "unknown subsection %q of the configuration", name)
	}
}

// ramStart is the section that announces RAM, behind its first byte.
func (c *cursor) ramStart(h *Head, limits Limits) {
	at := c.off
	h.Section = c.u32("the RAM section's id")
	name := c.counted("a section's name")
	if c.err == nil && name != ramName {
		c.fail(at, "expected the section of RAM, found one of device %q, whose format is not known", name)
	}
	h.Instance = c.u32("the RAM section's instance")
	h.Version = c.u32("the RAM section's version")
	if c.err == nil && h.Version != ramVersion {
		c.fail(c.off-4, "expected version %d of the RAM section, found %d", ramVersion, h.Version)
	}
	c.blockList(h, limits)
	if w := c.u64("the end of the RAM blocks"); c.err == nil && w != flagEOS {
		c.fail(c.off-8, "expected the end of the RAM blocks, found record %#x", w)
	}
	c.footer(h.Section)
}

func (c *cursor) blockList(h *Head, limits Limits) {
	at := c.off
	w := c.u64("the size of RAM")
	if c.err == nil && w&flagMask != flagMemSize {
		c.fail(at, "expected the size of RAM, found flags %#x", w&flagMask)
	}
	total := w &^ flagMask
	if c.err == nil && (total == 0 || total > limits.Memory) {
		c.fail(at, "%d bytes of RAM, expected 1 to %d", total, limits.Memory)
	}
	seen := map[string]bool{}
	for left := total; left > 0 && c.err == nil; {
		at := c.off
		b := Block{Name: c.counted("a block's name"), Length: c.u64("a block's length")}
		switch {
		case c.err != nil:
		case len(h.Blocks) == limits.Blocks:
			c.fail(at, "more than %d RAM blocks", limits.Blocks)
		case b.Name == "" || seen[b.Name]:
			c.fail(at, "expected a new RAM block, found %q", b.Name)
		case b.Length == 0 || b.Length%PageSize != 0 || b.Length > left:
			c.fail(at, "block %q has %d bytes, expected whole pages and at most %d", b.Name, b.Length, left)
		default:
			seen[b.Name] = true
			h.Blocks = append(h.Blocks, b)
			left -= b.Length
		}
	}
}

// shortError says that more bytes are needed.
type shortError struct {
	need   int // total
	before string
}

// Error implements the error interface.
func (e *shortError) Error() string { return fmt.Sprintf("%d bytes needed for %s", e.need, e.before) }

// cursor reads from a slice. After the first error, which is kept, all reads
// return zero values.
type cursor struct {
	b   []byte
	off int
	err error
}

func (c *cursor) fail(offset int, format string, a ...any) {
	if c.err == nil {
		c.err = malformed(int64(offset), format, a...)
	}
}

// bytes returns the next n bytes, which what describes.
func (c *cursor) bytes(n int, what string) []byte {
	if c.err != nil {
		return nil
	}
	if len(c.b)-c.off < n {
		c.err = &shortError{need: c.off + n, before: what}
		return nil
	}
	p := c.b[c.off : c.off+n]
	c.off += n
	return p
}

func (c *cursor) peek(what string) byte {
	p := c.bytes(1, what)
	if p == nil {
		return 0
	}
	c.off--
	return p[0]
}

func (c *cursor) u8(what string) byte {
	if p := c.bytes(1, what); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u32(what string) uint32 {
	if p := c.bytes(4, what); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64(what string) uint64 {
	if p := c.bytes(8, what); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// counted is a string with its length in one byte before it.
func (c *cursor) counted(what string) string {
	return string(c.bytes(int(c.u8(what)), what))
}

func (c *cursor) footer(section uint32) {
	at := c.off
	if t := c.u8("a section's footer"); c.err == nil && t != secFooter {
		c.fail(at, "expected a section footer (7e), found %s", sectionName(t))
	}
	if id := c.u32("a section's footer"); c.err == nil && id != section {
		c.fail(at, "expected the footer of section %d, found that of %d", section, id)
	}
}
