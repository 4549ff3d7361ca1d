package ckpt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

func TestRoundTrip(t *testing.T) {
	s := openOS(t, filepath.Join(t.TempDir(), "s"))
	for i, pages := range []int{0, 1, 700, 3000} {
		p := newSample(uint64(i+1), 0, pages)
		info := p.mustPut(t, s)
		p.mustCheck(t, s, info.Manifest)
		got, moved, err := s.Verify(t.Context(), p.id, info.Manifest, nil)
		if err != nil || got != info || moved.Read < int64(len(p.tail)) || moved.Objects != 0 {
			t.Fatalf("%+v, %+v, %v; commit %+v", got, moved, err, info)
		}
	}
}

func TestPagesComeInAnyOrderAndAgain(t *testing.T) {
	s := openMem(t, faultfs.New())
	p := newSample(1, 0, 600)
	w, err := s.Create(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	_ = w.Head(p.head, p.blocks)
	order := slices.Sorted(maps.Keys(p.pages[0]))
	slices.Reverse(order)
	for _, n := range order {
		_ = w.Page(0, n, randomBytes(n+5000, object.PageSize)) // older content
	}
	_ = w.Page(0, 1, randomBytes(77, object.PageSize)) // zero in the end
	_ = w.Page(0, 3, randomBytes(78, object.PageSize))
	for _, n := range order {
		_ = w.Page(0, n, p.pages[0][n])
	}
	_ = w.Zero(0, 1)
	_ = w.Page(0, 3, make([]byte, object.PageSize))
	_ = w.Page(1, 2, p.pages[1][2])
	if err := w.Tail(p.tail); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit(t.Context(), p.meta)
	if err != nil {
		t.Fatal(err)
	}
	p.mustCheck(t, s, info.Manifest)
}

func TestUnchangedPagesCostNothing(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	first := newSample(1, 0, 5000)
	one := first.mustPut(t, s)
	if one.Changed != one.Size {
		t.Fatalf("first part: %+v", one)
	}
	before := s.objects.Usage()
	next := first
	next.id.Epoch = 2
	next.pages = []map[uint64][]byte{maps.Clone(first.pages[0]), first.pages[1], {}}
	next.pages[0][3000] = randomBytes(990, object.PageSize)
	next.pages[0][3001] = randomBytes(991, object.PageSize)
	delete(next.pages[0], 8)
	two := next.mustPut(t, s)
	next.mustCheck(t, s, two.Manifest)
	r, err := s.Open(next.id, two.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	hot, err := r.Hot(t.Context())
	if want := []PageRange{{0, 3000, 2}}; err != nil || !slices.Equal(hot, want) || r.Manifest().Changed != 2 {
		t.Errorf("hot %v, %v; changed %d", hot, err, r.Manifest().Changed)
	}
	after := s.objects.Usage()
	// Two pages, two leaves, the root, the list of hot pages.
	if n := after.Objects - before.Objects; n != 6 {
		t.Errorf("%d objects were added", n)
	}
	if size := len(m.Bytes(s.partPath(next.id))); size > 4<<10 {
		t.Errorf("the manifest has %d bytes", size)
	}
}

func TestWriteOnce(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 30)
	info := p.mustPut(t, s)
	if again := p.mustPut(t, s); again != info {
		t.Fatalf("%+v, then %+v", info, again)
	}
	other := newSample(2, 0, 30)
	other.id = p.id
	if _, err := other.put(s); !errors.Is(err, ErrConflict) {
		t.Fatalf("another part: %v", err)
	}
	p.mustCheck(t, s, info.Manifest)
	noTemp(t, m)
}

func TestCommitReplacesADamagedPart(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 30)
	info := p.mustPut(t, s)
	m.Flip(s.partPath(p.id), 3000)
	if _, err := s.Stat(t.Context(), p.id); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("damaged manifest: %v", err)
	}
	if again := p.mustPut(t, s); again != info {
		t.Fatalf("%+v, then %+v", info, again)
	}
	damagePacks(m)
	if _, _, err := s.Verify(t.Context(), p.id, info.Manifest, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("damaged pack: %v", err)
	}
	p.mustPut(t, s)
	p.mustCheck(t, s, info.Manifest)
}

