package object

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The layout of a pack (docs/CKPT.md, "Packs"). All integers are little-endian.
const (
	magic       = "vftpack2"
	magicFamily = "vftpack" // of all versions

	saltSize   = 16
	headerSize = len(magic) + saltSize
	footerSize = saltSize + 4 + 4 + 4 + 16 + 16 + len(magic)

	flagEncrypted = 1

	extentSize = 4 + 4 + 2 + 1 + 1 + 16 // bytes of an extent's entry in the index
)

// Limits of what a pack may hold.
const (
	maxExtents       = 1 << 18
	maxObjects       = 1 << 18
	maxExtentObjects = 1 << 8
	maxIndex         = 4 + maxExtents*extentSize + 4 + maxObjects*(16+4) + sealSize
	// maxPack bounds the file: a last extent may go over PackSize.
	maxPack = int64(1) << 31
)

// codec says how an extent is encoded.
type codec uint8

const (
	codecRaw  codec = 0
	codecZstd codec = 1
)

// extentEntry describes an extent.
type extentEntry struct {
	offset  int64 // in the file; follows from the lengths before
	stored  uint32
	raw     uint32
	objects uint16
	kind    Kind
	codec   codec
	digest  [16]byte // of the stored bytes
}

// index is what a pack says about its content.
type index struct {
	extents []extentEntry
	ids     []ID     // in the order of the extents
	lengths []uint32 // likewise, of the objects that are not pages
}

// header returns the bytes before the first extent.
func header(salt [saltSize]byte) []byte { return append([]byte(magic), salt[:]...) }

