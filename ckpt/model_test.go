package ckpt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// storeModel runs random actions on a store and on a map that says what must be
// in it. Between actions the process or the machine may crash. Parts come from
// another store that has all that were ever made.
type storeModel struct {
	m       *faultfs.FS
	s       *Store
	home    *Store
	parts   map[PartID]known
	damaged bool // some packs
	latent  bool // what is damaged is known and passed over until the store is opened again
	writers map[PartID]*Writer
}

type known struct {
	sample   sample
	manifest string
}

func drawID(t *rapid.T) PartID {
	return PartID{
		Job:   rapid.SampledFrom([]string{"a", "b"}).Draw(t, "job"),
		Epoch: rapid.Uint64Range(1, 3).Draw(t, "epoch"),
		Guest: rapid.IntRange(0, 1).Draw(t, "guest"),
	}
}

// drawSample draws one of few contents for an id.
func drawSample(t *rapid.T) sample {
	id := drawID(t)
	p := newSample(rapid.Uint64Range(1, 2).Draw(t, "content"), id.Guest, rapid.SampledFrom([]int{0, 3, 20}).Draw(t, "pages"))
	p.id = id
	return p
}

func (sm *storeModel) commit(t *rapid.T) {
	p := drawSample(t)
	info, err := p.put(sm.s)
	old, there := sm.parts[p.id]
	switch {
	case errors.Is(err, ErrConflict):
		if !there {
			t.Fatalf("%v is not there: %v", p.id, err)
		}
		return
	case err != nil:
		t.Fatalf("store %v: %v", p.id, err)
	case there && old.manifest != info.Manifest:
		t.Fatalf("%v was replaced", p.id)
	}
	sm.parts[p.id] = known{p, info.Manifest}
	if _, _, err := sm.home.Fetch(context.Background(), p.id, info.Manifest, sm.s); err != nil && !errors.Is(err, ErrConflict) && !sm.damaged {
		t.Fatalf("copy %v: %v", p.id, err)
	}
}