func TestConcurrentCommitsOfOnePart(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 40)
	var wg sync.WaitGroup
	infos := make([]Info, 4)
	for i := range infos {
		wg.Go(func() {
			var err error
			if infos[i], err = p.put(s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, info := range infos {
		if info != infos[0] {
			t.Fatalf("%+v and %+v", info, infos[0])
		}
	}
	p.mustCheck(t, s, infos[0].Manifest)
	noTemp(t, m)
}

func TestOpenWants(t *testing.T) {
	s := openMem(t, faultfs.New())
	p := newSample(1, 0, 3)
	info := p.mustPut(t, s)
	absent := p.id
	absent.Guest = 7
	for _, tc := range []struct {
		id       PartID
		manifest string
		want     error
	}{
		{p.id, Digest([]byte("another")), ErrMismatch},
		{absent, info.Manifest, ErrNotFound},
		{p.id, "", ErrName},
		{p.id, "x", ErrName},
		{PartID{Job: "../x"}, info.Manifest, ErrName},
	} {
		if _, err := s.Open(tc.id, tc.manifest); !errors.Is(err, tc.want) {
			t.Errorf("%v %q: %v, want %v", tc.id, tc.manifest, err, tc.want)
		}
	}
	r, err := s.Open(p.id, info.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dst := make([]byte, object.PageSize)
	for _, at := range []struct {
		block int
		page  uint64
	}{{-1, 0}, {3, 0}, {2, 0}, {0, 1 << 40}} {
		if _, err := r.Page(t.Context(), at.block, at.page, dst); err == nil {
			t.Errorf("page %d of block %d was read", at.page, at.block)
		}
	}
	if err := r.Each(t.Context(), 3, nil); err == nil {
		t.Error("block 3 was read")
	}
	boom := errors.New("boom")
	if err := r.Each(t.Context(), 0, func(uint64, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error of the reader: %v", err)
	}
}

// TestFlippedBits inverts bits all over the store: every read gives what was
// stored or fails with a place.
func TestFlippedBits(t *testing.T) {
	pristine := faultfs.New()
	s := openMem(t, pristine)
	p := newSample(1, 0, 12)
	manifest := p.mustPut(t, s).Manifest
	_ = s.Close()
	found := 0
	for _, path := range append(packFiles(pristine), testDir+"/parts/bt-mz.1/1.0") {
		size := int64(len(pristine.Bytes(path))) * 8
		for bit := int64(0); bit < size; bit += size/150 + 1 {
			m := pristine.AfterCrash(faultfs.All())
			m.Flip(path, bit)
			s := openMem(t, m)
			err := p.check(s, manifest)
			_, _, verr := s.Verify(t.Context(), p.id, manifest, nil)
			if verr != nil {
				found++
			}
			for _, err := range []error{err, verr} {
				if err != nil && !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s bit %d: %v", path, bit, err)
				}
			}
			if err != nil && verr == nil {
				t.Fatalf("%s bit %d: reading says %v, verifying nothing", path, bit, err)
			}
			_ = s.Close()
		}
	}
	if found < 250 {
		t.Errorf("only %d flips were found", found)
	}
}

func TestCorruptErrorNamesThePage(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 100)
	info := p.mustPut(t, s)
	damagePacks(m)
	_, _, err := s.Verify(t.Context(), p.id, info.Manifest, nil)
	if err == nil || !strings.Contains(err.Error(), "of block pc.ram") {
		t.Fatalf("%v", err)
	}
}

func TestFullDiskKeepsDraining(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	old, p := newSample(1, 0, 50), newSample(2, 0, 500)
	oldManifest := old.mustPut(t, s).Manifest
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "write" {
			return syscall.ENOSPC
		}
		return nil
	})
	if _, err := p.put(s); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left for checkpoints") {
		t.Fatalf("%v", err)
	}
	m.Inject(nil)
	old.mustCheck(t, s, oldManifest)
	p.mustCheck(t, s, p.mustPut(t, s).Manifest)
	noTemp(t, m)
}

