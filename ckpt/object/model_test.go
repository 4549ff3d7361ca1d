package object

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

// storeModel runs random actions on a store, and knows which objects must be in
// it. Between actions the process or the machine may crash.
type storeModel struct {
	m       *faultfs.FS
	s       *Store
	all     []sample
	must    map[ID]bool // synced, and live at every collection since
	batches []*modelBatch
}

type modelBatch struct {
	*Batch
	relied, synced map[ID]bool
}

func (sm *storeModel) draw(t *rapid.T) []sample {
	from := rapid.IntRange(0, len(sm.all)-1).Draw(t, "from")
	return sm.all[from : from+rapid.IntRange(1, min(40, len(sm.all)-from)).Draw(t, "count")]
}

func (sm *storeModel) put(t *rapid.T) {
	some := sm.draw(t)
	if err := put(sm.s, some); err != nil {
		t.Fatal(err)
	}
	for _, x := range some {
		sm.must[x.id] = true
	}
}

func (sm *storeModel) begin(t *rapid.T) {
	if len(sm.batches) == 3 {
		t.Skip("enough")
	}
	sm.batches = append(sm.batches, &modelBatch{sm.s.NewBatch(context.Background()), map[ID]bool{}, map[ID]bool{}})
}

func (sm *storeModel) drawBatch(t *rapid.T) (int, *modelBatch) {
	if len(sm.batches) == 0 {
		t.Skip("no batch")
	}
	i := rapid.IntRange(0, len(sm.batches)-1).Draw(t, "batch")
	return i, sm.batches[i]
}

func (sm *storeModel) add(t *rapid.T) {
	_, b := sm.drawBatch(t)
	keep := rapid.Bool().Draw(t, "keep")
	for _, x := range sm.draw(t) {
		switch kept := keep && b.Keep(x.id); {
		case keep && !kept && sm.must[x.id]:
			t.Fatalf("%v cannot be kept", x.id)
		case !kept:
			if err := b.Add(x.kind, x.id, x.data); err != nil {
				t.Fatal(err)
			}
		}
		b.relied[x.id] = true
		if sm.must[x.id] {
			b.synced[x.id] = true
		}
	}
}

func (sm *storeModel) sync(t *rapid.T) {
	_, b := sm.drawBatch(t)
	if err := b.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for id := range b.relied {
		b.synced[id], sm.must[id] = true, true
	}
}

func (sm *storeModel) end(t *rapid.T) {
	i, b := sm.drawBatch(t)
	b.Close()
	sm.batches = append(sm.batches[:i], sm.batches[i+1:]...)
}

func (sm *storeModel) collect(t *rapid.T) {
	live := sm.draw(t)
	must := map[ID]bool{}
	for _, x := range live {
		if sm.must[x.id] {
			must[x.id] = true
		}
	}
	for _, b := range sm.batches {
		for id := range b.synced {
			must[id] = true
		}
	}
	sm.must = must
	if _, err := sm.s.Collect(context.Background(), marks(live)); err != nil {
		t.Fatal(err)
	}
}

func (sm *storeModel) reopen(t *rapid.T) {
	next := sm.m
	switch rapid.SampledFrom([]string{"close", "crash"}).Draw(t, "how") {
	case "close":
		_ = sm.s.Close()
	case "crash":
		next = sm.m.AfterCrash(faultfs.Some(rapid.Uint64().Draw(t, "seed")))
		_ = sm.s.Close()
	}
	for _, b := range sm.batches {
		b.Close()
	}
	sm.batches = nil
	s, err := Open(testDir, smallPacks(next))
	if err != nil {
		t.Fatal(err)
	}
	sm.m, sm.s = next, s
	if err := noTemp(next); err != nil {
		t.Fatal(err)
	}
}

// check compares the store with what must be there. What may be there is whole.
func (sm *storeModel) check(t *rapid.T) {
	for _, x := range sm.all {
		err := checkOne(sm.s, x)
		if err != nil && (sm.must[x.id] || !errors.Is(err, ErrNotFound)) {
			t.Fatal(fmt.Errorf("%v: %w", x.id, err))
		}
	}
}

func TestModel(t *testing.T) {
	all := samples(0, 100)
	rapid.Check(t, func(rt *rapid.T) {
		sm := &storeModel{m: newFS(t), all: all, must: map[ID]bool{}}
		s, err := Open(testDir, smallPacks(sm.m))
		if err != nil {
			rt.Fatal(err)
		}
		sm.s = s
		defer func() {
			_ = sm.s.Close()
			for _, b := range sm.batches {
				b.Close()
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"put": sm.put, "begin": sm.begin, "add": sm.add, "sync": sm.sync, "end": sm.end,
			"collect": sm.collect, "reopen": sm.reopen, "": sm.check,
		})
	})
}