func (sm *storeModel) create(t *rapid.T) {
	p := drawSample(t)
	if sm.writers[p.id] != nil {
		t.Skip("one is open")
	}
	w, err := sm.s.Create(context.Background(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	p.feed(w)
	sm.writers[p.id] = w
}

func (sm *storeModel) abort(t *rapid.T) {
	id := drawID(t)
	w := sm.writers[id]
	if w == nil {
		t.Skip("none is open")
	}
	w.Abort()
	delete(sm.writers, id)
}

// fetch brings back what is damaged or was deleted.
func (sm *storeModel) fetch(t *rapid.T) {
	id := drawID(t)
	info, err := sm.home.Stat(context.Background(), id)
	if err != nil {
		t.Skip("not at home")
	}
	_, _, err = sm.s.Verify(context.Background(), id, info.Manifest, sm.home)
	if errors.Is(err, ErrConflict) && sm.parts[id].manifest != info.Manifest {
		return
	}
	if err != nil {
		t.Fatalf("fetch %v: %v", id, err)
	}
	p := sm.parts[id]
	if p.manifest == "" {
		r, err := sm.s.Open(id, info.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		p.sample = sampleOf(t, r)
		r.Close()
	}
	sm.parts[id] = known{p.sample, info.Manifest}
	if err := p.sample.check(sm.s, info.Manifest); err != nil {
		t.Fatalf("fetched %v: %v", id, err)
	}
}

// sampleOf finds out which sample a part is of.
func sampleOf(t *rapid.T, r *Part) sample {
	for content := range uint64(2) {
		for _, pages := range []int{0, 3, 20} {
			p := newSample(content+1, r.manifest.Guest, pages)
			p.id = r.manifest.ID()
			if p.compare(r) == nil {
				return p
			}
		}
	}
	t.Fatalf("%v is not one of the samples", r.manifest.ID())
	return sample{}
}

func (sm *storeModel) remove(t *rapid.T) {
	id := drawID(t)
	if err := sm.s.Delete(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	sm.forget(t, func(other PartID) bool { return other == id })
}

func (sm *storeModel) removeJob(t *rapid.T) {
	job := drawID(t).Job
	if err := sm.s.DeleteJob(context.Background(), job); err != nil {
		t.Fatal(err)
	}
	sm.forget(t, func(other PartID) bool { return other.Job == job })
}

func (sm *storeModel) forget(t *rapid.T, match func(PartID) bool) {
	for id := range sm.parts {
		if match(id) {
			delete(sm.parts, id)
		}
	}
	for id, w := range sm.writers {
		if match(id) {
			if !errors.Is(w.Lost(), ErrDeleted) {
				t.Fatalf("writer of deleted %v: %v", id, w.Lost())
			}
			w.Abort()
			delete(sm.writers, id)
		}
	}
}

func (sm *storeModel) collect(t *rapid.T) {
	if _, err := sm.s.Collect(context.Background()); err != nil && !sm.damaged {
		t.Fatal(err)
	}
}

// damage inverts a bit of every pack.
func (sm *storeModel) damage(t *rapid.T) {
	if sm.damaged || rapid.IntRange(0, 3).Draw(t, "damage") > 0 {
		t.Skip("not now")
	}
	damagePacks(sm.m)
	sm.damaged, sm.latent = true, true
}

// repair verifies everything, also what no part needs now: a part that comes
// relies on what is there.
func (sm *storeModel) repair(t *rapid.T) {
	if _, err := sm.s.objects.Verify(context.Background(), func(*object.CorruptError) {}); err != nil {
		t.Fatal(err)
	}
	for id, p := range sm.parts {
		if _, _, err := sm.s.Verify(context.Background(), id, p.manifest, sm.home); err != nil {
			info, herr := sm.home.Stat(context.Background(), id)
			if herr == nil && info.Manifest == p.manifest {
				t.Fatalf("repair %v: %v", id, err)
			}
			if err := sm.s.Delete(context.Background(), id); err != nil {
				t.Fatal(err)
			}
			sm.forget(t, func(other PartID) bool { return other == id })
		}
	}
	sm.damaged = false
}

func (sm *storeModel) reopen(t *rapid.T) {
	how := rapid.SampledFrom([]string{"close", "all", "nothing", "some"}).Draw(t, "how")
	next := sm.m
	if left, crash := faultfs.Survivals()[how]; crash {
		next = sm.m.AfterCrash(left)
	}
	if err := sm.s.Close(); err != nil && how == "close" {
		t.Fatal(err)
	}
	for _, w := range sm.writers {
		w.Abort()
	}
	clear(sm.writers)
	s, err := open(next, testDir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	sm.m, sm.s = next, s
	sm.damaged = sm.latent
}

// check compares the store with the map.
func (sm *storeModel) check(t *rapid.T) {
	var want, got []string
	for id, p := range sm.parts {
		want = append(want, fmt.Sprint(id, p.manifest))
		if err := p.sample.check(sm.s, p.manifest); err != nil && (!sm.damaged || !errors.Is(err, ErrCorrupt)) {
			t.Fatalf("%v (damaged: %v): %v", id, sm.damaged, err)
		}
	}
	for _, job := range []string{"a", "b"} {
		infos, err := sm.s.List(context.Background(), job)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			got = append(got, fmt.Sprint(info.ID, info.Manifest))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("store has %q, want %q", got, want)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := faultfs.New()
		s, err := open(m, testDir, Options{})
		if err != nil {
			rt.Fatal(err)
		}
		home, err := open(faultfs.New(), testDir, Options{})
		if err != nil {
			rt.Fatal(err)
		}
		sm := &storeModel{m: m, s: s, home: home, parts: map[PartID]known{}, writers: map[PartID]*Writer{}}
		defer func() {
			_ = sm.s.Close()
			_ = home.Close()
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"": sm.check, "commit": sm.commit, "create": sm.create, "abort": sm.abort, "fetch": sm.fetch,
			"remove": sm.remove, "remove job": sm.removeJob, "collect": sm.collect, "damage": sm.damage,
			"repair": sm.repair, "reopen": sm.reopen,
		})
	})
}
