package object

import (
	"errors"
	"testing"
)

// idsOf returns the ids of the objects of a kind, each n-th of them.
func idsOf(all []sample, kind Kind, nth int) (ids []ID) {
	for _, x := range all {
		if x.kind == kind {
			ids = append(ids, x.id)
		}
	}
	for i := range len(ids) / nth {
		ids[i] = ids[i*nth]
	}
	return ids[:len(ids)/nth]
}

// TestExtents carries objects from store to store: all of them, which go as
// they are stored, and few of them, which go in new extents.
func TestExtents(t *testing.T) {
	for _, nth := range []int{1, 20} {
		opt := smallPacks(newFS(t))
		opt.Memory = 0 // so much that the store is never pressed to write raw
		s := open(t, testDir, opt)
		all := samples(0, 500)
		mustPut(t, s, all)
		other := open(t, testDir, smallPacks(newFS(t)))
		b := other.NewBatch(t.Context())
		sent, compressed := 0, 0
		for _, kind := range []Kind{KindPage, KindNode, KindData} {
			want := map[ID]bool{}
			ids := append(idsOf(all, kind, nth), ID{})
			for _, id := range ids[:len(ids)-1] {
				want[id] = true
			}
			err := s.Extents(t.Context(), kind, append(ids, ids...), func(e Extent) error {
				for _, id := range e.IDs {
					delete(want, id)
				}
				sent += e.Length
				if e.Compressed {
					compressed++
				}
				return b.AddExtent(e)
			})
			if err != nil || len(want) > 0 {
				t.Fatalf("every %dth %v: %d not sent, %v", nth, kind, len(want), err)
			}
		}
		if err := b.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Close()
		if nth == 1 {
			mustCheck(t, other, all)
		}
		if nth == 20 && sent > 300<<10 {
			t.Errorf("%d bytes were sent for a few objects", sent)
		}
		if nth == 1 && compressed == 0 {
			t.Error("nothing went as it is stored")
		}
	}
}

func TestExtentsRefuse(t *testing.T) {
	m := newFS(t)
	s := open(t, testDir, smallPacks(m))
	all := pages(0, 100)
	mustPut(t, s, all)
	none := func(Extent) error { return nil }
	if err := s.Extents(t.Context(), KindPage, []ID{all[0].id, page(1000).id}, none); !errors.Is(err, ErrNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
	boom := errors.New("boom")
	if err := s.Extents(t.Context(), KindPage, idsOf(all, KindPage, 1), func(Extent) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error of the receiver: %v", err)
	}
	for _, path := range m.Files(testDir + "/" + packsName) {
		m.Edit(path, func(b []byte) []byte {
			b[headerSize+500] ^= 1
			return b
		})
	}
	if err := s.DropCaches(); err != nil {
		t.Fatal(err)
	}
	if err := s.Extents(t.Context(), KindPage, idsOf(all, KindPage, 1), none); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged pack: %v", err)
	}
	closeStore(t, s)
	if err := s.Extents(t.Context(), KindPage, nil, none); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed store: %v", err)
	}
}
