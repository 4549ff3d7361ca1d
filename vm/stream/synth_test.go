package stream

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"pgregory.net/rapid"
)

// synth builds streams byte by byte, independently of Writer.
type synth struct{ b []byte }

func (s *synth) u8(v byte) *synth    { s.b = append(s.b, v); return s }
func (s *synth) u16(v uint16) *synth { s.b = binary.BigEndian.AppendUint16(s.b, v); return s }
func (s *synth) u32(v uint32) *synth { s.b = binary.BigEndian.AppendUint32(s.b, v); return s }
func (s *synth) u64(v uint64) *synth { s.b = binary.BigEndian.AppendUint64(s.b, v); return s }
func (s *synth) raw(v string) *synth { s.b = append(s.b, v...); return s }
func (s *synth) str(v string) *synth { return s.u8(byte(len(v))).raw(v) }

const synthSection = 77

func (s *synth) config() *synth {
	return s.raw("QEVM").u32(3).u8(7).u32(10).raw("pc-q35-7.2")
}

func (s *synth) start(blocks []Block) *synth {
	var total uint64
	for _, b := range blocks {
		total += b.Length
	}
	s.u8(1).u32(synthSection).str("ram").u32(0).u32(4).u64(total | 4)
	for _, b := range blocks {
		s.str(b.Name).u64(b.Length)
	}
	return s.u64(0x10).footer()
}

func (s *synth) footer() *synth { return s.u8(0x7e).u32(synthSection) }

func (s *synth) part() *synth { return s.u8(2).u32(synthSection) }

func (s *synth) end() *synth { return s.u8(3).u32(synthSection) }

func (s *synth) close() *synth { return s.u64(0x10).footer() }

// page and zero name the block unless name is empty.
func (s *synth) page(name string, offset uint64, data string) *synth {
	return s.record(name, offset|8).raw(data)
}

func (s *synth) zero(name string, offset uint64, fill byte) *synth {
	return s.record(name, offset|2).u8(fill)
}

func (s *synth) record(name string, w uint64) *synth {
	if name == "" {
		return s.u64(w | 0x20)
	}
	return s.u64(w).str(name)
}

const synthJSON = `{"page_size": 4096, "devices": []}`

func synthTail(state string) string {
	s := new(synth).u8(4).u32(3).str("timer").u32(0).u32(2).raw(state).u8(0x7e).u32(3)
	return string(s.u8(0).u8(6).u32(uint32(len(synthJSON))).raw(synthJSON).b)
}

// event is a call of a Handler, in a form that can be compared.
type event struct {
	kind   string
	block  int
	offset uint64
	data   string
}

// recorder is a Handler that remembers.
type recorder struct {
	head   string
	blocks []Block
	events []event
	tail   strings.Builder
	fail   string // the call that fails
	heads  int
}

func (r *recorder) err(kind string) error {
	if r.fail == kind {
		return fmt.Errorf("%w: %s", errHandler, kind)
	}
	return nil
}

func (r *recorder) Head(head []byte, blocks []Block) error {
	r.heads++
	r.head, r.blocks = string(head), blocks
	return r.err("head")
}

func (r *recorder) Page(block int, offset uint64, data []byte) error {
	r.events = append(r.events, event{"page", block, offset, string(data)})
	return r.err("page")
}

func (r *recorder) Zero(block int, offset uint64) error {
	r.events = append(r.events, event{kind: "zero", block: block, offset: offset})
	return r.err("zero")
}

func (r *recorder) Tail(p []byte) error {
	r.tail.Write(p)
	return r.err("tail")
}

// sample is a stream and what a parser makes of it.
type sample struct {
	raw    []byte
	head   []byte
	blocks []Block
	events []event
	tail   string
}

func pageOf(c byte) string { return strings.Repeat(string([]byte{c, 'x'}), PageSize/2) }

// samples draws streams of all kinds that the engines make.
func samples(t *rapid.T) sample {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z/@.0-9]{1,20}`), 1, 4, rapid.ID[string]).Draw(t, "names")
	blocks := make([]Block, 0, len(names))
	for _, n := range names {
		blocks = append(blocks, Block{Name: n, Length: PageSize * rapid.Uint64Range(1, 9).Draw(t, "pages")})
	}
	s := new(synth).config().start(blocks)
	out := sample{head: slices.Clone(s.b), blocks: blocks}
	last := -1
	hasEnd := rapid.Bool().Draw(t, "end")
	sections := rapid.IntRange(0, 3).Draw(t, "sections")
	for i := range sections {
		if hasEnd && i == sections-1 {
			if rapid.Bool().Draw(t, "switchover") {
				s.u8(8).u16(11).u16(0)
			}
			s.end()
		} else {
			s.part()
		}
		for range rapid.IntRange(0, 6).Draw(t, "records") {
			b := rapid.IntRange(0, len(blocks)-1).Draw(t, "block")
			off := PageSize * rapid.Uint64Range(0, blocks[b].Pages()-1).Draw(t, "page")
			name := blocks[b].Name
			if b == last && rapid.Bool().Draw(t, "continue") {
				name = ""
			}
			last = b
			fill := rapid.Byte().Draw(t, "fill")
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				s.page(name, off, pageOf(fill))
				out.events = append(out.events, event{"page", b, off, pageOf(fill)})
			case 1:
				s.zero(name, off, 0)
				out.events = append(out.events, event{kind: "zero", block: b, offset: off})
			case 2:
				s.zero(name, off, fill|1)
				out.events = append(out.events, event{"page", b, off, strings.Repeat(string([]byte{fill | 1}), PageSize)})
			}
		}
		s.close()
	}
	out.tail = synthTail(string(rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "state")))
	out.raw = s.raw(out.tail).b
	return out
}
