package ckpt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
)

func TestFetchMovesWhatIsMissing(t *testing.T) {
	home, there := openMem(t, faultfs.New()), openMem(t, faultfs.New())
	src := &peer{Store: home}
	first := newSample(1, 0, 3000)
	one := first.mustPut(t, home)
	info, moved, err := there.Fetch(t.Context(), first.id, one.Manifest, src)
	if err != nil || info != one {
		t.Fatalf("%+v, %v, want %+v", info, err, one)
	}
	first.mustCheck(t, there, one.Manifest)
	if moved.Bytes < 2000*object.PageSize || moved.Objects < 3000 {
		t.Errorf("moved %+v", moved)
	}

	// Again: nothing is asked for.
	src.asked = 0
	if _, moved, err := there.Fetch(t.Context(), first.id, one.Manifest, src); err != nil || src.asked != 0 || moved.Bytes != 0 {
		t.Fatalf("again: %+v, %d asked, %v", moved, src.asked, err)
	}

	// One page changed: that page, its leaf, the root, the list of hot pages.
	next := first
	next.id.Epoch = 2
	next.pages = slices.Clone(first.pages)
	next.pages[1] = map[uint64][]byte{2: randomBytes(12345, object.PageSize)}
	two := next.mustPut(t, home)
	if _, moved, err = there.Fetch(t.Context(), next.id, two.Manifest, src); err != nil || moved.Objects > 4 {
		t.Fatalf("one changed page: %+v, %v", moved, err)
	}
	next.mustCheck(t, there, two.Manifest)
}

func TestFetchRepairs(t *testing.T) {
	for _, what := range []string{"packs", "manifest", "lost packs"} {
		home, m := openMem(t, faultfs.New()), faultfs.New()
		there := openMem(t, m)
		p := newSample(1, 0, 200)
		info := p.mustPut(t, home)
		p.mustPut(t, there)
		switch what {
		case "packs":
			damagePacks(m)
		case "manifest":
			m.Flip(there.partPath(p.id), 999)
		case "lost packs":
			_ = there.Close()
			for _, path := range packFiles(m) {
				if err := m.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			there = openMem(t, m)
		}
		if what != "manifest" { // without a source the damage is named
			if _, _, err := there.Verify(t.Context(), p.id, info.Manifest, nil); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		_, moved, err := there.Verify(t.Context(), p.id, info.Manifest, home)
		if err != nil || moved.Objects == 0 && what != "manifest" {
			t.Fatalf("%s: %+v, %v", what, moved, err)
		}
		p.mustCheck(t, there, info.Manifest)
		if _, _, err := there.Verify(t.Context(), p.id, info.Manifest, nil); err != nil {
			t.Fatalf("%s: after the repair: %v", what, err)
		}
	}
}

func TestFetchRefuses(t *testing.T) {
	home := openMem(t, faultfs.New())
	p, other := newSample(1, 0, 100), newSample(1, 1, 100)
	info, otherInfo := p.mustPut(t, home), other.mustPut(t, home)
	flip := func(e *object.Extent) { e.Stored[len(e.Stored)/2] ^= 1 }
	for name, tc := range map[string]struct {
		id       PartID
		manifest string
		src      *peer
		want     error
	}{
		"not there":     {p.id, otherInfo.Manifest, &peer{Store: home}, ErrMismatch},
		"bad extents":   {p.id, info.Manifest, &peer{Store: home, spoil: flip}, ErrTransfer},
		"another kind":  {p.id, info.Manifest, &peer{Store: home, spoil: func(e *object.Extent) { e.Kind = 7 - e.Kind }}, ErrTransfer},
		"less than all": {p.id, info.Manifest, &peer{Store: home, spoil: func(e *object.Extent) { e.IDs = nil }}, ErrTransfer},
		"gone":          {p.id, info.Manifest, &peer{Store: home, before: func() error { return errPeer }}, errPeer},
		"bad name":      {PartID{Job: "../x"}, info.Manifest, &peer{Store: home}, ErrName},
	} {
		m := faultfs.New()
		s := openMem(t, m)
		if _, _, err := s.Fetch(t.Context(), tc.id, tc.manifest, tc.src); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if jobs, err := s.Jobs(t.Context()); err != nil || len(jobs) != 0 {
			t.Errorf("%s: %v, %v", name, jobs, err)
		}
		noTemp(t, m)
	}
	s := openMem(t, faultfs.New())
	same := newSample(2, 0, 10)
	same.id = p.id
	same.mustPut(t, s)
	if _, _, err := s.Fetch(t.Context(), p.id, info.Manifest, home); !errors.Is(err, ErrConflict) {
		t.Errorf("conflict: %v", err)
	}
}

func TestFetchOntoAFullDisk(t *testing.T) {
	home, m := openMem(t, faultfs.New()), faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 300)
	info := p.mustPut(t, home)
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "write" {
			return syscall.ENOSPC
		}
		return nil
	})
	if _, _, err := s.Fetch(t.Context(), p.id, info.Manifest, home); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v", err)
	}
	m.Inject(nil)
	if _, _, err := s.Fetch(t.Context(), p.id, info.Manifest, home); err != nil {
		t.Fatal(err)
	}
	p.mustCheck(t, s, info.Manifest)
	noTemp(t, m)
}

