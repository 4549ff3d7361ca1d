package stream

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// recorded are streams of real QEMUs, of a guest of 1 MiB; `go test -tags e2e
// -run TestRecordStreams ./vm` makes them.
func recorded(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded streams: %v", err)
	}
	out := map[string][]byte{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		out[strings.TrimSuffix(filepath.Base(name), ".gz")] = raw
	}
	return out
}

func TestRecordedStreams(t *testing.T) {
	for name, raw := range recorded(t) {
		t.Run(name, func(t *testing.T) {
			var r, again recorder
			if err := parse(raw, &r, Limits{}, 1<<20); err != nil {
				t.Fatal(err)
			}
			if len(r.blocks) != 6 || !slices.Contains(r.blocks, Block{"pc.ram", 1 << 20}) {
				t.Errorf("blocks %v", r.blocks)
			}
			pages := map[Block]map[uint64]bool{}
			for _, e := range r.events {
				b := r.blocks[e.block]
				if pages[b] == nil {
					pages[b] = map[uint64]bool{}
				}
				pages[b][e.offset] = true
			}
			for _, b := range r.blocks {
				if uint64(len(pages[b])) != b.Pages() {
					t.Errorf("%d pages of %v", len(pages[b]), b)
				}
			}
			_, desc, err := SplitTail([]byte(r.tail.String()))
			var d struct {
				Devices []struct{ Name string }
			}
			if err != nil || json.Unmarshal(desc, &d) != nil || len(d.Devices) < 10 {
				t.Errorf("%d devices, %v", len(d.Devices), err)
			}
			var buf bytes.Buffer
			w := NewWriter(&buf)
			if err := parse(raw, w, Limits{}, 1000); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := parse(buf.Bytes(), &again, Limits{}, 4096); err != nil {
				t.Fatal(err)
			}
			if again.head != r.head || again.tail.String() != r.tail.String() || !reflect.DeepEqual(again.events, r.events) {
				t.Error("what was written back differs")
			}
			for cut := 0; cut < len(raw); cut += 4999 {
				if err := parse(raw[:cut], &recorder{}, Limits{}, 1<<20); err == nil {
					t.Fatalf("cut at %d: no error", cut)
				}
			}
		})
	}
}

// short is a recorded stream with a few of its pages and a small tail, which
// makes thousands of tries per second possible.
func short(t testing.TB, raw []byte) []byte {
	t.Helper()
	var r recorder
	if err := parse(raw, &r, Limits{}, 1<<20); err != nil {
		t.Fatal(err)
	}
	s := &synth{b: []byte(r.head)}
	h, err := ParseHead([]byte(r.head), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	s.u8(2).u32(h.Section)
	last := -1
	for _, e := range r.events[:3] {
		name := r.blocks[e.block].Name
		if e.block == last {
			name = ""
		}
		last = e.block
		if e.kind == "page" {
			s.page(name, e.offset, e.data)
		} else {
			s.zero(name, e.offset, 0)
		}
	}
	s.u64(0x10).u8(0x7e).u32(h.Section)
	return s.raw(synthTail("")).b
}

// A parser gives the same result however the stream comes in pieces, and what
// it accepts can be written back.
func FuzzParser(f *testing.F) {
	for _, raw := range recorded(f) {
		f.Add(short(f, raw), uint16(100))
	}
	all := new(synth).config().start([]Block{{"a", 2 * PageSize}, {"b", PageSize}}).
		part().page("a", 0, pageOf(1)).zero("", PageSize, 0).close().
		part().zero("b", 0, 9).close().
		u8(8).u16(11).u16(0).
		end().page("b", 0, pageOf(2)).close().raw(synthTail("state"))
	f.Add(all.b, uint16(7))
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		limits := Limits{Head: 1 << 12, Tail: 1 << 20}
		var whole, pieces recorder
		err := parse(raw, &whole, limits, max(len(raw), 1))
		perr := parse(raw, &pieces, limits, int(size%5000)+1)
		if (err == nil) != (perr == nil) || err != nil && err.Error() != perr.Error() {
			t.Fatalf("whole: %v, in pieces of %d: %v", err, int(size%5000)+1, perr)
		}
		if whole.head != pieces.head || !reflect.DeepEqual(whole.events, pieces.events) {
			t.Fatal("whole and in pieces differ")
		}
		if err != nil {
			return
		}
		var buf bytes.Buffer
		w := NewWriter(&buf)
		if err := parse(raw, w, limits, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var again recorder
		if err := parse(buf.Bytes(), &again, Limits{}, 1<<20); err != nil || !reflect.DeepEqual(again.events, whole.events) {
			t.Fatalf("written back: %v", err)
		}
	})
}

func FuzzParseHead(f *testing.F) {
	for _, raw := range recorded(f) {
		f.Add(raw[:200])
	}
	f.Add(new(synth).config().start([]Block{{"a", PageSize}, {"b", 3 * PageSize}}).b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := ParseHead(raw, Limits{})
		if err == nil && (len(h.Raw) != len(raw) || len(h.Blocks) == 0) {
			t.Fatalf("%+v", h)
		}
	})
}
