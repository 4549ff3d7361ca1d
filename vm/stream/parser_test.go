package stream

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var errHandler = errors.New("handler failed")

// parse feeds raw in pieces of the given sizes, the last one repeated.
func parse(raw []byte, h Handler, limits Limits, sizes ...int) error {
	p := NewParser(h, limits)
	for len(raw) > 0 {
		n := min(sizes[0], len(raw))
		// A copy that is destroyed shows who keeps what is not theirs.
		piece := append([]byte(nil), raw[:n]...)
		_, err := p.Write(piece)
		clear(piece)
		if err != nil {
			if cerr := p.Close(); !errors.Is(cerr, err) {
				return errors.Join(errors.New("Close does not repeat the error"), cerr, err)
			}
			return err
		}
		raw = raw[n:]
		if len(sizes) > 1 {
			sizes = sizes[1:]
		}
	}
	return p.Close()
}

func checkSample(t *rapid.T, s sample, r *recorder) {
	if r.heads != 1 || r.head != string(s.head) || !reflect.DeepEqual(r.blocks, s.blocks) {
		t.Fatalf("head: %d times, %d bytes of %d, blocks %v want %v", r.heads, len(r.head), len(s.head), r.blocks, s.blocks)
	}
	if !reflect.DeepEqual(r.events, s.events) {
		t.Fatalf("pages: got %d, want %d", len(r.events), len(s.events))
	}
	if r.tail.String() != s.tail {
		t.Fatalf("tail: %d bytes, want %d", r.tail.Len(), len(s.tail))
	}
}

func TestParserSplitsStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := samples(t)
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, 9000)), 1, 20).Draw(t, "sizes")
		var r recorder
		if err := parse(s.raw, &r, Limits{}, sizes...); err != nil {
			t.Fatal(err)
		}
		checkSample(t, s, &r)
	})
}

func TestParserReportsTruncation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := samples(t)
		cut := rapid.IntRange(0, len(s.raw)-1).Draw(t, "cut")
		err := parse(s.raw[:cut], &recorder{}, Limits{}, rapid.IntRange(1, 9000).Draw(t, "size"))
		var f *FormatError
		if !errors.As(err, &f) || !f.Truncated || f.Offset != int64(cut) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	})
}

// What damage does to opaque parts and to pages cannot be seen here; damage
// elsewhere is an error. Nothing may panic.
func TestParserSurvivesDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := samples(t)
		for range rapid.IntRange(1, 4).Draw(t, "damages") {
			s.raw[rapid.IntRange(0, len(s.raw)-1).Draw(t, "at")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		}
		_ = parse(s.raw, &recorder{}, Limits{}, rapid.IntRange(1, 9000).Draw(t, "size"))
	})
}

func TestParserRefuses(t *testing.T) {
	ram := []Block{{"pc.ram", 4 * PageSize}, {"pc.bios", PageSize}}
	head := func() *synth { return new(synth).config().start(ram) }
	sub := func(name string, ver uint32, data string) *synth {
		return new(synth).config().u8(5).str(name).u32(ver).raw(data)
	}
	first := func(mutate func(s *synth)) *synth {
		s := new(synth).config().u8(1).u32(synthSection)
		mutate(s)
		return s
	}
	for name, c := range map[string]struct {
		s      *synth
		offset int64
		want   string
	}{
		"other file":        {new(synth).raw("\x7fELF\x02\x01\x01\x00"), 0, `expected the signature "QEVM"`},
		"old version":       {new(synth).raw("QEVM").u32(2), 4, "expected version 3"},
		"no configuration":  {new(synth).raw("QEVM").u32(3).u8(1), 8, "expected the configuration (07), found START section (01)"},
		"long machine type": {new(synth).raw("QEVM").u32(3).u8(7).u32(256), 9, "one of 256 bytes"},
		"big pages":         {sub("configuration/target-page-bits", 1, "\x00\x00\x00\x10"), 23, "found 2^16"},
		"capability":        {sub("configuration/capabilities", 1, "\x00\x00\x00\x01\x0fx-ignore-shared"), 23, `capability "x-ignore-shared"`},
		"new subsection":    {sub("configuration/new", 1, ""), 23, `unknown subsection "configuration/new"`},
		"subsection 2":      {sub("configuration/uuid", 2, ""), 23, "expected version 1 of subsection"},
		"device first":      {new(synth).config().u8(4), 23, "expected the START section of RAM, found FULL section (04)"},
		"other device":      {first(func(s *synth) { s.str("block").u32(0).u32(1) }), 24, `device "block"`},
		"ram version 5":     {first(func(s *synth) { s.str("ram").u32(0).u32(5) }), 36, "expected version 4 of the RAM section, found 5"},
		"no size":           {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(0x1008) }), 40, "expected the size of RAM"},
		"no memory":         {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(4) }), 40, "0 bytes of RAM"},
		"huge memory":       {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(1<<60 | 4) }), 40, "expected 1 to"},
		"block twice":       {new(synth).config().start([]Block{{"a", PageSize}, {"a", PageSize}}), 58, `expected a new RAM block, found "a"`},
		"odd block":         {new(synth).config().start([]Block{{"a", 5000}, {"b", 7288}}), 48, "expected whole pages"},
		"block too long":    {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(PageSize | 4).str("a").u64(2 * PageSize) }), 48, "at most 4096"},
		"data after blocks": {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(PageSize | 4).str("a").u64(PageSize).u64(0x200) }), 58, "record 0x200"},
		"head footer":       {first(func(s *synth) { s.str("ram").u32(0).u32(4).u64(PageSize | 4).str("a").u64(PageSize).u64(0x10).u8(4) }), 66, "expected a section footer (7e), found FULL section (04)"},
		"footer's section": {first(func(s *synth) {
			s.str("ram").u32(0).u32(4).u64(PageSize | 4).str("a").u64(PageSize).u64(0x10).u8(0x7e).u32(5)
		}), 66, "expected the footer of section 77, found that of 5"},
		"unknown section": {head().u8(0x55), 92, "byte 0x55, which is no known section"},
		"end of sections": {head().u8(0), 92, "found end of sections (00)"},
		"second start":    {head().u8(1), 92, "found START section (01)"},
		"other section":   {head().u8(2).u32(5), 92, "expected section 77, which is RAM, found 5"},
		"post-copy":       {head().u8(8).u16(4).u16(0), 92, "command 4"},
		"switchover data": {head().u8(8).u16(11).u16(1), 92, "command 11 with 1 bytes"},
		"xbzrle":          {head().part().u64(0x1000 | 0x40), 97, "flags 0x40"},
		"compressed":      {head().part().u64(0x1000 | 0x100), 97, "flags 0x100"},
		"multifd":         {head().part().u64(0x200), 97, "flags 0x200"},
		"both":            {head().part().u64(0x1000 | 0x8 | 0x2), 97, "flags 0xa"},
		"no block":        {head().part().page("", 0, pageOf(1)), 97, "does not name its block"},
		"unknown block":   {head().part().page("vga", 0, pageOf(1)), 97, `block "vga", which was not announced`},
		"beyond block":    {head().part().page("pc.bios", PageSize, pageOf(1)), 97, `page at 0x1000 of block "pc.bios", which has 0x1000 bytes`},
		"end with offset": {head().part().u64(0x1010), 97, "expected the end of a section, found record 0x1010"},
		"no footer":       {head().part().u64(0x10).u8(2).u32(synthSection), 105, "expected a section footer (7e), found PART section (02)"},
		"other footer":    {head().part().u64(0x10).u8(0x7e).u32(5), 105, "expected the footer of section 77, found that of 5"},
		"pages after end": {head().end().close().part(), 110, "expected the device state, found PART section (02)"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 7, 1 << 20} {
				err := parse(c.s.b, &recorder{}, Limits{}, size)
				var f *FormatError
				if !errors.As(err, &f) || f.Truncated || f.Offset != c.offset || !strings.Contains(f.Problem, c.want) {
					t.Errorf("pieces of %d: %v\nwant byte %d, %q", size, err, c.offset, c.want)
				}
			}
		})
	}
}

