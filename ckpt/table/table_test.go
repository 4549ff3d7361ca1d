package table

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// nodes keeps nodes by their ids and counts what was new.
type nodes struct {
	m    map[object.ID][]byte
	made int
}

func (s *nodes) put(b []byte) (object.ID, error) {
	id := object.Sum(object.KindNode, b)
	if _, ok := s.m[id]; !ok {
		s.m[id] = slices.Clone(b)
		s.made++
	}
	return id, nil
}

func (s *nodes) get(_ context.Context, r Ref) ([]byte, error) {
	b, ok := s.m[r.ID]
	if !ok {
		return nil, fmt.Errorf("no node %v", r.ID)
	}
	return b, nil
}

// pageID stands for the id of a page with this content.
func pageID(content uint64) (id object.ID) {
	binary.LittleEndian.PutUint64(id[:], content)
	return id
}

// build makes a table of pages by number.
func (s *nodes) build(t testing.TB, pages uint64, content map[uint64]object.ID) Table {
	t.Helper()
	s.made = 0
	leaves := map[uint64][]object.ID{}
	for n, id := range content {
		if leaves[n/Fanout] == nil {
			leaves[n/Fanout] = make([]object.ID, Fanout)
		}
		leaves[n/Fanout][n%Fanout] = id
	}
	leaf := func(i uint64) object.ID {
		if leaves[i] == nil {
			return object.ID{}
		}
		id, _ := s.put(Append(nil, leaves[i]))
		return id
	}
	root, err := Build(pages, leaf, s.put)
	if err != nil {
		t.Fatal(err)
	}
	return Table{Pages: pages, Root: root}
}

