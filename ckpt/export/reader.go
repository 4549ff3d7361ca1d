package export

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// Reader reads a file. What it returns has been compared with the running
// digest; whether an object is what its id says is for the caller to find out.
// It has in memory no more than one record.
type Reader struct {
	r       io.Reader
	sum     *blake3.Hasher
	offset  int64 // of the next byte
	begin   int64 // of the present record
	records uint64
	left    int64 // of the present blob
	pending []byte
	buf     []byte
	err     error
}

// Record is what Next returns. Data is valid until the next call of a method of
// the Reader.
type Record struct {
	Type Type
	Data []byte
	// Digest and Size describe a blob, whose content Content reads.
	Digest string
	Size   int64
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, sum: blake3.New()} }

// Next returns the next record. After the last one, when the file is complete,
// it returns io.EOF. What of a blob has not been read is passed over. Errors to
// decide on: ErrDamaged, ErrVersion, those of the reader below.
func (r *Reader) Next() (Record, error) {
	for r.err == nil && r.left > 0 {
		r.moreData()
	}
	r.pending = nil
	if r.err != nil {
		return Record{}, r.err
	}
	t, b, err := r.read()
	if err != nil {
		r.err = err
		return Record{}, err
	}
	rec, err := r.check(t, b)
	if err != nil {
		r.err = err
	}
	return rec, err
}

// check looks at whether a record may come here, and ends the file.
func (r *Reader) check(t Type, b []byte) (Record, error) {
	rec := Record{Type: t, Data: b}
	switch {
	case (r.records == 1) != (t == Job):
		return Record{}, r.Damage(fmt.Sprintf("a %v stands here", t), nil)
	case t == data:
		return Record{}, r.Damage("there is data that belongs to no blob", nil)
	case t == Blob && len(b) != blobSize, t == end && len(b) != endSize:
		return Record{}, r.Damage(fmt.Sprintf("a %v of %d bytes", t, len(b)), nil)
	case t == Blob:
		size := binary.LittleEndian.Uint64(b[digestSize:])
		if size > 1<<62 {
			return Record{}, r.Damage(fmt.Sprintf("a blob of %d bytes", size), nil)
		}
		rec.Digest, rec.Size = hex.EncodeToString(b[:digestSize]), int64(size)
		r.left = rec.Size
	case t == end:
		if n := binary.LittleEndian.Uint64(b); n != r.records-1 {
			return Record{}, r.Damage(fmt.Sprintf("it ends after %d records and says %d", r.records-1, n), nil)
		}
		if n, err := io.ReadFull(r.r, make([]byte, 1)); n > 0 {
			return Record{}, r.Damage("something follows the end", nil)
		} else if !errors.Is(err, io.EOF) {
			return Record{}, err
		}
		return Record{}, io.EOF
	}
	return rec, nil
}

// Extent takes a record of that type apart. The extent shares its memory, and
// has been checked, but its objects have not been compared with their ids.
func (r *Reader) Extent(rec Record) (object.Extent, error) {
	e, err := parseExtent(rec.Data)
	if err == nil {
		err = e.Check()
	}
	if err != nil {
		return object.Extent{}, r.Damage("the extent contradicts itself", err)
	}
	return e, nil
}

func parseExtent(b []byte) (object.Extent, error) {
	if len(b) < extentHead {
		return object.Extent{}, errors.New("it is too short")
	}
	e := object.Extent{
		Kind: object.Kind(b[0]), Compressed: b[1] == 1,
		Length: int(binary.LittleEndian.Uint32(b[4:])),
	}
	n, codec := int(binary.LittleEndian.Uint16(b[2:])), b[1]
	b = b[extentHead:]
	per := len(object.ID{})
	if e.Kind != object.KindPage {
		per += 4
	}
	if codec > 1 || n > maxObjects || len(b) < n*per {
		return object.Extent{}, fmt.Errorf("%d objects of codec %d in %d bytes", n, codec, len(b))
	}
	e.IDs = make([]object.ID, n)
	for i := range e.IDs {
		b = b[copy(e.IDs[i][:], b):]
	}
	if e.Kind != object.KindPage {
		e.Lengths = make([]uint32, n)
		for i := range e.Lengths {
			e.Lengths[i] = binary.LittleEndian.Uint32(b)
			b = b[4:]
		}
	}
	e.Stored = b
	return e, nil
}

