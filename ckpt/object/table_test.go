package object

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// checkTable compares a table with what must be in it, and its order.
func checkTable(t interface{ Fatalf(string, ...any) }, tab *table, want map[ID][]where) {
	copies := 0
	for id, places := range want {
		copies += len(places)
		g := tab.segment(id)
		var got []where
		for _, s := range g.copies(id) {
			got = append(got, s.load())
		}
		slices.Sort(got)
		places = slices.Sorted(slices.Values(places))
		if !slices.Equal(got, places) {
			t.Fatalf("%v: %x, want %x", id, got, places)
		}
	}
	if n, _ := tab.size(); n != int64(copies) {
		t.Fatalf("%d copies, want %d", n, copies)
	}
	seen := 0
	tab.each(func(*slot) { seen++ })
	if seen != copies {
		t.Fatalf("%d copies seen, want %d", seen, copies)
	}
}

// TestTableModel compares the table with a map. Its ids lie close together, at
// the ends of a segment too, so that clusters are long.
func TestTableModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tab table
		want := map[ID][]where{}
		drawID := func() ID {
			var id ID
			base := rapid.SampledFrom([]uint64{0, 1 << 40, 1<<54 - 100, 1<<63 - 100, 1<<64 - 101}).Draw(t, "base")
			binary.BigEndian.PutUint64(id[:], base+rapid.Uint64Range(0, 100).Draw(t, "id"))
			id[15] = byte(rapid.IntRange(1, 3).Draw(t, "low"))
			return id
		}
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				id, w := drawID(), place(uint32(rapid.IntRange(1, 3).Draw(t, "pack")), 1, 2)
				if slices.Contains(want[id], w) {
					t.Skip("there")
				}
				tab.insert(id, w)
				want[id] = append(want[id], w)
			},
			"remove": func(t *rapid.T) {
				if len(want) == 0 {
					t.Skip("empty")
				}
				id := rapid.SampledFrom(slices.SortedFunc(maps.Keys(want), func(a, b ID) int { return slices.Compare(a[:], b[:]) })).Draw(t, "id")
				w := want[id][0]
				if !tab.remove(id, w) {
					t.Fatalf("%v is not there", id)
				}
				if want[id] = want[id][1:]; len(want[id]) == 0 {
					delete(want, id)
				}
			},
			"remove absent": func(t *rapid.T) {
				if tab.remove(drawID(), place(9, 1, 1)) {
					t.Fatalf("removed what is not there")
				}
			},
			"": func(t *rapid.T) { checkTable(t, &tab, want) },
		})
	})
}

func randomID(r *rand.Rand) (id ID) {
	binary.LittleEndian.PutUint64(id[:], r.Uint64())
	binary.LittleEndian.PutUint64(id[8:], r.Uint64())
	return id
}

func TestTableState(t *testing.T) {
	var tab table
	id := ID{1, 2, 3}
	if tab.touch(id, 1) || tab.mark(id) {
		t.Fatal("an absent object has a state")
	}
	a, b := place(1, 2, 3), place(1<<24-1, 1<<18-1, 255)
	tab.insert(id, a)
	tab.insert(id, b)
	if b.pack() != 1<<24-1 || b.extent() != 1<<18-1 || b.object() != 255 {
		t.Fatal("a place is not what was put in")
	}
	tab.setBad(id, a)
	if w, ok := tab.lookup(id); !ok || w.at() != b {
		t.Fatalf("the good copy is not found: %x", w)
	}
	if got := tab.others(id, b.pack()); len(got) != 0 {
		t.Fatalf("a bad copy counts: %x", got)
	}
	tab.setBad(id, b)
	if _, ok := tab.lookup(id); ok || tab.touch(id, 5) || tab.mark(id) {
		t.Fatal("two bad copies count as a good one")
	}
	// Marked, and touched in generation 5.
	if tab.removeUnless(id, a, 6) == 0 {
		t.Fatal("a marked copy was removed")
	}
	tab.each(func(s *slot) { s.update(func(w where) where { return w &^ markedBit }) })
	if tab.removeUnless(id, a, 5) == 0 || tab.removeUnless(id, a, 6) != 0 || tab.remove(id, a) {
		t.Fatal("protection by generation")
	}
}

func TestGeneration(t *testing.T) {
	g := generation(1)
	for range 600 {
		later := g
		for n := range generationCircle / 2 {
			if later.since(g) != n || later.before(g) || g.before(later) != (n > 0) {
				t.Fatalf("%d and, %d later, %d", g, n, later)
			}
			later = later.next()
		}
		if later == 0 || !generation(0).before(g) {
			t.Fatal("no generation is generation 0")
		}
		g = g.next()
	}
}

// TestTableMemory measures what docs/CKPT.md promises, while the table grows:
// it must hold at every size.
func TestTableMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	const most = 35.0
	r := rand.New(rand.NewPCG(1, 2))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tab := new(table)
	for n := 1; n <= 4_000_000; n++ {
		tab.insert(randomID(r), place(1+uint32(n>>14), n>>5&511, n&31))
		if n < 1_000_000 || n%500_000 != 0 {
			continue
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		perObject := float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
		// Extents take 20 bytes for 32 pages.
		if perObject += 20.0 / 32; perObject > most {
			t.Errorf("%d objects: %.1f bytes each, more than %.0f", n, perObject, most)
		}
		t.Logf("%d objects: %.1f bytes each", n, perObject)
	}
	runtime.KeepAlive(tab)
}

func BenchmarkTable(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	tab := new(table)
	ids := make([]ID, 1<<20)
	b.Run("insert", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			ids[i%len(ids)] = randomID(r)
			tab.insert(ids[i%len(ids)], place(1, 1, 1))
		}
	})
	b.Run("touch", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			tab.touch(ids[i%len(ids)], 1)
		}
	})
	b.Run("absent", func(b *testing.B) {
		for b.Loop() {
			tab.lookup(randomID(r))
		}
	})
}