func (s *nodes) pages(t testing.TB, tab Table) map[uint64]object.ID {
	t.Helper()
	got := map[uint64]object.ID{}
	last := uint64(0)
	err := tab.Walk(context.Background(), s.get, func(r Ref, n Node) error {
		for i := range n.Len() {
			if c := r.Child(n, i); r.Level == 1 && !c.ID.IsZero() {
				if c.First < last {
					return fmt.Errorf("page %d after %d", c.First, last)
				}
				last = c.First
				got[c.First] = c.ID
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestHeight(t *testing.T) {
	for pages, want := range map[uint64]int{
		0: 1, 1: 1, 512: 1, 513: 2, 512 * 512: 2, 512*512 + 1: 3, 16 << 20: 3, MaxPages: 4,
	} {
		if got := Height(pages); got != want {
			t.Errorf("%d pages: height %d, want %d", pages, got, want)
		}
	}
}

func TestTableIsWhatItWasBuiltFrom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pages := rapid.SampledFrom([]uint64{1, 7, 512, 513, 1024, 512*512 - 1, 512*512 + 600}).Draw(rt, "pages")
		content := map[uint64]object.ID{}
		for range rapid.IntRange(0, 40).Draw(rt, "written") {
			n := rapid.Uint64Range(0, pages-1).Draw(rt, "page")
			content[n] = pageID(rapid.Uint64Range(1, 5).Draw(rt, "content"))
		}
		s := nodes{m: map[object.ID][]byte{}}
		tab := s.build(t, pages, content)
		if got := s.pages(t, tab); !maps.Equal(got, content) {
			rt.Fatalf("%v, want %v", got, content)
		}
		n := rapid.Uint64Range(0, pages-1).Draw(rt, "asked")
		got, err := tab.Lookup(rt.Context(), s.get, n, 0)
		if want := (Ref{ID: content[n], First: n}); err != nil || got != want {
			rt.Fatalf("%+v, %v, want %+v", got, err, want)
		}
		for level := 1; level <= Height(pages); level++ {
			r, err := tab.Lookup(rt.Context(), s.get, n, level)
			if err != nil || r.Level != level || r.First > n || n-r.First >= span(level) {
				rt.Fatalf("level %d of page %d: %+v, %v", level, n, r, err)
			}
		}
		if len(content) == 0 && !tab.Root.IsZero() {
			rt.Fatal("an empty table has a root")
		}

		// Another page costs one node per level, and the same content none.
		if s.build(t, pages, content); s.made != 0 {
			rt.Fatalf("%d new nodes for the same content", s.made)
		}
		content[n] = pageID(1 << 40)
		if s.build(t, pages, content); s.made != Height(pages) {
			rt.Fatalf("%d new nodes for one page, height %d", s.made, Height(pages))
		}
	})
}

func TestWalkLeavesOut(t *testing.T) {
	s := nodes{m: map[object.ID][]byte{}}
	tab := s.build(t, 512*512*2, map[uint64]object.ID{0: pageID(1), 512: pageID(2), 512 * 512: pageID(3)})
	var got []Ref
	skipFirst := func(ctx context.Context, r Ref) ([]byte, error) {
		if r.Level == 2 && r.First == 0 {
			return nil, nil
		}
		return s.get(ctx, r)
	}
	err := tab.Walk(t.Context(), skipFirst, func(r Ref, _ Node) error {
		got = append(got, Ref{Level: r.Level, First: r.First})
		return nil
	})
	if want := []Ref{{Level: 3}, {Level: 2, First: 512 * 512}, {Level: 1, First: 512 * 512}}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("%+v, %v, want %+v", got, err, want)
	}
	boom := errors.New("boom")
	if err := tab.Walk(t.Context(), s.get, func(Ref, Node) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := tab.Walk(t.Context(), func(context.Context, Ref) ([]byte, error) { return nil, boom }, nil); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	for page, level := range map[uint64]int{1 << 30: 0, 0: 4, 1: -1} {
		if _, err := tab.Lookup(t.Context(), s.get, page, level); !errors.Is(err, ErrBad) {
			t.Fatal(err)
		}
	}
}

func TestBuildStops(t *testing.T) {
	boom := errors.New("boom")
	_, err := Build(2000, func(uint64) object.ID { return pageID(1) }, func([]byte) (object.ID, error) { return object.ID{}, boom })
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if root, err := Build(0, nil, nil); err != nil || !root.IsZero() {
		t.Fatal(root, err)
	}
}

func TestParseRefuses(t *testing.T) {
	one := pageID(1)
	full := Append(nil, slices.Repeat([]object.ID{one}, Fanout))
	for what, tc := range map[string]struct {
		pages uint64
		r     Ref
		b     []byte
		good  bool
	}{
		"a leaf":           {600, Ref{Level: 1}, full, true},
		"the last leaf":    {600, Ref{Level: 1, First: 512}, full[:88*idSize], true},
		"past the end":     {600, Ref{Level: 1, First: 512}, full[:89*idSize], false},
		"inner past end":   {600, Ref{Level: 2}, full[:3*idSize], false},
		"inner":            {600, Ref{Level: 2}, full[:2*idSize], true},
		"empty":            {600, Ref{Level: 1}, nil, false},
		"odd":              {600, Ref{Level: 1}, full[:17], false},
		"too long":         {1 << 30, Ref{Level: 1}, append(full, one[:]...), false},
		"ends in zero":     {600, Ref{Level: 1}, make([]byte, 16), false},
		"a page":           {600, Ref{Level: 0}, full, false},
		"beyond the block": {600, Ref{Level: 1, First: 1024}, full, false},
	} {
		if _, err := (Table{Pages: tc.pages}).Parse(tc.r, tc.b); (err == nil) != tc.good || err != nil && !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzNode(f *testing.F) {
	f.Add(uint64(600), uint64(0), 2, Append(nil, []object.ID{pageID(1), {}, pageID(2)}))
	f.Add(uint64(1<<36), uint64(1<<35), 3, []byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, pages, first uint64, level int, b []byte) {
		if pages > MaxPages || level < 1 || level > Height(pages) {
			return
		}
		tab, r := Table{Pages: pages}, Ref{Level: level, First: first}
		n, err := tab.Parse(r, b)
		if err != nil {
			return
		}
		var ids []object.ID
		for i := range n.Len() {
			c := r.Child(n, i)
			if c.First < first || c.First >= pages {
				t.Fatalf("child %d of page %d is at page %d of %d", i, first, c.First, pages)
			}
			ids = append(ids, c.ID)
		}
		if again := Append(nil, ids); !slices.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