// Content reads the blob that the last record began, to its end. Its error is
// the Reader's.
func (r *Reader) Content() io.Reader { return (*content)(r) }

type content Reader

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	r := (*Reader)(c)
	for len(r.pending) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.left == 0 {
			return 0, io.EOF
		}
		r.moreData()
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}

// moreData reads the next record of the present blob.
func (r *Reader) moreData() {
	t, b, err := r.read()
	switch {
	case err != nil:
		r.err = err
	case t != data || len(b) == 0 || int64(len(b)) > r.left:
		r.err = r.Damage(fmt.Sprintf("a %v of %d bytes where %d bytes of a blob are missing", t, len(b), r.left), nil)
	default:
		r.left -= int64(len(b))
		r.pending = b
	}
}

// Damage is an error about the record that was read last.
func (r *Reader) Damage(reason string, err error) error {
	return &DamageError{Record: r.records, Offset: r.begin, Reason: reason, Err: err}
}

// read reads one record and compares the running digest.
func (r *Reader) read() (Type, []byte, error) {
	if r.records == 0 {
		if err := r.readMagic(); err != nil {
			return 0, nil, err
		}
	}
	r.begin = r.offset
	r.records++
	var head [headSize]byte
	if err := r.full(head[:]); err != nil {
		return 0, nil, err
	}
	t, size := Type(head[0]), binary.LittleEndian.Uint32(head[1:])
	switch limit := t.limit(); {
	case limit < 0:
		return 0, nil, r.Damage(fmt.Sprintf("there is no %v", t), nil)
	case int64(size) > int64(limit):
		return 0, nil, r.Damage(fmt.Sprintf("a %v of %d bytes, at most %d are possible", t, size, limit), nil)
	}
	_, _ = r.sum.Write(head[:]) // cannot fail
	if err := r.payload(int(size)); err != nil {
		return 0, nil, err
	}
	_, _ = r.sum.Write(r.buf) // cannot fail
	var stored [sumSize]byte
	if err := r.full(stored[:]); err != nil {
		return 0, nil, err
	}
	if !bytes.Equal(stored[:], r.sum.Sum(nil)[:sumSize]) {
		return 0, nil, r.Damage("the digest differs: something in this record, or its place, is not what was written", nil)
	}
	_, _ = r.sum.Write(stored[:]) // cannot fail
	return t, r.buf, nil
}

// firstPiece is how much memory a length that nothing vouches for gets at once.
const firstPiece = 64 << 10

// payload reads n bytes into buf, which grows with what comes and not with what
// is announced.
func (r *Reader) payload(n int) error {
	r.buf = r.buf[:0]
	for len(r.buf) < n {
		have := len(r.buf)
		piece := min(n-have, max(have, firstPiece, cap(r.buf)-have))
		r.buf = append(r.buf, make([]byte, piece)...)
		if err := r.full(r.buf[have:]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) readMagic() error {
	b := make([]byte, len(magic))
	err := r.full(b)
	switch {
	case string(b) == magic && err == nil:
		_, _ = r.sum.Write(b) // cannot fail
		return nil
	case err != nil && !errors.Is(err, ErrDamaged):
		return err
	case bytes.HasPrefix(b, []byte(magicName)) && err == nil:
		return fmt.Errorf("%w: it begins with %q, known is %q: use the vft that wrote it", ErrVersion, b, magic)
	case err == nil || !bytes.HasPrefix([]byte(magic), bytes.TrimRight(b, "\x00")):
		return fmt.Errorf("%w: it begins with %q", ErrVersion, b)
	}
	return err
}

// full reads all of b.
func (r *Reader) full(b []byte) error {
	n, err := io.ReadFull(r.r, b)
	r.offset += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // a connection that broke wraps one, and says more
		return r.Damage(fmt.Sprintf("it ends at byte %d: it is not complete", r.offset), nil)
	}
	return err
}
