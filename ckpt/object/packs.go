package object

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// pack is what is kept in memory of a pack of the store.
type pack struct {
	name    PackName
	number  uint32 // in the table of objects
	size    int64  // of the file, bytes
	objects int
	stored  int64 // bytes of all extents
	raw     int64 // bytes of all objects
	sealer  *sealer
	extents []packExtent
	lengths []uint32 // of the objects that are not pages, in their order

	damaged atomic.Bool // something in it has been found damaged
	removed atomic.Bool // its objects are elsewhere, its file is or will be gone
}

// packExtent is an extentEntry without what reading one object does not need.
type packExtent struct {
	offset  uint32
	stored  uint32
	raw     uint32
	sized   uint32 // first of its lengths
	objects uint16
	kind    Kind
	codec   codec
}

// newPack keeps the essence of a pack's index.
func newPack(x *PackIndex) *pack {
	p := &pack{
		name: x.name, size: x.size, objects: len(x.ids), sealer: x.sealer,
		extents: make([]packExtent, len(x.extents)), lengths: x.lengths,
	}
	for i := range x.extents {
		e := &x.extents[i]
		p.extents[i] = packExtent{
			offset: uint32(e.offset), stored: e.stored, raw: e.raw, sized: x.firstSized[i],
			objects: e.objects, kind: e.kind, codec: e.codec,
		}
		p.stored += int64(e.stored)
		p.raw += int64(e.raw)
	}
	return p
}

// locate returns where the object is in its decoded extent.
func (p *pack) locate(w where) (offset, length int) {
	e := &p.extents[w.extent()]
	if e.kind == KindPage {
		return w.object() * PageSize, PageSize
	}
	lengths := p.lengths[e.sized:]
	for _, n := range lengths[:w.object()] {
		offset += int(n)
	}
	return offset, int(lengths[w.object()])
}

// share returns how many stored bytes an object stands for.
func (p *pack) share(w where) int64 {
	e := &p.extents[w.extent()]
	return int64(e.stored) / int64(e.objects)
}

// memory returns how many bytes the pack takes in memory.
func (p *pack) memory() int64 { return int64(len(p.extents))*20 + int64(len(p.lengths))*4 + 256 }

// packSet is the packs of a store, by number and by name.
type packSet struct {
	mu       sync.RWMutex
	byNumber map[uint32]*pack
	byName   map[PackName]*pack
	last     uint32 // number given last

	unreadable map[PackName]*CorruptError // files that are left alone
}

func newPackSet() *packSet {
	return &packSet{byNumber: map[uint32]*pack{}, byName: map[PackName]*pack{}, unreadable: map[PackName]*CorruptError{}}
}

func (s *packSet) setUnreadable(n PackName, err *CorruptError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreadable[n] = err
}

func (s *packSet) forgetUnreadable(n PackName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unreadable, n)
}

// add gives a pack its number.
func (s *packSet) add(p *pack) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byNumber) >= maxPackNumber {
		return fmt.Errorf("the store has %d packs, which is the most it can have", maxPackNumber)
	}
	for {
		s.last = s.last%maxPackNumber + 1
		if s.byNumber[s.last] == nil {
			break
		}
	}
	p.number = s.last
	s.byNumber[p.number], s.byName[p.name] = p, p
	return nil
}

func (s *packSet) remove(p *pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byNumber, p.number)
	delete(s.byName, p.name)
}

func (s *packSet) number(n uint32) *pack {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byNumber[n]
}

func (s *packSet) name(n PackName) *pack {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byName[n]
}

// all returns all packs, in no order.
func (s *packSet) all() []*pack {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*pack, 0, len(s.byNumber))
	for _, p := range s.byNumber {
		all = append(all, p)
	}
	return all
}

const (
	packsName = "packs"
	tmpName   = "tmp"

	// maxIdleFiles bounds the files that are kept open without being used.
	maxIdleFiles = 128
)

func (s *Store) packDir(n PackName) string {
	return filepath.Join(s.dir, packsName, n.String()[:2])
}

