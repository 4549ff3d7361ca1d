package object

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

func TestSum(t *testing.T) {
	data := incompressible(KindData, 1, 5000).data
	plain := blake3.Sum256(data)
	if got := Sum(KindPage, data); !bytes.Equal(got[:], plain[:16]) {
		t.Errorf("page: %v", got)
	}
	for kind, name := range map[Kind]string{KindNode: "vft ckpt object node 1", KindData: "vft ckpt object data 1"} {
		want := make([]byte, 32)
		blake3.DeriveKey(name, data, want)
		for range 2 {
			if got := Sum(kind, data); !bytes.Equal(got[:], want[:16]) {
				t.Errorf("%v: %v", kind, got)
			}
		}
	}
}

func TestParseID(t *testing.T) {
	id := page(1).id
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "00", strings.ToUpper(id.String()) + "A", id.String() + "0", strings.Repeat("x", 32), strings.Repeat("A", 32)} {
		if got, err := ParseID(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
		if _, err := ParsePackName(bad); err == nil {
			t.Errorf("%q is read as a pack name", bad)
		}
	}
}

// variants runs a test with plain and with encrypted packs.
func variants(t *testing.T, test func(t *testing.T, opt Options)) {
	t.Run("plain", func(t *testing.T) { test(t, smallPacks(newFS(t))) })
	t.Run("encrypted", func(t *testing.T) {
		id, err := GenerateIdentity()
		if err != nil {
			t.Fatal(err)
		}
		opt := smallPacks(newFS(t))
		opt.Identity = id
		test(t, opt)
	})
}

func TestStoreAndRead(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		all := samples(0, 500)
		all = append(all, incompressible(KindData, 1, MaxSize), newSample(KindData, make([]byte, MaxSize)),
			incompressible(KindData, 2, 1), incompressible(KindNode, 3, extentTarget), incompressible(KindNode, 4, extentTarget+1))
		s := open(t, testDir, opt)
		mustBeAbsent(t, s, all)
		mustPut(t, s, all)
		mustCheck(t, s, all)
		u := s.Usage()
		if u.Packs < 5 || u.Objects != int64(len(all)) || u.StoredBytes <= 0 || u.RawBytes < 500*PageSize || u.Pending != 0 || u.IndexBytes <= 0 {
			t.Errorf("usage: %+v", u)
		}
		// Nothing is stored twice.
		mustPut(t, s, all)
		if again := s.Usage(); again != u {
			t.Errorf("usage after the same again: %+v, before: %+v", again, u)
		}
		closeStore(t, s)
		s = open(t, testDir, opt)
		mustCheck(t, s, all)
		if again := s.Usage(); again.Objects != u.Objects || again.StoredBytes != u.StoredBytes || again.RawBytes != u.RawBytes {
			t.Errorf("usage after reopening: %+v, before: %+v", again, u)
		}
		slices.Reverse(all)
		mustCheck(t, s, all)
		for _, x := range all {
			name, ok := s.Locate(x.id)
			if !ok {
				t.Fatalf("%v is in no pack", x.id)
			}
			if _, ok := s.Locate(Sum(KindData, x.id[:])); ok {
				t.Fatal("an object that is nowhere has a pack")
			}
			if opt.FS.(*faultfs.FS).Bytes(s.packPath(name)) == nil {
				t.Fatalf("pack %v has no file", name)
			}
		}
	})
}