func TestParserKeepsLimits(t *testing.T) {
	blocks := []Block{{"a", PageSize}, {"b", PageSize}, {"c", PageSize}}
	s := new(synth).config().start(blocks).part().page("a", 0, pageOf(1)).close().raw(synthTail(strings.Repeat("x", 5000)))
	for name, c := range map[string]struct {
		limits Limits
		want   string
	}{
		"head":   {Limits{Head: 60}, "the head is longer than 60 bytes"},
		"tail":   {Limits{Tail: 4000}, "the device state is longer than 4000 bytes"},
		"blocks": {Limits{Blocks: 2}, "more than 2 RAM blocks"},
		"memory": {Limits{Memory: 2 * PageSize}, "expected 1 to 8192"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := parse(s.b, &recorder{}, c.limits, 512); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := parse(s.b, &recorder{}, Limits{}, 512); err != nil {
		t.Error(err)
	}
}

func TestParserReturnsHandlersErrors(t *testing.T) {
	s := new(synth).config().start([]Block{{"a", PageSize}}).part().page("a", 0, pageOf(1)).zero("", 0, 0).close().raw(synthTail(""))
	for _, call := range []string{"head", "page", "zero", "tail"} {
		for _, size := range []int{1, 1 << 20} {
			r := &recorder{fail: call}
			if err := parse(s.b, r, Limits{}, size); !errors.Is(err, errHandler) {
				t.Errorf("%s: %v", call, err)
			}
		}
	}
}

func BenchmarkParser(b *testing.B) {
	const pages = 4096
	blocks := []Block{{"pc.ram", pages * PageSize}}
	s := new(synth).config().start(blocks).part()
	for i := range uint64(pages) {
		s.page(map[bool]string{true: "pc.ram"}[i == 0], i*PageSize, pageOf(byte(i)))
	}
	s.close().raw(synthTail(""))
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(map[bool]string{true: "64KiB", false: "1MiB"}[size == 64<<10], func(b *testing.B) {
			b.SetBytes(int64(len(s.b)))
			for b.Loop() {
				c := &counter{}
				p := NewParser(c, Limits{})
				for raw := s.b; len(raw) > 0; {
					n, err := p.Write(raw[:min(size, len(raw))])
					if err != nil {
						b.Fatal(err)
					}
					raw = raw[n:]
				}
				if err := p.Close(); err != nil || c.pages != pages {
					b.Fatal(err, c.pages)
				}
			}
		})
	}
}

type counter struct{ pages int }

func (c *counter) Head([]byte, []Block) error     { return nil }
func (c *counter) Zero(int, uint64) error         { c.pages++; return nil }
func (c *counter) Tail([]byte) error              { return nil }
func (c *counter) Page(int, uint64, []byte) error { c.pages++; return nil }