// encode returns the index as it is stored, before sealing.
func (x *index) encode() []byte {
	b := make([]byte, 0, 4+len(x.extents)*extentSize+4+len(x.ids)*16+len(x.lengths)*4+sealSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(x.extents)))
	for i := range x.extents {
		e := &x.extents[i]
		b = binary.LittleEndian.AppendUint32(b, e.stored)
		b = binary.LittleEndian.AppendUint32(b, e.raw)
		b = binary.LittleEndian.AppendUint16(b, e.objects)
		b = append(b, byte(e.kind), byte(e.codec))
		b = append(b, e.digest[:]...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(x.ids)))
	for i := range x.ids {
		b = append(b, x.ids[i][:]...)
	}
	for _, n := range x.lengths {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// reader takes an index apart.
type reader struct{ b []byte }

// take returns the next n bytes, or nil when there are fewer.
func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// count reads a number of entries of at least size bytes each.
func (r *reader) count(what string, size, limit int) (int, error) {
	b := r.take(4)
	if b == nil {
		return 0, errors.New("index ends early")
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n > limit || n*size > len(r.b) {
		return 0, fmt.Errorf("%d %s do not fit", n, what)
	}
	return n, nil
}

// decodeIndex reads an index whose extents end at offset end, and refuses what
// contradicts itself.
func decodeIndex(b []byte, end int64, sealed int) (*index, error) {
	r := &reader{b}
	n, err := r.count("extents", extentSize, maxExtents)
	if err != nil {
		return nil, err
	}
	x := &index{extents: make([]extentEntry, n)}
	offset, objects, sized := int64(headerSize), 0, 0
	for i := range x.extents {
		e := &x.extents[i]
		e.decode(r.take(extentSize), offset)
		if err := e.check(sealed); err != nil {
			return nil, fmt.Errorf("extent %d: %w", i, err)
		}
		offset += int64(e.stored)
		objects += int(e.objects)
		if e.kind != KindPage {
			sized += int(e.objects)
		}
	}
	if offset != end {
		return nil, fmt.Errorf("extents end at %d, the index begins at %d", offset, end)
	}
	n, err = r.count("objects", 16, maxObjects)
	if err != nil {
		return nil, err
	}
	if n != objects || len(r.b) != n*16+sized*4 {
		return nil, fmt.Errorf("%d objects and %d bytes, the extents hold %d objects", n, len(r.b), objects)
	}
	x.ids = make([]ID, n)
	for i := range x.ids {
		copy(x.ids[i][:], r.take(16))
		if x.ids[i].IsZero() {
			return nil, errNoID
		}
	}
	x.lengths = make([]uint32, sized)
	for i := range x.lengths {
		x.lengths[i] = binary.LittleEndian.Uint32(r.take(4))
	}
	return x, x.checkLengths()
}

func (e *extentEntry) decode(b []byte, offset int64) {
	e.offset = offset
	e.stored = binary.LittleEndian.Uint32(b)
	e.raw = binary.LittleEndian.Uint32(b[4:])
	e.objects = binary.LittleEndian.Uint16(b[8:])
	e.kind, e.codec = Kind(b[10]), codec(b[11])
	copy(e.digest[:], b[12:])
}

// check looks at what an extent says by itself. sealed is what sealing adds.
func (e *extentEntry) check(sealed int) error {
	switch {
	case !e.kind.valid():
		return fmt.Errorf("unknown %v of object", e.kind)
	case e.codec != codecRaw && e.codec != codecZstd:
		return fmt.Errorf("unknown codec %d", e.codec)
	case e.objects == 0 || e.objects > maxExtentObjects:
		return fmt.Errorf("%d objects", e.objects)
	case e.raw == 0 || e.raw > MaxSize || int(e.stored) <= sealed || int(e.stored)-sealed > int(e.raw):
		return fmt.Errorf("%d bytes stored for %d", e.stored, e.raw)
	case e.codec == codecRaw && int(e.stored)-sealed != int(e.raw):
		return fmt.Errorf("%d bytes stored raw for %d", e.stored, e.raw)
	case e.kind == KindPage && int(e.raw) != int(e.objects)*PageSize:
		return fmt.Errorf("%d bytes for %d pages", e.raw, e.objects)
	}
	return nil
}

// checkLengths compares the lengths of objects with those of their extents.
func (x *index) checkLengths() error {
	lengths := x.lengths
	for i := range x.extents {
		e := &x.extents[i]
		if e.kind == KindPage {
			continue
		}
		sum := uint64(0)
		for _, n := range lengths[:e.objects] {
			if n == 0 || n > MaxSize {
				return fmt.Errorf("extent %d: object of %d bytes", i, n)
			}
			sum += uint64(n)
		}
		lengths = lengths[e.objects:]
		if sum != uint64(e.raw) {
			return fmt.Errorf("extent %d: objects of %d bytes in %d", i, sum, e.raw)
		}
	}
	return nil
}

// footer is the end of a pack; its hash is the pack's name.
type footer struct {
	salt      [saltSize]byte // as in the header: no two packs have one name
	encrypted bool
	index     uint32   // stored bytes of the index
	envelope  uint32   // bytes between index and footer
	digest    [16]byte // of index and envelope as they are stored
}

func (f *footer) encode() []byte {
	b := make([]byte, 0, footerSize)
	b = append(b, f.salt[:]...)
	flags := uint32(0)
	if f.encrypted {
		flags |= flagEncrypted
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, f.index)
	b = binary.LittleEndian.AppendUint32(b, f.envelope)
	b = append(b, f.digest[:]...)
	self := digest(b)
	b = append(b, self[:]...)
	return append(b, magic...)
}

// decodeFooter reads the last footerSize bytes of a file of size bytes.
func decodeFooter(b []byte, size int64) (*footer, error) {
	if err := checkMagic(b[footerSize-len(magic):]); err != nil {
		return nil, err
	}
	f := &footer{}
	copy(f.salt[:], b)
	rest := b[saltSize:]
	flags := binary.LittleEndian.Uint32(rest)
	f.encrypted = flags&flagEncrypted != 0
	f.index = binary.LittleEndian.Uint32(rest[4:])
	f.envelope = binary.LittleEndian.Uint32(rest[8:])
	copy(f.digest[:], rest[12:])
	switch {
	case digest(b[:footerSize-len(magic)-16]) != [16]byte(rest[28:44]):
		return nil, errors.New("digest of the footer differs")
	case flags&^flagEncrypted != 0:
		return nil, fmt.Errorf("unknown flags %#x", flags)
	case f.index > maxIndex, f.envelope > maxEnvelope, f.encrypted != (f.envelope > 0), f.indexOffset(size) < int64(headerSize):
		return nil, fmt.Errorf("index of %d and envelope of %d bytes in a file of %d", f.index, f.envelope, size)
	}
	return f, nil
}

func (f *footer) indexOffset(size int64) int64 {
	return size - int64(footerSize) - int64(f.envelope) - int64(f.index)
}

// checkMagic tells another version from damage.
func checkMagic(b []byte) error {
	switch {
	case string(b) == magic:
		return nil
	case string(b[:len(magicFamily)]) == magicFamily && b[len(magicFamily)] >= '1' && b[len(magicFamily)] <= '9':
		return fmt.Errorf("%w: it says %q, this vft knows %q", ErrVersion, b, magic)
	}
	return errors.New("it does not end as a pack does")
}

// readFull reads all of b, and says when the file ends before.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w after %d of %d bytes at %d", io.ErrUnexpectedEOF, n, len(b), off)
	}
	return err
}