func TestZeroIsNeverStored(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	b := s.NewBatch(t.Context())
	defer b.Close()
	if err := b.Add(KindPage, ID{}, make([]byte, PageSize)); err != nil {
		t.Error(err)
	}
	if !b.Keep(ID{}) || !s.Has(ID{}) {
		t.Error("the zero id is missing")
	}
	if err := b.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if u := s.Usage(); u.Objects != 0 || u.Packs != 0 {
		t.Errorf("%+v", u)
	}
	if _, err := s.Get(t.Context(), ID{}, nil); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestBadObjects(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	b := s.NewBatch(t.Context())
	defer b.Close()
	for _, x := range []sample{
		newSample(KindPage, make([]byte, 100)), newSample(KindNode, nil), newSample(KindData, make([]byte, MaxSize+1)),
		{kind: 0, id: ID{1}, data: []byte("x")},
		{kind: 9, id: ID{1}, data: []byte("x")},
	} {
		if err := b.Add(x.kind, x.id, x.data); err == nil {
			t.Errorf("%v of %d bytes was accepted", x.kind, len(x.data))
		}
	}
	// A wrong id is found before anybody can see it.
	good := page(1)
	for _, x := range []sample{good, {KindPage, ID{1, 2, 3}, page(2).data}} {
		if err := b.Add(x.kind, x.id, x.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "010203") {
		t.Errorf("wrong id: %v", err)
	}
	mustBeAbsent(t, s, []sample{good, {id: ID{1, 2, 3}}})
	if err := b.Add(good.kind, good.id, good.data); err == nil {
		t.Error("a failed batch accepts objects")
	}
	mustPut(t, s, []sample{good})
}

func TestBatchesShareWhatIsPending(t *testing.T) {
	common, own1, own2 := pages(0, 100), pages(100, 150), pages(200, 250)
	add := func(t *testing.T, b *Batch, all []sample) {
		t.Helper()
		for _, x := range all {
			if err := b.Add(x.kind, x.id, x.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin := func(t *testing.T) (*Store, *Batch, *Batch) {
		s := open(t, testDir, smallPacks(newFS(t)))
		first, second := s.NewBatch(t.Context()), s.NewBatch(t.Context())
		t.Cleanup(first.Close)
		t.Cleanup(second.Close)
		add(t, first, common)
		add(t, first, own1)
		for _, x := range common[:10] {
			if !second.Keep(x.id) {
				t.Fatal("what is pending cannot be kept")
			}
		}
		add(t, second, common)
		add(t, second, own2)
		return s, first, second
	}
	t.Run("both sync", func(t *testing.T) {
		s, first, second := begin(t)
		for _, b := range []*Batch{second, first} {
			if err := b.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mustCheck(t, s, slices.Concat(common, own1, own2))
		if u := s.Usage(); u.Objects != 200 {
			t.Errorf("%d objects stored", u.Objects)
		}
	})
	t.Run("the owner goes away", func(t *testing.T) {
		s, first, second := begin(t)
		first.Close()
		if err := second.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, s, slices.Concat(common, own2))
	})
	t.Run("the owner's context ends", func(t *testing.T) {
		s := open(t, testDir, smallPacks(newFS(t)))
		ctx, cancel := context.WithCancel(t.Context())
		first, second := s.NewBatch(ctx), s.NewBatch(t.Context())
		defer first.Close()
		defer second.Close()
		add(t, first, common)
		add(t, second, common)
		cancel()
		if err := first.Add(own1[0].kind, own1[0].id, own1[0].data); !errors.Is(err, context.Canceled) {
			t.Errorf("add after the end: %v", err)
		}
		if err := second.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, s, common)
	})
	t.Run("nobody syncs", func(t *testing.T) {
		s, first, second := begin(t)
		first.Close()
		second.Close()
		first.Close()
		m := s.fs.(*faultfs.FS)
		closeStore(t, s)
		if left := m.Files(testDir + "/tmp"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if u := s.Usage(); u.Pending != 0 {
			t.Errorf("%d bytes of memory are not given back", u.Pending)
		}
	})
}

// TestManyBatches has many goroutines add overlapping objects to several
// batches at once, while others read.
func TestManyBatches(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		s := open(t, testDir, opt)
		all := samples(0, 600)
		var wg sync.WaitGroup
		for guest := range 4 {
			b := s.NewBatch(t.Context())
			defer b.Close()
			wg.Go(func() {
				var adding sync.WaitGroup
				for part := range 2 {
					adding.Go(func() {
						for i := part; i < len(all); i += 2 {
							x := all[(i+guest*50)%len(all)]
							if b.Keep(x.id) {
								continue
							}
							if err := b.Add(x.kind, x.id, x.data); err != nil {
								t.Error(err)
							}
							if i == len(all)/2 {
								if err := b.Sync(t.Context()); err != nil {
									t.Error(err)
								}
							}
						}
					})
				}
				adding.Wait()
				if err := b.Sync(t.Context()); err != nil {
					t.Error(err)
				}
				if err := check(s, all); err != nil {
					t.Errorf("guest %d: %v", guest, err)
				}
			})
		}
		wg.Wait()
		if u := s.Usage(); u.Objects != int64(len(all)) || u.Pending != 0 {
			t.Errorf("%+v, want %d objects", u, len(all))
		}
	})
}

func TestAddWaitsForMemory(t *testing.T) {
	faults, err := faultpoint.Parse(FaultWrite + "=count:1:pause")
	if err != nil {
		t.Fatal(err)
	}
	m := newFS(t)
	opt := smallPacks(m)
	opt.Faults = faults
	s := open(t, testDir, opt)
	ctx, cancel := context.WithCancelCause(t.Context())
	b, other := s.NewBatch(ctx), s.NewBatch(t.Context())
	defer b.Close()
	defer other.Close()
	full := errors.New("given up")
	added := make(chan error)
	var count int
	go func() {
		for n := uint64(0); ; n++ {
			x := page(n)
			if err := b.Add(x.kind, x.id, x.data); err != nil {
				added <- err
				return
			}
			count++
		}
	}()
	if err := faults.Await(t.Context(), FaultWrite, 1); err != nil {
		t.Fatal(err)
	}
	for s.Usage().Pending < opt.Memory {
		select {
		case err := <-added:
			t.Fatal(err)
		default:
		}
	}
	// The waiting Add wakes when its context ends.
	cancel(full)
	if err := <-added; !errors.Is(err, full) {
		t.Errorf("add after its context ended: %v", err)
	}
	if most := int(opt.Memory/PageSize) + 200; count > most {
		t.Errorf("%d pages were accepted with memory for %d", count, most)
	}
	// It wakes when there is memory.
	go func() {
		x := page(1 << 40)
		added <- other.Add(x.kind, x.id, x.data)
	}()
	faults.Release(FaultWrite)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if err := other.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWhatIsDroppedIsNotWritten: a batch is given up while the disk is slow.
func TestWhatIsDroppedIsNotWritten(t *testing.T) {
	faults, err := faultpoint.Parse(FaultWrite + "=count:1:pause")
	if err != nil {
		t.Fatal(err)
	}
	m := newFS(t)
	opt := smallPacks(m)
	opt.Faults, opt.Memory = faults, 16<<20
	s := open(t, testDir, opt)
	written := 0
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "write" {
			written++
		}
		return nil
	})
	b := s.NewBatch(t.Context())
	for _, x := range pages(0, 1000) {
		if err := b.Add(x.kind, x.id, x.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := faults.Await(t.Context(), FaultWrite, 1); err != nil {
		t.Fatal(err)
	}
	b.Close()
	faults.Release(FaultWrite)
	mustPut(t, s, pages(2000, 2001)) // behind everything else in the queue
	m.Inject(nil)
	if written > 8 {
		t.Errorf("%d writes for one page", written)
	}
}

func TestCloseEndsBatches(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	b := s.NewBatch(t.Context())
	x := page(1)
	if err := b.Add(x.kind, x.id, x.data); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	closeStore(t, s)
	y := page(2)
	_, getErr := s.Get(t.Context(), x.id, nil)
	_, packErr := s.OpenPack(PackName{})
	for _, err := range []error{b.Sync(t.Context()), b.Add(y.kind, y.id, y.data), getErr, packErr, s.NewBatch(t.Context()).Sync(t.Context())} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	b.Close()
	if b.Keep(x.id) {
		t.Error("a closed batch keeps objects")
	}
}

func TestPackFiles(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		s := open(t, testDir, opt)
		all := samples(0, 300)
		mustPut(t, s, all)
		found := map[ID]bool{}
		for name, size := range s.Packs() {
			f, err := s.OpenPack(name)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := f.Size(); err != nil || n != size {
				t.Errorf("size %d, %v; want %d", n, err, size)
			}
			x, err := ReadPackIndex(f, size, opt.Identity)
			if err != nil {
				t.Fatal(err)
			}
			if x.Name() != name || x.Size() != size {
				t.Errorf("pack %v says it is %v", name, x.Name())
			}
			n := 0
			for o := range x.Objects() {
				n++
				found[o.ID] = true
				raw, err := x.ReadExtent(f, o.Extent)
				if err != nil {
					t.Fatal(err)
				}
				if got := Sum(o.Kind, raw[o.Offset:][:o.Length]); got != o.ID {
					t.Fatalf("%+v has %v", o, got)
				}
				if again, ok := x.Find(o.ID); !ok || again != o {
					t.Fatalf("%+v is found as %+v", o, again)
				}
			}
			if n != x.Len() {
				t.Errorf("%d objects listed of %d", n, x.Len())
			}
			if _, ok := x.Find(ID{1}); ok {
				t.Error("an object that is not there is found")
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, x := range all {
			if !found[x.id] {
				t.Fatalf("%v is in no pack", x.id)
			}
		}
		if _, err := s.OpenPack(PackName{1}); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent pack: %v", err)
		}
	})
}

// TestAddExtent carries extents from one store to another.
func TestAddExtent(t *testing.T) {
	from, to := open(t, testDir, smallPacks(newFS(t))), open(t, testDir, smallPacks(newFS(t)))
	all := samples(0, 300)
	mustPut(t, from, all)
	mustPut(t, to, all[:40])
	b := to.NewBatch(t.Context())
	defer b.Close()
	for name, size := range from.Packs() {
		f, err := from.OpenPack(name)
		if err != nil {
			t.Fatal(err)
		}
		x, err := ReadPackIndex(f, size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range x.Extents() {
			e, err := x.LoadExtent(f, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.AddExtent(e); err != nil {
				t.Fatal(err)
			}
			bad := e
			bad.Stored = slices.Clone(e.Stored)
			bad.Stored[len(bad.Stored)/2] ^= 1
			bad.IDs = append(slices.Clone(e.IDs[1:]), ID{1})
			if err := b.AddExtent(bad); err == nil {
				t.Fatal("an extent that is not what it says was accepted")
			}
		}
		_ = f.Close()
	}
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, to, all)
}

// TestRealDisk stores on the real file system.
func TestRealDisk(t *testing.T) {
	dir := t.TempDir()
	all := samples(0, 3000)
	s := open(t, dir, Options{})
	mustPut(t, s, all)
	mustCheck(t, s, all)
	closeStore(t, s)
	if err := os.WriteFile(filepath.Join(dir, "tmp", "left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "packs", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	mustCheck(t, s, all)
	if names, err := (fsys.OS{}).ReadDir(filepath.Join(dir, "tmp")); err != nil || len(names) > 0 {
		t.Errorf("left in tmp: %v, %v", names, err)
	}
}
