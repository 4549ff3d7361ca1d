package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

func verifyNoLeaks(m *testing.M) { goleak.VerifyTestMain(m) }

const testDir = "/store"

// sample is an object to store.
type sample struct {
	kind Kind
	id   ID
	data []byte
}

func newSample(kind Kind, data []byte) sample { return sample{kind, Sum(kind, data), data} }

// page returns a page with some redundancy, different for each n.
func page(n uint64) sample {
	r := rand.New(rand.NewPCG(n, 77))
	words := make([]byte, 64)
	for i := range words {
		words[i] = byte(r.Uint32())
	}
	data := make([]byte, PageSize)
	for i := 0; i < len(data); i += 8 {
		copy(data[i:], words[r.IntN(8)*8:][:8])
	}
	return newSample(KindPage, data)
}

// incompressible returns an object of random bytes.
func incompressible(kind Kind, n uint64, size int) sample {
	r := rand.New(rand.NewPCG(n, 78))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return newSample(kind, data)
}

// samples returns pages from..to, and with every tenth of them objects of other
// kinds.
func samples(from, to uint64) (all []sample) {
	for n := from; n < to; n++ {
		all = append(all, page(n))
		switch n % 20 {
		case 3:
			all = append(all, incompressible(KindNode, n, int(16*(n%512+1))))
		case 13:
			all = append(all, incompressible(KindData, n, int(n%5000+1)))
		}
	}
	return all
}

func pages(from, to uint64) (all []sample) {
	for n := from; n < to; n++ {
		all = append(all, page(n))
	}
	return all
}

// smallPacks are options with which few objects make several packs.
func smallPacks(m *faultfs.FS) Options { return Options{FS: m, PackSize: 64 << 10, Memory: 1 << 20} }

func newFS(t testing.TB) *faultfs.FS {
	t.Helper()
	m := faultfs.New()
	if err := m.MakeRoot(testDir); err != nil {
		t.Fatal(err)
	}
	return m
}

// open opens a store that the test closes.
func open(t testing.TB, dir string, opt Options) *Store {
	t.Helper()
	s, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// put stores samples in a batch of their own.
func put(s *Store, all []sample) error {
	b := s.NewBatch(context.Background())
	defer b.Close()
	for _, x := range all {
		if err := b.Add(x.kind, x.id, x.data); err != nil {
			return err
		}
	}
	return b.Sync(context.Background())
}

func mustPut(t testing.TB, s *Store, all []sample) {
	t.Helper()
	if err := put(s, all); err != nil {
		t.Fatal(err)
	}
}

// check fails unless all samples can be read.
func check(s *Store, all []sample) error {
	for _, x := range all {
		if err := checkOne(s, x); err != nil {
			return err
		}
		if !s.Has(x.id) {
			return fmt.Errorf("%v can be read, but Has says no", x.id)
		}
	}
	return nil
}

func checkOne(s *Store, x sample) error {
	got, err := s.Get(context.Background(), x.id, []byte("before"))
	if err != nil {
		return err
	}
	if !bytes.Equal(got[6:], x.data) || string(got[:6]) != "before" {
		return fmt.Errorf("%v: wrong data", x.id)
	}
	return nil
}

func mustCheck(t testing.TB, s *Store, all []sample) {
	t.Helper()
	if err := check(s, all); err != nil {
		t.Fatal(err)
	}
}

// mustBeAbsent fails if a sample is there.
func mustBeAbsent(t testing.TB, s *Store, all []sample) {
	t.Helper()
	for _, x := range all {
		if _, err := s.Get(t.Context(), x.id, nil); !errors.Is(err, ErrNotFound) || s.Has(x.id) {
			t.Fatalf("%v: %v, want not found", x.id, err)
		}
	}
}
