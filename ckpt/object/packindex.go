package object

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
)

// tailSize is how much of a pack's end is read at first, in bytes. For most
// packs that is the whole index: one request where requests are dear.
const tailSize = 1 << 20

// PackIndex is the table of contents of a pack, read from anywhere. Its methods
// may be called from several goroutines at once.
type PackIndex struct {
	name   PackName
	size   int64
	salt   [saltSize]byte
	sealer *sealer
	index
	first      []uint32 // of each extent: its first object
	firstSized []uint32 // likewise, in lengths
	sorted     func() []uint32
}

// Object says where in a pack an object is.
type Object struct {
	ID     ID
	Kind   Kind
	Extent int // number in the pack
	Offset int // in the decoded extent, bytes
	Length int // bytes
}

// ReadPackIndex reads the index of a pack of size bytes, mostly with a single
// call of ReadAt. ids are needed when the pack is encrypted, nil ones are
// ignored. The caller compares Name with the name that it asked for. Errors: a
// CorruptError, ErrVersion, ErrIdentity, or that of r.
func ReadPackIndex(r io.ReaderAt, size int64, ids ...*Identity) (*PackIndex, error) {
	if size < int64(headerSize+footerSize) || size > maxPack {
		return nil, corruptPack(fmt.Errorf("a file of %d bytes cannot be a pack", size))
	}
	tail := make([]byte, min(size, tailSize))
	if err := readFull(r, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	end := tail[len(tail)-footerSize:]
	f, err := decodeFooter(end, size)
	if errors.Is(err, ErrVersion) {
		err = checkVersion(r, end, err)
	}
	if errors.Is(err, ErrVersion) {
		return nil, err
	} else if err != nil {
		return nil, corruptPack(err)
	}
	meta, err := readMeta(r, f, tail, size)
	if err != nil {
		return nil, err
	}
	p := &PackIndex{name: PackName(digest(end)), size: size, salt: f.salt}
	if err := p.decode(f, meta, ids); err != nil {
		return nil, err
	}
	return p, nil
}

// checkVersion takes an unknown version for damage unless the pack says the
// same at its beginning.
func checkVersion(r io.ReaderAt, end []byte, unknown error) error {
	head := make([]byte, len(magic))
	if err := readFull(r, head, 0); err != nil {
		return err
	}
	if string(head) == string(end[len(end)-len(magic):]) {
		return unknown
	}
	return fmt.Errorf("it begins with %q and ends with %q", head, end[len(end)-len(magic):])
}

// readMeta returns index and envelope, which the tail may hold already.
func readMeta(r io.ReaderAt, f *footer, tail []byte, size int64) ([]byte, error) {
	n := int(f.index) + int(f.envelope)
	have := tail[:len(tail)-footerSize]
	if n <= len(have) {
		return have[len(have)-n:], nil
	}
	meta := make([]byte, n)
	copy(meta[n-len(have):], have)
	if err := readFull(r, meta[:n-len(have)], f.indexOffset(size)); err != nil {
		return nil, err
	}
	return meta, nil
}

func (p *PackIndex) decode(f *footer, meta []byte, ids []*Identity) error {
	if digest(meta) != f.digest {
		return p.corrupt(errors.New("digest of the index differs"))
	}
	if f.encrypted {
		s, err := openSealer(meta[f.index:], ids)
		if err != nil {
			return fmt.Errorf("pack %v: %w", p.name, err)
		}
		p.sealer = s
	}
	plain, err := p.sealer.open(indexNonce, meta[:f.index])
	if err != nil {
		return p.corrupt(err)
	}
	x, err := decodeIndex(plain, f.indexOffset(p.size), p.sealer.overhead())
	if err != nil {
		return p.corrupt(err)
	}
	p.index = *x
	p.prepare()
	return nil
}

// prepare computes what makes lookups fast.
func (p *PackIndex) prepare() {
	p.first, p.firstSized = make([]uint32, len(p.extents)+1), make([]uint32, len(p.extents)+1)
	for i := range p.extents {
		e := &p.extents[i]
		p.first[i+1], p.firstSized[i+1] = p.first[i]+uint32(e.objects), p.firstSized[i]
		if e.kind != KindPage {
			p.firstSized[i+1] += uint32(e.objects)
		}
	}
	p.sorted = sync.OnceValue(func() []uint32 {
		order := make([]uint32, len(p.ids))
		for i := range order {
			order[i] = uint32(i)
		}
		slices.SortFunc(order, func(a, b uint32) int { return slices.Compare(p.ids[a][:], p.ids[b][:]) })
		return order
	})
}

// corruptPack is damage outside the extents of a pack whose name is not known.
func corruptPack(err error) *CorruptError { return &CorruptError{Extent: -1, Reason: err.Error()} }

func (p *PackIndex) corrupt(err error) *CorruptError {
	e := corruptPack(err)
	e.Pack = p.name
	return e
}

// checkHeader compares the header, which reading objects does without.
func (p *PackIndex) checkHeader(r io.ReaderAt) *CorruptError {
	b := make([]byte, headerSize)
	if err := readFull(r, b, 0); err != nil {
		return &CorruptError{Pack: p.name, Extent: -1, Reason: "its header cannot be read", Err: err}
	}
	if !bytes.Equal(b, header(p.salt)) {
		return p.corrupt(errors.New("its header differs"))
	}
	return nil
}

// Name returns the pack's name, computed from its content.
func (p *PackIndex) Name() PackName { return p.name }

// Size returns the length of the pack in bytes.
func (p *PackIndex) Size() int64 { return p.size }

// Len returns the number of objects.
func (p *PackIndex) Len() int { return len(p.ids) }

// Extents returns the number of extents.
func (p *PackIndex) Extents() int { return len(p.extents) }

// ExtentRange returns where in the file an extent is stored.
func (p *PackIndex) ExtentRange(i int) (offset int64, length int) {
	return p.extents[i].offset, int(p.extents[i].stored)
}

// Objects lists all objects in the order in which they are stored.
func (p *PackIndex) Objects() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for i := range p.extents {
			for o := range p.objects(i) {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// objects lists those of one extent.
func (p *PackIndex) objects(extent int) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		offset := 0
		for i := range int(p.extents[extent].objects) {
			o := Object{
				ID: p.ids[int(p.first[extent])+i], Kind: p.extents[extent].kind,
				Extent: extent, Offset: offset, Length: p.length(extent, i),
			}
			if !yield(o) {
				return
			}
			offset += o.Length
		}
	}
}

// length returns the length of the i-th object of an extent.
func (p *PackIndex) length(extent, i int) int {
	if p.extents[extent].kind == KindPage {
		return PageSize
	}
	return int(p.lengths[int(p.firstSized[extent])+i])
}

// Find says where an object is.
func (p *PackIndex) Find(id ID) (Object, bool) {
	order := p.sorted()
	at, ok := slices.BinarySearchFunc(order, id, func(i uint32, id ID) int { return slices.Compare(p.ids[i][:], id[:]) })
	if !ok {
		return Object{}, false
	}
	extent, found := slices.BinarySearch(p.first, order[at])
	if !found {
		extent-- // the last one that begins before
	}
	for o := range p.objects(extent) {
		if o.ID == id {
			return o, true
		}
	}
	return Object{}, false
}

// ReadExtent returns the decoded bytes of an extent, of which every object has
// been verified. Errors: a CorruptError, or that of r.
func (p *PackIndex) ReadExtent(r io.ReaderAt, i int) ([]byte, error) {
	e, err := p.LoadExtent(r, i)
	if err != nil {
		return nil, err
	}
	raw, err := e.Decode(nil)
	if err != nil {
		return nil, p.blame(i, err)
	}
	return raw, nil
}

// Verify reads what of the pack is outside its index, header and extents, from
// the beginning to the end, and verifies every object. Errors: a CorruptError,
// about the first damage, or that of r.
func (p *PackIndex) Verify(r io.ReaderAt) error {
	if c := p.checkHeader(r); c != nil {
		if c.Err != nil && !errors.Is(c.Err, io.ErrUnexpectedEOF) {
			return c.Err
		}
		return c
	}
	for i := range p.extents {
		if _, err := p.ReadExtent(r, i); err != nil {
			return err
		}
	}
	return nil
}

// LoadExtent reads an extent as it is stored, decrypted but not decompressed.
// Its digest has been compared, its objects have not been verified.
func (p *PackIndex) LoadExtent(r io.ReaderAt, i int) (Extent, error) {
	entry := &p.extents[i]
	stored := make([]byte, entry.stored)
	if err := readFull(r, stored, entry.offset); errors.Is(err, io.ErrUnexpectedEOF) {
		return Extent{}, p.blame(i, err)
	} else if err != nil {
		return Extent{}, err
	}
	return p.openExtent(i, stored)
}

// openExtent makes an extent of its stored bytes, whose memory it uses.
func (p *PackIndex) openExtent(i int, stored []byte) (Extent, error) {
	entry := &p.extents[i]
	if digest(stored) != entry.digest {
		return Extent{}, p.blame(i, errDigest)
	}
	plain, err := p.sealer.open(uint32(i), stored)
	if err != nil {
		return Extent{}, p.blame(i, err)
	}
	e := Extent{
		Kind: entry.kind, IDs: p.ids[p.first[i]:p.first[i+1]:p.first[i+1]],
		Length: int(entry.raw), Compressed: entry.codec == codecZstd, Stored: plain,
	}
	if e.Kind != KindPage {
		e.Lengths = p.lengths[p.firstSized[i]:p.firstSized[i+1]:p.firstSized[i+1]]
	}
	return e, nil
}

var errDigest = errors.New("digest of the stored bytes differs")

// blame says in which extent an error was.
func (p *PackIndex) blame(extent int, err error) error { return blame(p.name, extent, err) }

func blame(pack PackName, extent int, err error) *CorruptError {
	c := &CorruptError{Pack: pack, Extent: extent, Reason: "it does not decode", Err: err}
	var bad *badObjectError
	switch {
	case errors.As(err, &bad):
		c.ID, c.Reason, c.Err = bad.id, "the content has another id", nil
	case errors.Is(err, errDigest):
		c.Reason, c.Err = err.Error(), nil
	}
	return c
}