func TestHangingDisk(t *testing.T) {
	m := faultfs.New()
	release := make(chan struct{})
	s, err := open(m, testDir, Options{StallTimeout: 50 * time.Millisecond, Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "write" {
			<-release
		}
		return nil
	})
	w, err := s.Create(t.Context(), PartID{Job: "a", Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Head(nil, []Block{{"ram", 64 << 20}})
	for n := range uint64(64 << 20 / object.PageSize) { // all is taken
		_ = w.Page(0, n, randomBytes(n+1, object.PageSize))
	}
	if err := w.Lost(); !errors.Is(err, ErrStalled) {
		t.Errorf("Lost: %v", err)
	}
	if _, err := w.Commit(t.Context(), Meta{}); !errors.Is(err, ErrStalled) {
		t.Errorf("Commit: %v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrStalled) {
		t.Errorf("Close: %v", err)
	}
	close(release)
	for {
		if s, err := open(m, testDir, Options{}); err == nil {
			_ = s.Close()
			break
		}
		m.Revive() // the process has ended
	}
}

func TestFaultPointsFailTheCommit(t *testing.T) {
	for _, point := range []string{FaultPage, FaultBeforeSync, FaultBeforeRename, FaultAfterRename, object.FaultWrite, object.FaultBeforeRename} {
		faults, err := faultpoint.Parse(point + "=error:EIO")
		if err != nil {
			t.Fatal(err)
		}
		m := faultfs.New()
		s, err := open(m, testDir, Options{Faults: faults})
		if err != nil {
			t.Fatal(err)
		}
		p := newSample(1, 0, 3)
		if _, err := p.put(s); err == nil {
			t.Errorf("%s: commit succeeded", point)
		}
		if _, err := s.Stat(t.Context(), p.id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", point, err)
		}
		noTemp(t, m)
		_ = s.Close()
	}
}

func TestGivingUp(t *testing.T) {
	broken := errors.New("the stream broke off")
	for name, tc := range map[string]struct {
		end  func(s *Store, w *Writer, cancel context.CancelFunc)
		want error
	}{
		"abort":   {func(_ *Store, w *Writer, _ context.CancelFunc) { w.Abort() }, ErrAborted},
		"context": {func(_ *Store, _ *Writer, cancel context.CancelFunc) { cancel() }, context.Canceled},
		"delete":  {func(s *Store, w *Writer, _ context.CancelFunc) { _ = s.Delete(context.Background(), w.id) }, ErrDeleted},
		"job":     {func(s *Store, w *Writer, _ context.CancelFunc) { _ = s.DeleteJob(context.Background(), w.id.Job) }, ErrDeleted},
		"source":  {func(_ *Store, w *Writer, _ context.CancelFunc) { w.Fail(broken) }, broken},
		"close":   {func(s *Store, _ *Writer, _ context.CancelFunc) { _ = s.Close() }, ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			m := faultfs.New()
			s := openMem(t, m)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := newSample(1, 0, 50)
			w, err := s.Create(ctx, p.id)
			if err != nil {
				t.Fatal(err)
			}
			p.feed(w)
			tc.end(s, w, cancel)
			p.feed(w) // is discarded
			if _, err := w.Commit(t.Context(), p.meta); !errors.Is(err, tc.want) {
				t.Errorf("Commit: %v", err)
			}
			if err := w.Lost(); !errors.Is(err, tc.want) {
				t.Errorf("Lost: %v", err)
			}
			w.Abort()
			if _, err := openMem(t, m.AfterCrash(faultfs.All())).Stat(t.Context(), p.id); !errors.Is(err, ErrNotFound) {
				t.Errorf("part is there: %v", err)
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	s := openMem(t, faultfs.New())
	huge := make([]byte, maxFrame+1)
	for name, meta := range map[string]Meta{
		"engine": {Engine: "\xff"}, "extra": {Extra: map[string]string{"a": "\xff"}},
		"compat": {Compat: []byte("{")}, "long compat": {Compat: fmt.Appendf(nil, "%q", strings.Repeat("x", maxCompat))},
		"frame": {ChannelState: [][]byte{huge}},
	} {
		w, err := s.Create(t.Context(), PartID{Job: "a", Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(t.Context(), meta); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
	for name, do := range map[string]func(w *Writer) error{
		"no head":   func(w *Writer) error { return w.Page(0, 0, make([]byte, object.PageSize)) },
		"two heads": func(w *Writer) error { _ = w.Head(nil, []Block{}); return w.Head(nil, nil) },
		"odd block": func(w *Writer) error { return w.Head(nil, []Block{{"ram", 5}}) },
		"no name":   func(w *Writer) error { return w.Head(nil, []Block{{"", object.PageSize}}) },
		"past the end": func(w *Writer) error {
			_ = w.Head(nil, []Block{{"ram", object.PageSize}})
			return w.Zero(0, 1)
		},
		"too much": func(w *Writer) error { return w.Head(nil, []Block{{"ram", 1 << 62}}) },
	} {
		w, err := s.Create(t.Context(), PartID{Job: "a", Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := do(w); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := w.Commit(t.Context(), Meta{}); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
}

func TestManifestOfAnotherVersion(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 1)
	p.mustPut(t, s)
	raw := []byte(`{"version":3,"new":"member"}`)
	m.Edit(s.partPath(p.id), func([]byte) []byte { return manifestFile(Digest(raw), raw) })
	var version *VersionError
	if _, err := s.Stat(t.Context(), p.id); !errors.Is(err, ErrVersion) || !errors.As(err, &version) || version.Found != "3" {
		t.Fatalf("%v", err)
	}
}

func TestDamageOnARealDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := openOS(t, dir)
	p := newSample(1, 0, 400)
	info := p.mustPut(t, s)
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%v, %v", packs, err)
	}
	for _, path := range packs {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), 5000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Verify(t.Context(), p.id, info.Manifest, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%v", err)
	}
}
