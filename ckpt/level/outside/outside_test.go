package outside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3/s3test"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

func TestPartsComeBack(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, open func() *Level) {
		node, l := newStore(t), open()
		first, second := newPart(1, 900, 1), newPart(2, 900, 1)
		for i := range uint64(90) {
			second.pages[i*30][7]++
		}
		first.put(t, node)
		second.put(t, node)
		whole := mustPut(t, l, node, first)
		if whole < 900*object.PageSize/3 {
			t.Errorf("%d bytes sent of %d pages", whole, len(first.pages))
		}
		if more := mustPut(t, l, node, second); more > whole/4 {
			t.Errorf("%d bytes sent for a tenth of the pages, %d for all: packs were sent again", more, whole)
		}
		if again := mustPut(t, l, node, second); again > 10_000 {
			t.Errorf("%d bytes sent for what is there", again)
		}
		other := open() // as another node has it
		first.mustFetch(t, other)
		second.mustFetch(t, other)
		if n, err := other.Verify(t.Context(), second.id, second.manifest); err != nil || n < whole {
			t.Errorf("%d bytes verified, %v", n, err)
		}
		for _, prefix := range []string{claimsPrefix, collectingPrefix, damagedPrefix} {
			if left := names(t, l, prefix); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		}

		// What a node has is not read.
		s := newStore(t)
		first.put(t, s)
		_, moved, err := s.Fetch(t.Context(), second.id, second.manifest, other.Source(second.id, second.manifest))
		if err != nil || moved.Bytes > whole/2 {
			t.Errorf("%+v, %v", moved, err)
		}

		if err := l.Remove(t.Context(), first.id.Job, []uint64{1, 7}); err != nil {
			t.Fatal(err)
		}
		if err := l.Remove(t.Context(), "bt-mz", []uint64{2}); err != nil { // another job
			t.Fatal(err)
		}
		if err := first.fetch(t, other); !errors.Is(err, ErrGone) {
			t.Errorf("removed: %v", err)
		}
		second.mustFetch(t, other)
	})
}

// Guests of one node share packs, and put them at the same time.
func TestSharedPacksAreSentOnce(t *testing.T) {
	t.Parallel()
	path, node := t.TempDir(), newStore(t)
	parts := []*part{newPart(1, 600, 1), newPart(2, 600, 1), newPart(3, 600, 1), newPart(4, 600, 1)}
	for _, p := range parts {
		p.put(t, node)
	}
	pause := faults(t, FaultBeforePack+"=pause")
	l := dirLevel(t, path, Options{Faults: pause})
	var sent atomic.Int64
	var all sync.WaitGroup
	defer all.Wait()
	for _, p := range parts {
		all.Go(func() {
			n, err := l.Put(t.Context(), node, p.id, p.manifest, 0)
			if err != nil {
				t.Error(err)
			}
			sent.Add(n)
		})
	}
	if err := pause.Await(t.Context(), FaultBeforePack, 1); err != nil {
		t.Fatal(err)
	}
	pause.Release(FaultBeforePack)
	all.Wait()
	var stored int64
	if err := l.b.List(t.Context(), "", func(i backend.Info) error {
		stored += i.Size
		return nil
	}); err != nil || sent.Load() != stored {
		t.Errorf("%d bytes sent of %d, %v", sent.Load(), stored, err)
	}
	for _, p := range parts {
		p.mustFetch(t, l)
	}
}

// Every stored bit counts: flipping any is found by verification, and reading
// gives what was put, or nothing.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	path, node := t.TempDir(), newStore(t)
	l, p := dirLevel(t, path, Options{}), newPart(1, 60, 1)
	p.put(t, node)
	mustPut(t, l, node, p)
	files := append(names(t, l, packsPrefix), names(t, l, partsPrefix)...)
	if len(files) < 2 {
		t.Fatalf("%v", files)
	}
	lost := 0
	for _, name := range files {
		file := filepath.Join(path, name)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size := int(info.Size())
		at := []int{0, 5, 9, 20, size / 2, size - 1}
		for i := 1; i < 20; i++ {
			at = append(at, size-i*17, i*size/20)
		}
		for _, i := range at {
			edit(t, file, flip(i))
			if _, err := l.Verify(t.Context(), p.id, p.manifest); !errors.Is(err, ErrGone) {
				t.Errorf("%s, byte %d of %d: %v", name, i, size, err)
			}
			if err := p.fetch(t, l); err != nil {
				lost++
				if !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s, byte %d of %d: %v", name, i, size, err)
				}
			}
			edit(t, file, flip(i))
		}
	}
	if lost == 0 {
		t.Error("no damage kept the part from being read")
	}
	p.mustFetch(t, l)
}

