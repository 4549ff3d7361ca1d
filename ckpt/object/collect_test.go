package object

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

// marks returns a mark function that names samples.
func marks(all ...[]sample) func(context.Context, func(ID, Kind)) error {
	return func(_ context.Context, live func(ID, Kind)) error {
		for _, some := range all {
			for _, x := range some {
				live(x.id, x.kind)
			}
		}
		return nil
	}
}

func mustCollect(t testing.TB, s *Store, live ...[]sample) Collected {
	t.Helper()
	c, err := s.Collect(context.Background(), marks(live...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// every returns every n-th sample.
func every(n int, all []sample) (some []sample) {
	for i := 0; i < len(all); i += n {
		some = append(some, all[i])
	}
	return some
}

func without(all, some []sample) []sample {
	return slices.DeleteFunc(slices.Clone(all), func(x sample) bool {
		return slices.ContainsFunc(some, func(y sample) bool { return y.id == x.id })
	})
}

func TestCollect(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		s := open(t, testDir, opt)
		all := samples(0, 800)
		mustPut(t, s, all)
		before := s.Usage()

		if c := mustCollect(t, s, all); c.Deleted != 0 || c.Live != int64(len(all)) || c.Missing != 0 {
			t.Errorf("everything is live: %+v", c)
		}
		// Sparse everywhere, and dead at the end.
		live := every(5, all[:600])
		c := mustCollect(t, s, live)
		if c.Deleted != before.Packs || c.Rewritten == 0 || c.Rewritten >= c.Deleted || c.Live != int64(len(live)) || c.Freed != before.StoredBytes || c.Moved == 0 {
			t.Errorf("one in five is live: %+v, before: %+v", c, before)
		}
		mustCheck(t, s, live)
		mustBeAbsent(t, s, without(all, live))
		if u := s.Usage(); u.Objects != int64(len(live)) || u.StoredBytes > before.StoredBytes/3 {
			t.Errorf("usage %+v, before: %+v", u, before)
		}
		closeStore(t, s)
		s = open(t, testDir, opt)
		mustCheck(t, s, live)
		mustBeAbsent(t, s, without(all, live))
		mustPut(t, s, all)
		mustCheck(t, s, all)

		if c := mustCollect(t, s); c.Live != 0 || c.Moved != 0 {
			t.Errorf("nothing is live: %+v", c)
		}
		if u := s.Usage(); u.Packs != 0 || u.Objects != 0 || u.StoredBytes != 0 {
			t.Errorf("usage of an empty store: %+v", u)
		}
		if left := opt.FS.(*faultfs.FS).Files(testDir); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
}

func TestCollectMergesSmallPacks(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	all := pages(0, 2*manySmall)
	for i := range manySmall - 1 {
		mustPut(t, s, all[2*i:2*i+2])
	}
	if c := mustCollect(t, s, all[:2*manySmall-2]); c.Deleted != 0 {
		t.Errorf("few small packs: %+v", c)
	}
	mustPut(t, s, all[2*manySmall-2:])
	if c := mustCollect(t, s, all); c.Rewritten != manySmall || s.Usage().Packs != 1 {
		t.Errorf("many small packs: %+v, then %+v", c, s.Usage())
	}
	mustCheck(t, s, all)
}

func TestCollectSparesWhatBatchesUse(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	all := pages(0, 400)
	mustPut(t, s, all)
	mustCollect(t, s, all) // what was stored before it is in no batch's generation
	kept, added, later, lost := all[:100], pages(1000, 1050), all[100:150], all[150:]

	before := s.NewBatch(t.Context())
	defer before.Close()
	use := func(b *Batch, all []sample) {
		for _, x := range all {
			if !b.Keep(x.id) {
				if err := b.Add(x.kind, x.id, x.data); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	use(before, kept)
	use(before, added)
	if err := before.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The second batch begins and ends while the collection marks.
	c, err := s.Collect(t.Context(), func(context.Context, func(ID, Kind)) error {
		during := s.NewBatch(t.Context())
		defer during.Close()
		use(during, later)
		use(during, pages(2000, 2050))
		return during.Sync(t.Context())
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Missing != 0 || c.Live < 250 {
		t.Errorf("%+v", c)
	}
	mustCheck(t, s, slices.Concat(kept, added, later, pages(2000, 2050)))
	if u := s.Usage(); u.Objects >= 400 {
		t.Errorf("nothing of the %d unused objects was collected: %+v", len(lost), u)
	}
	// The first batch is open still.
	mustCollect(t, s)
	mustCheck(t, s, slices.Concat(kept, added))
	before.Close()
	mustCollect(t, s)
	if u := s.Usage(); u.Objects != 0 {
		t.Errorf("when all batches are closed: %+v", u)
	}
}

// TestProtectionLastsManyCollections goes round the circle of generations.
func TestProtectionLastsManyCollections(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	old, young := pages(0, 20), pages(20, 40)
	mustPut(t, s, slices.Concat(old, young))
	b := s.NewBatch(t.Context())
	defer b.Close()
	for _, x := range old {
		b.Keep(x.id)
	}
	for range 2 * generationCircle {
		mustCollect(t, s, young)
	}
	mustCheck(t, s, slices.Concat(old, young))
	b.Close()
	for range 2 * generationCircle {
		mustCollect(t, s, young)
	}
	mustCheck(t, s, young)
	mustBeAbsent(t, s, old)
}

// TestGarbageDoesNotComeBackToLife: what stays for long because most of its pack
// is live does not look young again when generations come round.
func TestGarbageDoesNotComeBackToLife(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	all := pages(0, 32)
	mustPut(t, s, all)
	for range generationCircle * 2 / 3 {
		mustCollect(t, s, all[:20])
	}
	if c := mustCollect(t, s, all[:10]); c.Live != 10 || c.Rewritten != 1 {
		t.Errorf("%+v", c)
	}
	mustBeAbsent(t, s, all[10:])
}

func TestCollectFailsWithoutDeleting(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	all := pages(0, 100)
	mustPut(t, s, all)
	before := s.Usage()
	refused := errors.New("a node is missing")
	if _, err := s.Collect(t.Context(), func(context.Context, func(ID, Kind)) error { return refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Collect(ctx, func(context.Context, func(ID, Kind)) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if s.Usage() != before {
		t.Errorf("after two failures: %+v", s.Usage())
	}
	mustCheck(t, s, all)
	// The marks of failed collections are forgotten.
	if _, err := s.Collect(t.Context(), func(ctx context.Context, live func(ID, Kind)) error {
		return errors.Join(marks(all)(ctx, live), refused)
	}); !errors.Is(err, refused) {
		t.Error(err)
	}
	mustCollect(t, s, all[:10])
	mustBeAbsent(t, s, all[10:])
}

func TestCloseEndsCollection(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	mustPut(t, s, pages(0, 10))
	marking := make(chan struct{})
	go func() {
		<-marking
		_ = s.Close()
	}()
	_, err := s.Collect(t.Context(), func(ctx context.Context, _ func(ID, Kind)) error {
		close(marking)
		<-ctx.Done()
		_, err := s.Get(context.Background(), page(1).id, nil) // must not hang
		return err
	})
	if !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestReadersGoOnWhilePacksMove(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	all := samples(0, 300)
	keep := every(4, all)
	mustPut(t, s, all)
	name, _ := s.Locate(keep[0].id)
	f, err := s.OpenPack(name)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				if err := check(s, keep); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 5 {
		mustCollect(t, s, keep)
		mustPut(t, s, all)
	}
	close(stop)
	wg.Wait()
	if _, err := s.OpenPack(name); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted pack: %v", err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	if x, err := ReadPackIndex(f, size); err != nil || x.Name() != name {
		t.Errorf("open file of a deleted pack: %v", err)
	}
	_ = f.Close()
}

// TestCollectDuplicates: copies of one object in several packs, as a crash
// between the copying and the deleting leaves them.
func TestCollectDuplicates(t *testing.T) {
	m := newFS(t)
	s := open(t, testDir, smallPacks(m))
	all := pages(0, 200)
	mustPut(t, s, all)
	keep := every(4, all)
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "remove" {
			return errors.New("not now")
		}
		return nil
	})
	mustCollect(t, s, keep)
	m.Inject(nil)
	closeStore(t, s)
	s = open(t, testDir, smallPacks(m))
	if u := s.Usage(); u.Objects != int64(len(all)+len(keep)) {
		t.Fatalf("%d copies of objects, want %d", u.Objects, len(all)+len(keep))
	}
	for range 3 {
		mustCollect(t, s, keep)
		mustCheck(t, s, keep)
	}
	if u := s.Usage(); u.Objects != int64(len(keep)) {
		t.Errorf("%d copies of objects, want %d", u.Objects, len(keep))
	}
}

// TestAddDoesNotWaitForCollection measures the longest wait of Add and Keep
// while a large table is collected over and over.
func TestAddDoesNotWaitForCollection(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is too slow to measure anything")
	}
	const most = 50 * time.Millisecond
	s := open(t, t.TempDir(), Options{})
	// A large table, with entries of packs that the collection does not know.
	for n := range 1_000_000 {
		s.table.insert(ID{byte(n), byte(n >> 8), byte(n >> 16), 1}, place(1000+uint32(n>>14), n&511, n&31).withGeneration(1))
	}
	live, dead := pages(0, 3000), pages(10_000, 13_000)
	mustPut(t, s, slices.Concat(live, dead))
	add := pages(100_000, 104_000)
	b := s.NewBatch(t.Context())
	defer b.Close()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			mustCollect(t, s, live)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	var longest []time.Duration
	for i, x := range add {
		start := time.Now()
		if err := b.Add(x.kind, x.id, x.data); err != nil {
			t.Fatal(err)
		}
		b.Keep(live[i%len(live)].id)
		longest = append(longest, time.Since(start))
	}
	close(stop)
	wg.Wait()
	slices.Sort(longest)
	t.Logf("longest waits: %v", longest[len(longest)-5:])
	// A machine with more to do than processors stops anybody now and then.
	if wait := longest[len(longest)-3]; wait > most {
		t.Errorf("Add waited %v", wait)
	}
}
