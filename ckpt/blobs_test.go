package ckpt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

func putBlob(s *Store, b []byte) (bool, error) {
	return s.Blobs().Put(context.Background(), Digest(b), int64(len(b)), bytes.NewReader(b))
}

func readBlob(s *Store, digest string) (_ []byte, err error) {
	r, err := s.Blobs().Open(context.Background(), digest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return io.ReadAll(r)
}

func TestBlobs(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	var digests []string
	for _, size := range []int{0, 1, blobChunk, 3*blobChunk + 5} {
		b := randomBytes(uint64(size), size) //nolint:gosec // small
		d := Digest(b)
		digests = append(digests, d)
		if has, err := s.Blobs().Has(d); has || err != nil {
			t.Fatalf("before: %v, %v", has, err)
		}
		if _, err := s.Blobs().Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatalf("before: %v", err)
		}
		for i := range 2 {
			if existed, err := putBlob(s, b); err != nil || existed != (i == 1) {
				t.Fatalf("size %d, put %d: %v, %v", size, i+1, existed, err)
			}
		}
		if has, err := s.Blobs().Has(d); !has || err != nil {
			t.Fatalf("after: %v, %v", has, err)
		}
		r, err := s.Blobs().Open(t.Context(), d)
		if err != nil || r.Size() != int64(size) {
			t.Fatalf("%v", err)
		}
		if err := iotest.TestReader(struct{ io.Reader }{r}, b); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	existed, err := s.Blobs().Put(t.Context(), digests[1], 1, iotest.ErrReader(errors.New("must not be read")))
	if !existed || err != nil {
		t.Errorf("existing blob: %v, %v", existed, err)
	}
	slices.Sort(digests)
	if got, err := s.Blobs().List(t.Context()); err != nil || !slices.Equal(got, digests) {
		t.Fatalf("%v, %v", got, err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Blobs != 4 || u.BlobBytes != 4*blobChunk+6 {
		t.Fatalf("%+v, %v", u, err)
	}
	n, err := s.Blobs().Prune(t.Context(), func(d string) bool { return d == digests[2] })
	if n != 3 || err != nil {
		t.Fatalf("%d removed, %v", n, err)
	}
	if got, _ := s.Blobs().List(t.Context()); !slices.Equal(got, digests[2:3]) {
		t.Fatalf("%v", got)
	}
	for range 2 {
		if err := s.Blobs().Delete(digests[2]); err != nil {
			t.Fatal(err)
		}
	}
	noTemp(t, m)
}

func TestBlobsRefuse(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	b := randomBytes(1, 2*blobChunk)
	boom := errors.New("boom")
	for _, tc := range []struct {
		name   string
		digest string
		size   int64
		r      io.Reader
		want   error
	}{
		{"wrong digest", Digest(nil), int64(len(b)), bytes.NewReader(b), ErrMismatch},
		{"too short", Digest(b), int64(len(b)) + 1, bytes.NewReader(b), ErrMismatch},
		{"too long", Digest(b), int64(len(b)) - 1, bytes.NewReader(b), ErrMismatch},
		{"negative", Digest(b), -1, bytes.NewReader(b), ErrName},
		{"huge", Digest(b), 1<<63 - 2, bytes.NewReader(b), ErrMismatch},
		{"hugest", Digest(b), 1<<63 - 1, bytes.NewReader(b), ErrName},
		{"source fails", Digest(b), int64(len(b)), io.MultiReader(bytes.NewReader(b[:100]), iotest.ErrReader(boom)), boom},
		{"no digest", "", 0, nil, ErrName},
	} {
		if _, err := s.Blobs().Put(t.Context(), tc.digest, tc.size, tc.r); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		noTemp(t, m)
	}
	if got, err := s.Blobs().List(t.Context()); len(got) > 0 || err != nil {
		t.Fatalf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Blobs().Put(ctx, Digest(b), int64(len(b)), bytes.NewReader(b)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := putBlob(s, b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blobs().Put(t.Context(), Digest(b), 1, bytes.NewReader(b)); !errors.Is(err, ErrMismatch) {
		t.Errorf("existing blob with another size: %v", err)
	}
}

func TestDamagedBlob(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	b := randomBytes(1, 2*blobChunk+9)
	d := Digest(b)
	if _, err := putBlob(s, b); err != nil {
		t.Fatal(err)
	}
	path := testDir + "/blobs/" + d[:2] + "/" + d
	flip := func(c []byte) []byte { c[blobChunk] ^= 1; return c }

	// Damaged after it was opened: the end is an error.
	r, err := s.Blobs().Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	m.Edit(path, flip)
	if _, err := io.ReadAll(r); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// Damaged before: nothing is handed out.
	var ce *CorruptError
	if _, err := s.Blobs().Open(t.Context(), d); !errors.As(err, &ce) || ce.Blob != d {
		t.Fatalf("%v", err)
	}
	if existed, err := putBlob(s, b); existed || err != nil {
		t.Fatalf("replacing it: %v, %v", existed, err)
	}
	if got, err := readBlob(s, d); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	m.Edit(path, func(c []byte) []byte { return c[:len(c)-1] })
	if _, err := readBlob(s, d); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("cut off: %v", err)
	}
}

func TestBlobErrorAnywhere(t *testing.T) {
	b := randomBytes(1, 2*blobChunk+9)
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC, faultfs.ErrShort, faultfs.ErrQuietShort} {
		for k, finished := 1, false; !finished; k += faultfs.Step {
			m := faultfs.New()
			s := openMem(t, m)
			m.Inject(func(c faultfs.Call) error {
				if c.N == k {
					return failure
				}
				return nil
			})
			_, err := putBlob(s, b)
			finished = m.Calls() < k
			m.Inject(nil)
			if err == nil {
				s = openMem(t, m.AfterCrash(faultfs.Nothing()))
				if got, err := readBlob(s, Digest(b)); err != nil || !bytes.Equal(got, b) {
					t.Fatalf("%v at call %d: put succeeded, but after a crash: %v", failure, k, err)
				}
			} else if has, _ := s.Blobs().Has(Digest(b)); has {
				t.Fatalf("%v at call %d: there after %v", failure, k, err)
			}
			if _, err := putBlob(s, b); err != nil {
				t.Fatalf("%v at call %d: second attempt: %v", failure, k, err)
			}
			_ = s.Close()
		}
	}
}

func TestConcurrentPutsOfOneBlob(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	b := randomBytes(1, 2*blobChunk)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := putBlob(s, b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := readBlob(s, Digest(b)); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	noTemp(t, m)
}