func (s *Store) packPath(n PackName) string { return filepath.Join(s.packDir(n), n.String()) }

// openFile opens a pack's file or takes one that is open.
func (s *Store) openFile(p *pack) (*cached[*pack, fsys.File], error) {
	return s.files.acquire(p, func() (fsys.File, int64, error) {
		f, err := s.fs.Open(s.packPath(p.name))
		return f, 1, err
	})
}

// errGone means that a pack was deleted while it was about to be read.
var errGone = errors.New("pack has been deleted")

// readExtent returns a decoded extent from the cache or from the pack. Its
// objects have not been verified. Errors: errGone, a CorruptError, or what
// keeps the file from being opened.
func (s *Store) readExtent(p *pack, extent int) (*cached[extentKey, *[]byte], error) {
	return s.decoded.acquire(extentKey{p, extent}, func() (*[]byte, int64, error) {
		f, err := s.openFile(p)
		switch {
		case errors.Is(err, fs.ErrNotExist) && p.removed.Load():
			return nil, 0, errGone
		case errors.Is(err, fs.ErrNotExist):
			return nil, 0, missingFile(p.name)
		case err != nil:
			return nil, 0, fmt.Errorf("pack %v: %w", p.name, err)
		}
		defer s.files.release(f)
		raw := s.buffers.get(int(p.extents[extent].raw))
		if err := p.decode(f.value, extent, raw, s.buffers); err != nil {
			s.buffers.put(raw)
			return nil, 0, err
		}
		return raw, int64(cap(*raw)), nil
	})
}

// extentKey names a decoded extent.
type extentKey struct {
	pack   *pack
	extent int
}

// load reads an extent as it is stored, decrypted, into the memory of buf.
func (p *pack) load(r io.ReaderAt, extent int, buf *[]byte) ([]byte, error) {
	e := &p.extents[extent]
	*buf = slices.Grow((*buf)[:0], int(e.stored))[:e.stored]
	if err := readFull(r, *buf, int64(e.offset)); err != nil {
		return nil, &CorruptError{Pack: p.name, Extent: extent, Reason: "it cannot be read", Err: err}
	}
	plain, err := p.sealer.open(uint32(extent), *buf)
	if err != nil {
		return nil, blame(p.name, extent, err)
	}
	return plain, nil
}

// decode reads an extent and decompresses it into the memory of raw. Its
// objects have not been verified.
func (p *pack) decode(r io.ReaderAt, extent int, raw *[]byte, buffers *buffers) error {
	e := &p.extents[extent]
	stored := buffers.get(int(e.stored))
	defer buffers.put(stored)
	plain, err := p.load(r, extent, stored)
	if err != nil {
		return err
	}
	if *raw, err = decode(e.codec, plain, int(e.raw), *raw); err != nil {
		return blame(p.name, extent, err)
	}
	return nil
}

// buffers are reused: of the size of an extent, and of the largest object.
type buffers struct{ extent, object sync.Pool }

const (
	// extentTarget is how many bytes of objects an extent gets.
	extentTarget = 32 * PageSize
	// bufferSlack is what encoding and sealing may add.
	bufferSlack = 1 << 10
)

// get returns an empty buffer with room for n bytes.
func (b *buffers) get(n int) *[]byte {
	pool, size := &b.extent, extentTarget+bufferSlack
	if n > size {
		pool, size = &b.object, MaxSize+bufferSlack
	}
	if n > size {
		size = n
	}
	if buf, ok := pool.Get().(*[]byte); ok && cap(*buf) >= n {
		*buf = (*buf)[:0]
		return buf
	}
	buf := make([]byte, 0, size)
	return &buf
}

func (b *buffers) put(buf *[]byte) {
	switch {
	case buf == nil:
	case cap(*buf) >= MaxSize+bufferSlack:
		b.object.Put(buf)
	case cap(*buf) >= extentTarget+bufferSlack:
		b.extent.Put(buf)
	}
}
