package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv("CKPT_TEST_CRASH"); spec != "" {
		os.Exit(crashChild(spec, os.Getenv("CKPT_TEST_DIR")))
	}
	goleak.VerifyTestMain(m)
}

const testDir = "/store"

func openMem(t testing.TB, m *faultfs.FS) *Store {
	t.Helper()
	s, err := open(m, testDir, Options{StallTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openOS(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// randomBytes gives the same bytes for the same seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b)
	return b
}

// sample is a part with known content.
type sample struct {
	id         PartID
	head, tail []byte
	blocks     []Block
	pages      []map[uint64][]byte // by block; what is missing is zero
	meta       Meta
}

// newSample makes a part with so many pages that are not zero, of which every
// fourth is the same in all samples.
func newSample(epoch uint64, guest, pages int) sample {
	seed := epoch*100 + uint64(guest)
	p := sample{
		id:     PartID{Job: "bt-mz.1", Epoch: epoch, Guest: guest},
		head:   randomBytes(seed+1, 300),
		tail:   randomBytes(seed+2, sectionChunk+77),
		blocks: []Block{{"pc.ram", uint64(2*pages+1000) * object.PageSize}, {"rom", 3 * object.PageSize}, {"none", 0}},
		pages:  []map[uint64][]byte{{}, {2: randomBytes(1, object.PageSize)}, {}},
		meta: Meta{
			Incarnation: 3, Engine: "stop-copy", CutAt: time.Unix(1_700_000_000, 42),
			ChannelState: [][]byte{randomBytes(seed+1, 1500), {}, randomBytes(seed+2, 9000)},
			Compat:       []byte(`{"machine": "pc-q35-7.2", "note": "<&>"}`),
			Extra:        map[string]string{"b": "2", "a": "1"},
		},
	}
	for i := range uint64(pages) {
		content := seed<<8 + i
		if i%4 == 0 {
			content = 1 + i
		}
		p.pages[0][i*2] = randomBytes(content, object.PageSize)
	}
	return p
}

// feed writes everything but the commit.
func (p sample) feed(w *Writer) {
	_ = w.Head(p.head, p.blocks)
	for block, pages := range p.pages {
		for _, n := range slices.Sorted(maps.Keys(pages)) {
			_ = w.Page(block, n, pages[n])
		}
	}
	_ = w.Tail(p.tail[:10])
	_ = w.Tail(p.tail[10:])
}

func (p sample) put(s *Store) (Info, error) {
	w, err := s.Create(context.Background(), p.id)
	if err != nil {
		return Info{}, err
	}
	defer w.Abort()
	p.feed(w)
	return w.Commit(context.Background(), p.meta)
}

func (p sample) mustPut(t testing.TB, s *Store) Info {
	t.Helper()
	info, err := p.put(s)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// check reads the part back and compares everything.
func (p sample) check(s *Store, manifest string) error {
	r, err := s.Open(p.id, manifest)
	if err != nil {
		return err
	}
	defer r.Close()
	return p.compare(r)
}

func (p sample) compare(r *Part) error {
	ctx := context.Background()
	differs := func(what string) error { return fmt.Errorf("%v: %s differs", p.id, what) }
	head, err := r.Head(ctx)
	if err != nil {
		return err
	}
	tail, err := r.Tail(ctx)
	switch {
	case err != nil:
		return err
	case !bytes.Equal(head, p.head):
		return differs("head")
	case !bytes.Equal(tail, p.tail):
		return differs("tail")
	case !slices.Equal(r.Blocks(), p.blocks):
		return differs("blocks")
	}
	for block, pages := range p.pages {
		want := slices.Sorted(maps.Keys(pages))
		err := r.Each(ctx, block, func(n uint64, data []byte) error {
			if len(want) == 0 || want[0] != n || !bytes.Equal(data, pages[n]) {
				return differs(fmt.Sprintf("page %d of block %d", n, block))
			}
			want = want[1:]
			return nil
		})
		if err != nil {
			return err
		}
		if len(want) > 0 {
			return differs(fmt.Sprintf("page %d of block %d", want[0], block))
		}
		dst := make([]byte, object.PageSize)
		for n := range min(p.blocks[block].Pages(), 40) {
			zero, err := r.Page(ctx, block, n, dst)
			if err != nil {
				return err
			}
			if zero != (pages[n] == nil) || !zero && !bytes.Equal(dst, pages[n]) {
				return differs(fmt.Sprintf("page %d of block %d", n, block))
			}
		}
	}
	frames, err := r.ChannelState(ctx)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(frames, p.meta.ChannelState, bytes.Equal) {
		return differs("channel state")
	}
	m := r.Manifest()
	if m.ID() != p.id || m.Incarnation != p.meta.Incarnation || m.Engine != p.meta.Engine || m.CutAt != p.meta.CutAt.UnixNano() {
		return fmt.Errorf("%v: manifest %+v", p.id, m)
	}
	return nil
}

func (p sample) mustCheck(t testing.TB, s *Store, manifest string) {
	t.Helper()
	if err := p.check(s, manifest); err != nil {
		t.Fatal(err)
	}
}

// noTemp fails when tmp is not empty.
func noTemp(t testing.TB, m *faultfs.FS) {
	t.Helper()
	if left := m.Files(testDir + "/" + tmpName); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// packFiles returns the paths of all packs.
func packFiles(m *faultfs.FS) []string { return m.Files(testDir + "/packs") }

// damagePacks inverts a bit in the middle of every pack.
func damagePacks(m *faultfs.FS) {
	for _, path := range packFiles(m) {
		m.Flip(path, int64(len(m.Bytes(path)))*4)
	}
}

// peer is another store as a source. What it does first may fail.
type peer struct {
	*Store
	before func() error
	asked  int
	spoil  func(*object.Extent)
}

func (p *peer) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	if p.before != nil {
		if err := p.before(); err != nil {
			return err
		}
	}
	p.asked += len(ids)
	return p.Store.Objects(ctx, kind, ids, func(e object.Extent) error {
		if p.spoil != nil {
			e.Stored = slices.Clone(e.Stored)
			p.spoil(&e)
		}
		return got(e)
	})
}

var errPeer = errors.New("peer is gone")