func TestDamagedPacksAreSentAgain(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, file string){
		"flipped": func(t *testing.T, file string) { edit(t, file, flip(5000)) },
		"short":   func(t *testing.T, file string) { edit(t, file, func(b []byte) []byte { return b[:len(b)/2] }) },
		"empty":   func(t *testing.T, file string) { edit(t, file, func([]byte) []byte { return nil }) },
		"missing": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
		"another pack": func(t *testing.T, file string) {
			other, l := newPart(9, 50, 9), dirLevel(t, t.TempDir(), Options{})
			node := newStore(t)
			other.put(t, node)
			mustPut(t, l, node, other)
			from := filepath.Join(strings.TrimPrefix(l.String(), "directory "), names(t, l, packsPrefix)[0])
			edit(t, file, func([]byte) []byte {
				b, err := os.ReadFile(from)
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, node := t.TempDir(), newStore(t)
			l, p := dirLevel(t, path, Options{}), newPart(1, 300, 1)
			p.put(t, node)
			mustPut(t, l, node, p)
			for _, n := range names(t, l, packsPrefix) {
				damage(t, filepath.Join(path, n))
			}
			if err := p.fetch(t, l); !errors.Is(err, ErrGone) {
				t.Fatalf("%v", err)
			}
			if n := mustPut(t, l, node, p); n < 300*object.PageSize/3 {
				t.Errorf("%d bytes sent", n)
			}
			if _, err := l.Verify(t.Context(), p.id, p.manifest); err != nil {
				t.Error(err)
			}
			p.mustFetch(t, l)
			if left := names(t, l, damagedPrefix); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A node does not give away what is damaged.
func TestDamagedNode(t *testing.T) {
	t.Parallel()
	at, l, p := filepath.Join(t.TempDir(), "store"), dirLevel(t, t.TempDir(), Options{}), newPart(1, 300, 1)
	node := openStore(t, at)
	p.put(t, node)
	packs, err := filepath.Glob(filepath.Join(at, "packs/*/*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%v, %v", packs, err)
	}
	for _, f := range packs {
		edit(t, f, flip(5000))
	}
	if _, err := l.Put(t.Context(), node, p.id, p.manifest, 0); !errors.Is(err, object.ErrCorrupt) && !errors.Is(err, ckpt.ErrCorrupt) {
		t.Fatalf("%v", err)
	}
	if got := names(t, l, ""); len(got) > 0 {
		t.Errorf("at the level: %v", got)
	}
	missing := p.id
	missing.Epoch++
	if _, err := l.Put(t.Context(), node, missing, p.manifest, 0); !errors.Is(err, ckpt.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func faults(t *testing.T, spec string) *faultpoint.Set {
	t.Helper()
	f, err := faultpoint.Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What fails between pack and part leaves packs that a collection frees when
// they are old enough.
func TestPutThatFails(t *testing.T) {
	t.Parallel()
	for _, point := range []string{FaultBeforePack, FaultBeforePart} {
		t.Run(point, func(t *testing.T) {
			path, node, p := t.TempDir(), newStore(t), newPart(1, 300, 1)
			p.put(t, node)
			failing := dirLevel(t, path, Options{Faults: faults(t, point+"=error:EIO")})
			if _, err := failing.Put(t.Context(), node, p.id, p.manifest, 0); err == nil {
				t.Fatal("it did not fail")
			}
			l := dirLevel(t, path, Options{})
			if err := p.fetch(t, l); !errors.Is(err, ErrGone) {
				t.Errorf("%v", err)
			}
			packs := names(t, l, packsPrefix)
			if left := names(t, l, ""); len(left) != len(packs) {
				t.Errorf("left: %v", left)
			}
			if freed, err := l.Collect(t.Context()); err != nil || freed != 0 {
				t.Errorf("%d freed, %v", freed, err)
			}
			tomorrow := dirLevel(t, path, Options{Now: func() time.Time { return time.Now().Add(Grace + time.Hour) }})
			freed, err := tomorrow.Collect(t.Context())
			if err != nil || (freed > 0) != (len(packs) > 0) {
				t.Errorf("%d freed, %v", freed, err)
			}
			if left := names(t, l, ""); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			mustPut(t, l, node, p)
			p.mustFetch(t, l)
		})
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	path, l := t.TempDir(), (*Level)(nil)
	l = dirLevel(t, path, Options{Now: func() time.Time { return time.Now().Add(Grace + time.Hour) }})
	kept, removed := newPart(1, 300, 1), newPart(2, 300, 2)
	for _, p := range []*part{kept, removed} {
		node := newStore(t) // a pack each
		p.put(t, node)
		mustPut(t, l, node, p)
	}
	if freed, err := l.Collect(t.Context()); err != nil || freed != 0 {
		t.Fatalf("%d freed, %v", freed, err)
	}
	if err := l.Remove(t.Context(), removed.id.Job, []uint64{2}); err != nil {
		t.Fatal(err)
	}

	// A part that cannot be read may name any pack.
	entryFile := filepath.Join(path, partName(kept.id, kept.manifest))
	edit(t, entryFile, flip(60))
	if freed, err := l.Collect(t.Context()); err == nil || freed != 0 || !strings.Contains(err.Error(), kept.manifest) {
		t.Errorf("%d freed, %v", freed, err)
	}
	edit(t, entryFile, flip(60))

	if freed, err := l.Collect(t.Context()); err != nil || freed == 0 {
		t.Errorf("%d freed, %v", freed, err)
	}
	kept.mustFetch(t, l)
	if got := names(t, l, packsPrefix); len(got) != 1 {
		t.Errorf("packs: %v", got)
	}
}

// hooked is a backend that tells what is done to it.
type hooked struct {
	backend.Backend
	listed func(prefix string)
}

func (h *hooked) List(ctx context.Context, prefix string, each func(backend.Info) error) error {
	err := h.Backend.List(ctx, prefix, each)
	h.listed(prefix)
	return err
}

// A collection that decided to delete a pack before it was claimed deletes it
// before the claim is relied on.
func TestPutWaitsForACollection(t *testing.T) {
	t.Parallel()
	path, node, p := t.TempDir(), newStore(t), newPart(1, 300, 1)
	p.put(t, node)
	pause := faults(t, FaultBeforeDelete+"=pause")
	collector := dirLevel(t, path, Options{Faults: pause})
	mustPut(t, collector, node, p)
	if err := collector.Remove(t.Context(), p.id.Job, []uint64{1}); err != nil {
		t.Fatal(err)
	}
	age(t, path, packsPrefix, Grace+time.Hour)

	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		if freed, err := collector.Collect(t.Context()); err != nil || freed == 0 {
			t.Errorf("%d freed, %v", freed, err)
		}
	})
	if err := pause.Await(t.Context(), FaultBeforeDelete, 1); err != nil {
		t.Fatal(err)
	}
	waits := make(chan struct{})
	var once sync.Once
	l := dirLevel(t, path, Options{}, func(b backend.Backend) backend.Backend {
		return &hooked{b, func(prefix string) {
			if prefix == collectingPrefix {
				once.Do(func() { close(waits) })
			}
		}}
	})
	all.Go(func() {
		if n, err := l.Put(t.Context(), node, p.id, p.manifest, 0); err != nil || n < 300*object.PageSize/3 {
			t.Errorf("%d bytes sent, %v", n, err)
		}
	})
	<-waits // the pack is still there, and it looks as if it need not be sent
	pause.Release(FaultBeforeDelete)
	all.Wait()
	p.mustFetch(t, l)
}

// A collection leaves what is claimed.
func TestCollectionSeesClaims(t *testing.T) {
	t.Parallel()
	path, node, p := t.TempDir(), newStore(t), newPart(1, 300, 1)
	p.put(t, node)
	pause := faults(t, FaultBeforePart+"=pause")
	putter := dirLevel(t, path, Options{Faults: pause})
	l := dirLevel(t, path, Options{})
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		if _, err := putter.Put(t.Context(), node, p.id, p.manifest, 0); err != nil {
			t.Error(err)
		}
	})
	if err := pause.Await(t.Context(), FaultBeforePart, 1); err != nil {
		t.Fatal(err)
	}
	age(t, path, packsPrefix, Grace+time.Hour)
	if freed, err := l.Collect(t.Context()); err != nil || freed != 0 {
		t.Errorf("%d freed, %v", freed, err)
	}
	pause.Release(FaultBeforePart)
	all.Wait()
	p.mustFetch(t, l)
}

// A collection that died is not waited for for ever; a claim of somebody who
// died does not keep packs for ever.
func TestAnnouncementsOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir()
		l := dirLevel(t, path, Options{})
		for _, name := range []string{collectingPrefix + "DEAD", claimsPrefix + "DEAD"} {
			if err := l.put(t.Context(), name, "damaged"); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		if err := l.awaitCollections(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d < 2*deletePhase || d > deadAfter+time.Minute {
			t.Errorf("waited for %v", d)
		}
		hurry, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := l.awaitCollections(hurry); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if _, err := l.Collect(t.Context()); err == nil {
			t.Error("a claim that cannot be read may be of any pack")
		}
		later := dirLevel(t, path, Options{Now: func() time.Time { return time.Now().Add(100 * 365 * Grace) }})
		if _, err := later.Collect(t.Context()); err != nil {
			t.Error(err)
		}
		if left := names(t, l, ""); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, speed = 5 << 20, 1 << 20
		r := &limited{t.Context(), bytes.NewReader(make([]byte, size)), rate.NewLimiter(speed, limitBurst)}
		begun := time.Now()
		for off := int64(0); off < size; off += 1 << 20 {
			if n, err := r.ReadAt(make([]byte, 1<<20), off); n != 1<<20 {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		if d := time.Since(begun).Round(10 * time.Millisecond); d != (size-limitBurst)*time.Second/speed {
			t.Errorf("it took %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.ctx = ctx
		if _, err := r.ReadAt(make([]byte, size), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// What cannot be reached may be there: it is not gone.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	b, err := s3.New(s3.Config{
		Endpoint: "http://" + addr, Bucket: "bucket", Region: "us-east-1", Credentials: s3.Credentials{AccessKey: "a", SecretKey: "b"},
	}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l, p := New(b, Options{}), newPart(1, 1, 1)
	defer l.Close() //nolint:errcheck // it never answered
	p.manifest = ckpt.Digest(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := l.Verify(ctx, p.id, p.manifest); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	path := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	l = dirLevel(t, path, Options{})
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := p.fetch(t, l); !errors.Is(err, backend.ErrLost) || errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if _, err := Open(level.Spec{Kind: level.KindDir, Path: path}, Options{}); !errors.Is(err, backend.ErrLost) {
		t.Errorf("%v", err)
	}
	if _, err := Open(level.Spec{Kind: level.KindRS, Data: 2, Parity: 1}, Options{}); err == nil {
		t.Error("rs is not outside")
	}
}

// A connection that breaks is not taken for damage.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.Addr)
	cfg := server.Bucket(t, "bucket")
	open := func() *Level {
		b, err := s3.New(cfg, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return New(b, Options{})
	}
	node, p, good := newStore(t), newPart(1, 600, 1), open()
	p.put(t, node)
	mustPut(t, good, node, p)
	cfg.Endpoint = "http://" + proxy.Addr
	l := open()
	proxy.CutDown(300_000, 3) // in the middle of a pack
	p.mustFetch(t, l)
	proxy.Heal()
	proxy.CutDown(300_000, 1000)
	if err := p.fetch(t, l); errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	proxy.Heal()
	if left := names(t, good, damagedPrefix); len(left) > 0 {
		t.Errorf("marked as damaged: %v", left)
	}
}

func TestSourceIsOfOnePart(t *testing.T) {
	l, p := dirLevel(t, t.TempDir(), Options{}), newPart(1, 1, 1)
	p.manifest = ckpt.Digest(nil)
	other := p.id
	other.Guest++
	if _, err := l.Source(p.id, p.manifest).Manifest(t.Context(), other, p.manifest); !errors.Is(err, ckpt.ErrMismatch) {
		t.Errorf("%v", err)
	}
	for _, bad := range []ckpt.PartID{{Job: "../x"}, {Job: "a", Guest: -1}} {
		if _, err := l.Verify(t.Context(), bad, p.manifest); !errors.Is(err, ckpt.ErrName) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := l.Remove(t.Context(), "../x", nil); !errors.Is(err, ckpt.ErrName) {
		t.Errorf("%v", err)
	}
}

func FuzzParseEntry(f *testing.F) {
	name, err := object.ParsePackName(strings.Repeat("0a", 16))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range []entry{{}, {packs: []object.PackName{name, name}}, {packs: []object.PackName{name}, manifest: []byte("{}\n\n")}} {
		f.Add([]byte(e.encode()))
	}
	f.Add([]byte(entryMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEntry(b)
		if err == nil && e.encode() != string(b) {
			t.Fatalf("%q is read and written as %q", b, e.encode())
		}
	})
}

func TestPartNames(t *testing.T) {
	digest := ckpt.Digest(nil)
	for name, want := range map[string]string{
		partName(ckpt.PartID{Job: "a.b", Epoch: 17, Guest: 3}, digest): "17 true",
		"parts/a/1.2": "1 false", "parts/a/x.1." + digest: "0 false", "parts/a/1.-2." + digest: "1 false",
	} {
		epoch, ok := epochOf(name)
		if got := fmt.Sprint(epoch, ok); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// A backend that gives less than it should, without saying why, is not taken for
// one that has no more.
func TestBrokenOffIsNotShort(t *testing.T) {
	err := error(&brokenError{fmt.Errorf("%w: %w", backend.ErrUnreachable, io.ErrUnexpectedEOF)})
	if errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, backend.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

// A guest may run while its memory comes from a level, page by page.
func TestReadingWithoutFetching(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, open func() *Level) {
		node, p := newStore(t), newPart(1, 600, 1)
		p.put(t, node)
		mustPut(t, open(), node, p)
		s := newStore(t)
		r, err := s.OpenFrom(t.Context(), p.id, p.manifest, open().Source(p.id, p.manifest))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var all sync.WaitGroup
		for first := range uint64(4) { // several at once
			all.Go(func() {
				got := make([]byte, object.PageSize)
				for n := first; n < 1800; n += 41 {
					zero, err := r.Page(t.Context(), 0, n, got)
					if want := p.pages[n]; err != nil || zero != (want == nil) || !zero && !bytes.Equal(got, want) {
						t.Errorf("page %d: zero %v, %v", n, zero, err)
					}
				}
			})
		}
		all.Wait()
		if u, err := s.Usage(t.Context()); err != nil || u.StoredBytes > 0 {
			t.Errorf("%d bytes stored, %v", u.StoredBytes, err)
		}
	})
}

func BenchmarkLevel(b *testing.B) {
	node, p := newStore(b), newPart(1, 16_384, 1)
	p.put(b, node)
	path := b.TempDir()
	var sent int64
	b.Run("put", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			if err := os.RemoveAll(filepath.Join(path, "packs")); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			sent = mustPut(b, dirLevel(b, path, Options{}), node, p)
		}
		b.SetBytes(sent)
	})
	b.Run("fetch", func(b *testing.B) {
		l := dirLevel(b, path, Options{})
		for range b.N {
			if _, _, err := newStore(b).Fetch(context.Background(), p.id, p.manifest, l.Source(p.id, p.manifest)); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(sent)
	})
}