func TestDeleteEndsAFetch(t *testing.T) {
	home, s := openMem(t, faultfs.New()), openMem(t, faultfs.New())
	p := newSample(1, 0, 10)
	info := p.mustPut(t, home)
	src := &peer{Store: home, before: func() error { return s.Delete(context.Background(), p.id) }}
	if _, _, err := s.Fetch(t.Context(), p.id, info.Manifest, src); !errors.Is(err, ErrDeleted) {
		t.Fatalf("%v", err)
	}
	if _, err := s.Stat(t.Context(), p.id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("%v", err)
	}
}

func TestReadingFromElsewhere(t *testing.T) {
	home, s := openMem(t, faultfs.New()), openMem(t, faultfs.New())
	p := newSample(1, 0, 1500)
	info := p.mustPut(t, home)
	src := &peer{Store: home}
	r, err := s.OpenFrom(t.Context(), p.id, info.Manifest, src)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := p.compare(r); err != nil {
		t.Fatal(err)
	}
	if src.asked == 0 {
		t.Fatal("nothing was asked for")
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatalf("collecting while a part is read from elsewhere: %v", err)
	}

	// What is here is not asked for.
	p.mustPut(t, s)
	src.asked = 0
	if err := p.compare(r); err != nil || src.asked != 0 {
		t.Fatalf("%v, %d asked", err, src.asked)
	}
	lost := &peer{Store: openMem(t, faultfs.New())}
	if _, err := openMem(t, faultfs.New()).OpenFrom(t.Context(), p.id, info.Manifest, lost); !errors.Is(err, ErrNotFound) {
		t.Fatalf("%v", err)
	}
}

func TestCollect(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	var parts []sample
	var manifests []string
	for epoch := range uint64(4) {
		p := newSample(epoch+1, 0, 400)
		parts, manifests = append(parts, p), append(manifests, p.mustPut(t, s).Manifest)
	}
	r, err := s.Open(parts[1].id, manifests[1])
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(t.Context(), PartID{Job: "gathering", Epoch: 9})
	if err != nil {
		t.Fatal(err)
	}
	gathering := newSample(2, 0, 400) // has the same pages as a part that goes
	gathering.id = w.id
	gathering.feed(w)
	for _, p := range parts[:3] {
		if err := s.Delete(t.Context(), p.id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := parts[1].compare(r); err != nil {
		t.Errorf("a part that is open: %v", err)
	}
	r.Close()
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit(t.Context(), gathering.meta)
	if err != nil {
		t.Fatal(err)
	}
	gathering.mustCheck(t, s, info.Manifest)
	parts[3].mustCheck(t, s, manifests[3])
	if err := s.DeleteJob(t.Context(), "gathering"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), parts[3].id); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Collect(t.Context()); err != nil || c.Freed == 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	if left := packFiles(m); len(left) > 0 {
		t.Errorf("packs are left: %v", left)
	}
}

// TestCollectStopsAtDamage: what a page table that cannot be read names may be good.
func TestCollectStopsAtDamage(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 5)
	p.mustPut(t, s)
	gone := newSample(2, 0, 300)
	gone.mustPut(t, s)
	if err := s.Delete(t.Context(), gone.id); err != nil {
		t.Fatal(err)
	}
	for _, path := range packFiles(m) {
		m.Edit(path, func(b []byte) []byte {
			for i := 24; i < len(b)-200; i++ { // all extents
				b[i] ^= 0x55
			}
			return b
		})
	}
	_ = s.Close()
	s = openMem(t, m)
	if c, err := s.Collect(t.Context()); err == nil || c.Deleted > 0 || !strings.Contains(err.Error(), "page table") {
		t.Fatalf("%+v, %v", c, err)
	}
}
