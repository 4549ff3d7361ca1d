package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestSplitTail(t *testing.T) {
	// A description within a device's state is no end.
	decoy := string(new(synth).u8(0).u8(6).u32(2).raw("{}").b)
	tail := synthTail("state" + decoy + "more")
	devices, desc, err := SplitTail([]byte(tail))
	if err != nil || string(desc) != synthJSON || !strings.HasSuffix(string(devices), "more\x7e\x00\x00\x00\x03") {
		t.Fatalf("%q, %q, %v", devices, desc, err)
	}
	for n := range len(tail) {
		if _, _, err := SplitTail([]byte(tail[:n])); err == nil && !strings.HasSuffix(tail[:n], decoy) {
			t.Fatalf("cut at %d", n)
		}
	}
}

func TestPostcopyMessages(t *testing.T) {
	blocks := []Block{{"pc.ram", 4 * PageSize}, {"pc.bios", PageSize}}
	head := new(synth).config().start(blocks).b
	p, err := NewPostcopy(head)
	if err != nil {
		t.Fatal(err)
	}
	devices, _, _ := SplitTail([]byte(synthTail("state")))
	pack := new(synth).u8(8).u16(4).u16(0).raw(string(devices)).u8(8).u16(5).u16(0).b
	want := new(synth).config().
		u8(8).u16(1).u16(0).
		u8(8).u16(3).u16(16).u64(4096).u64(4096)
	want.raw(string(new(synth).start(blocks).b)).
		u8(8).u16(6).u16(25).u8(0).str("pc.ram").u8(0).u64(0).u64(4096).
		u8(8).u16(7).u16(4).u32(uint32(len(pack))).raw(string(pack)).part()
	got, err := p.Begin([]byte(synthTail("state")))
	if err != nil || !bytes.Equal(got, want.b) {
		t.Errorf("begin: %v\n got %q\nwant %q", err, got, want.b)
	}
	if _, err := p.Begin([]byte("no tail")); err == nil {
		t.Error("begin with a damaged tail")
	}
	if _, err := p.Begin([]byte(synthTail(strings.Repeat("x", maxPackage)))); err == nil || !strings.Contains(err.Error(), "at most 16777216") {
		t.Errorf("begin with a long tail: %v", err)
	}
	got = p.AppendZero(p.AppendPage(nil, 1, 0, []byte(pageOf(7))), 0, 2*PageSize)
	if w := new(synth).page("pc.bios", 0, pageOf(7)).zero("pc.ram", 2*PageSize, 0).b; !bytes.Equal(got, w) {
		t.Errorf("pages: %d bytes, want %d", len(got), len(w))
	}
	if w := new(synth).close().end().close().u8(0).b; !bytes.Equal(p.End(), w) {
		t.Errorf("end: %q, want %q", p.End(), w)
	}
}

func request(kind uint16, offset uint64, length uint32, name string) *synth {
	body := new(synth).u64(offset).u32(length)
	if name != "" {
		body.str(name)
	}
	return new(synth).u16(kind).u16(uint16(len(body.b))).raw(string(body.b))
}

func TestRequests(t *testing.T) {
	p, err := NewPostcopy(new(synth).config().start([]Block{{"pc.ram", 4 * PageSize}, {"pc.bios", PageSize}}).b)
	if err != nil {
		t.Fatal(err)
	}
	raw := new(synth).u16(2).u16(4).u32(1).
		raw(string(request(3, 0, PageSize, "pc.bios").b)).raw(string(request(3, PageSize, 2*PageSize, "pc.ram").b)).
		raw(string(request(4, 0, PageSize, "").b)).u16(1).u16(4).u32(0)
	r := p.NewRequestReader(bytes.NewReader(raw.b))
	for i, want := range []Request{
		{Block: 1, Length: PageSize}, {Offset: PageSize, Length: 2 * PageSize}, {Length: PageSize}, {Shut: true},
	} {
		if q, err := r.Next(); err != nil || q != want {
			t.Errorf("request %d: %+v, %v, want %+v", i, q, err, want)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for name, c := range map[string]struct {
		s    *synth
		want string
	}{
		"unknown type":  {new(synth).u16(9).u16(0), "message 9 of 0 bytes"},
		"long":          {new(synth).u16(3).u16(9999), "message 3 of 9999 bytes"},
		"short":         {new(synth).u16(4).u16(12).u32(1), "unexpected EOF"},
		"no block":      {request(4, 0, PageSize, ""), "does not name a block"},
		"unknown block": {request(3, 0, PageSize, "vga"), `block "vga"`},
		"empty":         {request(3, 0, 0, "pc.ram"), "0x0 bytes at 0x0"},
		"odd":           {request(3, 1, PageSize, "pc.ram"), "0x1000 bytes at 0x1"},
		"odd length":    {request(3, 0, 1, "pc.ram"), "0x1 bytes"},
		"beyond":        {request(3, 3*PageSize, 2*PageSize, "pc.ram"), "0x2000 bytes at 0x3000"},
		"far beyond":    {request(3, 1<<63, PageSize, "pc.ram"), "0x1000 bytes at 0x8000000000000000"},
	} {
		if _, err := p.NewRequestReader(bytes.NewReader(c.s.b)).Next(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzRequests(f *testing.F) {
	f.Add(new(synth).u16(2).u16(4).u32(1).raw(string(request(3, 0, PageSize, "pc.ram").b)).raw(string(request(4, 0, PageSize, "").b)).b)
	p, err := NewPostcopy(new(synth).config().start([]Block{{"pc.ram", 4 * PageSize}}).b)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := p.NewRequestReader(bytes.NewReader(b))
		for {
			q, err := r.Next()
			if err != nil {
				return
			}
			if !q.Shut && (q.Block != 0 || q.Offset+q.Length > 4*PageSize || q.Length == 0) {
				t.Fatalf("%+v", q)
			}
		}
	})
}

func FuzzSplitTail(f *testing.F) {
	f.Add([]byte(synthTail("state")))
	f.Fuzz(func(t *testing.T, tail []byte) {
		devices, desc, err := SplitTail(tail)
		if err != nil {
			return
		}
		again := binary.BigEndian.AppendUint32(append(bytes.Clone(devices), 0, 6), uint32(len(desc)))
		if !bytes.Equal(append(again, desc...), tail) {
			t.Fatal("the parts are not the tail")
		}
	})
}
