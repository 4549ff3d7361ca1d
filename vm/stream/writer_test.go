package stream

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What is written comes out again, and what a parser reads from a stream can
// be written back by connecting the two.
func TestWriterRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := samples(t)
		var buf bytes.Buffer
		w := NewWriter(&buf)
		if err := parse(s.raw, w, Limits{}, rapid.IntRange(1, 9000).Draw(t, "size")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var r recorder
		if err := parse(buf.Bytes(), &r, Limits{}, 1<<20); err != nil {
			t.Fatal(err)
		}
		checkSample(t, s, &r)
	})
}

func TestWriterRefuses(t *testing.T) {
	blocks := []Block{{"a", 2 * PageSize}}
	head := new(synth).config().start(blocks).b
	page := make([]byte, PageSize)
	for name, c := range map[string]struct {
		calls func(w *Writer) error
		want  string
	}{
		"page first":    {func(w *Writer) error { return w.Page(0, 0, page) }, "no page"},
		"tail first":    {func(w *Writer) error { return w.Tail(nil) }, "wrong order"},
		"empty":         {func(*Writer) error { return nil }, "wrong order"},
		"second head":   {func(w *Writer) error { _ = w.Head(head, blocks); return w.Head(head, blocks) }, "wrong order"},
		"no tail":       {func(w *Writer) error { return w.Head(head, blocks) }, "wrong order"},
		"other blocks":  {func(w *Writer) error { return w.Head(head, []Block{{"a", PageSize}}) }, "RAM blocks"},
		"short head":    {func(w *Writer) error { return w.Head(head[:50], blocks) }, "the head ends before"},
		"long head":     {func(w *Writer) error { return w.Head(append(bytes.Clone(head), 2), blocks) }, "1 bytes behind the head"},
		"no such block": {func(w *Writer) error { _ = w.Head(head, blocks); return w.Zero(1, 0) }, "no page"},
		"negative":      {func(w *Writer) error { _ = w.Head(head, blocks); return w.Zero(-1, 0) }, "no page"},
		"no such page":  {func(w *Writer) error { _ = w.Head(head, blocks); return w.Zero(0, 2*PageSize) }, "no page"},
		"odd offset":    {func(w *Writer) error { _ = w.Head(head, blocks); return w.Zero(0, 1) }, "no page"},
		"half a page":   {func(w *Writer) error { _ = w.Head(head, blocks); return w.Page(0, 0, page[:100]) }, "page of 100 bytes"},
		"page after tail": {func(w *Writer) error {
			_ = w.Head(head, blocks)
			_ = w.Tail([]byte(synthTail("")))
			return w.Page(0, 0, page)
		}, "wrong order"},
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWriter(&bytes.Buffer{})
			err := c.calls(w)
			cerr := w.Close()
			if err == nil {
				err = cerr
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if !errors.Is(cerr, err) {
				t.Errorf("close: %v after %v", cerr, err)
			}
		})
	}
}

func TestWriterReportsFailedWrites(t *testing.T) {
	blocks := []Block{{"a", 2 * PageSize}}
	w := NewWriter(failingWriter{})
	if err := w.Head(new(synth).config().start(blocks).b, blocks); err != nil {
		t.Fatal(err) // buffered
	}
	if err := w.Tail([]byte(synthTail(""))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, errHandler) {
		t.Errorf("close: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errHandler }

func TestParseHead(t *testing.T) {
	blocks := []Block{{"pc.ram", 4 * PageSize}, {"pc.bios", PageSize}}
	raw := new(synth).config().start(blocks).b
	h, err := ParseHead(raw, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if h.Machine != "pc-q35-7.2" || h.Section != synthSection || h.Version != 4 || !reflect.DeepEqual(h.Blocks, blocks) {
		t.Errorf("%+v", h)
	}
	for n := range raw {
		var f *FormatError
		if _, err := ParseHead(raw[:n], Limits{}); !errors.As(err, &f) || !f.Truncated {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}
