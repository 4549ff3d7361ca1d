package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// maxPackage is the greatest length of the devices' state that QEMU 7.2 loads
// at the beginning of a post-copy migration, in bytes.
const maxPackage = 16 << 20

// SplitTail divides a tail into the states of the devices and their
// description, which is JSON.
func SplitTail(tail []byte) (devices, description []byte, err error) {
	for i := 0; ; i++ {
		k := bytes.Index(tail[i:], []byte{secEOF, secDescription})
		if k < 0 {
			return nil, nil, malformed(int64(len(tail)), "the tail has no description at its end")
		}
		i += k
		if d := tail[i+2:]; len(d) > 4 && d[4] == '{' && d[len(d)-1] == '}' && uint64(binary.BigEndian.Uint32(d)) == uint64(len(d)-4) {
			return tail[:i], d[4:], nil
		}
	}
}

// Postcopy writes what the source of a post-copy migration says: a guest runs
// before its memory is there, and asks for pages. The order is Begin, any
// number of pages, End. No page may be sent twice: QEMU takes that for a
// failure. Pages that are not sent are zero.
type Postcopy struct {
	head Head
}

// NewPostcopy returns the messages for a guest with the given head.
func NewPostcopy(head []byte) (*Postcopy, error) {
	h, err := ParseHead(head, Limits{})
	if err != nil {
		return nil, err
	}
	return &Postcopy{head: h}, nil
}

// Blocks are the guest's blocks.
func (p *Postcopy) Blocks() []Block { return p.head.Blocks }

// Begin is all that comes before pages: QEMU loads the devices and sets the
// guest to run. It may ask for pages before it has loaded all of them.
func (p *Postcopy) Begin(tail []byte) ([]byte, error) {
	devices, _, err := SplitTail(tail)
	if err != nil {
		return nil, err
	}
	pack := command(nil, cmdListen, nil)
	pack = append(pack, devices...)
	pack = command(pack, cmdRun, nil)
	if len(pack) > maxPackage {
		return nil, fmt.Errorf("the devices' state has %d bytes, and QEMU takes at most %d in a post-copy migration", len(pack), maxPackage)
	}
	be := binary.BigEndian
	b := append([]byte(nil), p.head.Raw[:p.head.start]...)
	b = command(b, cmdOpenReturnPath, nil)
	// The page sizes of the guest's memory, as a sum, and of the target.
	b = command(b, cmdAdvise, be.AppendUint64(be.AppendUint64(nil, PageSize), PageSize))
	b = append(b, p.head.Raw[p.head.start:]...)
	b = command(b, cmdDiscard, p.discard())
	b = command(b, cmdPackaged, be.AppendUint32(nil, uint32(len(pack))))
	b = append(b, pack...)
	return be.AppendUint32(append(b, secPart), p.head.Section), nil
}

// discard names the first page of the first block. Nothing has been sent that
// would have to be discarded, but QEMU prepares for post-copy at the first
// discard, and waits for ever if there is none.
func (p *Postcopy) discard() []byte {
	name := p.head.Blocks[0].Name
	d := append([]byte{0, byte(len(name))}, name...) // version 0
	d = binary.BigEndian.AppendUint64(append(d, 0), 0)
	return binary.BigEndian.AppendUint64(d, PageSize)
}

func command(b []byte, cmd uint16, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(append(b, secCommand), cmd)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// MaxRecord is the greatest length of a page with what stands before it.
const MaxRecord = maxItem

// AppendPage appends a page of PageSize bytes to b.
func (p *Postcopy) AppendPage(b []byte, block int, offset uint64, data []byte) []byte {
	return append(p.appendName(b, block, offset|flagPage), data...)
}

// AppendZero appends a page of zeros to b.
func (p *Postcopy) AppendZero(b []byte, block int, offset uint64) []byte {
	return append(p.appendName(b, block, offset|flagZero), 0)
}

func (p *Postcopy) appendName(b []byte, block int, word uint64) []byte {
	name := p.head.Blocks[block].Name
	b = binary.BigEndian.AppendUint64(b, word)
	return append(append(b, byte(len(name))), name...)
}

// End says that no more pages come.
func (p *Postcopy) End() []byte {
	b := p.endSection(nil)
	b = binary.BigEndian.AppendUint32(append(b, secEnd), p.head.Section)
	return append(p.endSection(b), secEOF)
}

func (p *Postcopy) endSection(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, flagEOS)
	return binary.BigEndian.AppendUint32(append(b, secFooter), p.head.Section)
}

// Types of messages on the return path.
const (
	msgShut       = 1
	msgPong       = 2
	msgRequestIn  = 3 // names the block
	msgRequest    = 4 // same block as before
	maxReturnBody = 8 + 4 + 1 + 255
)

// Request is what the guest's QEMU says on the return path.
type Request struct {
	// Shut says that QEMU has finished, with Status 0 when all is well.
	// Otherwise a range of pages is asked for.
	Shut   bool
	Status uint32
	// Block and Offset say where the range begins, Length how long it is, in
	// bytes. Offset and Length are multiples of PageSize, the range is within
	// the block.
	Block          int
	Offset, Length uint64
}

// RequestReader reads a return path.
type RequestReader struct {
	r      io.Reader
	blocks []Block
	block  int // of the last request, -1 before the first
	buf    [4 + maxReturnBody]byte
	pos    int64
}

// NewRequestReader reads from r, which should be buffered, requests for pages
// of the blocks.
func (p *Postcopy) NewRequestReader(r io.Reader) *RequestReader {
	return &RequestReader{r: r, blocks: p.head.Blocks, block: -1}
}

// Next returns the next request; io.EOF when the return path ends between two.
func (r *RequestReader) Next() (Request, error) {
	for {
		if _, err := io.ReadFull(r.r, r.buf[:4]); err != nil {
			return Request{}, err
		}
		kind, n := binary.BigEndian.Uint16(r.buf[:]), int(binary.BigEndian.Uint16(r.buf[2:]))
		body := r.buf[4:]
		if n > len(body) {
			return Request{}, r.malformed("message %d of %d bytes", kind, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(r.r, body); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Request{}, err
		}
		q, ok, err := r.decode(kind, body)
		r.pos += int64(4 + n)
		if ok || err != nil {
			return q, err
		}
	}
}

func (r *RequestReader) malformed(format string, a ...any) error {
	return fmt.Errorf("return path, byte %d: %s", r.pos, fmt.Sprintf(format, a...))
}

// decode returns false for a message without meaning here.
func (r *RequestReader) decode(kind uint16, body []byte) (Request, bool, error) {
	switch {
	case kind == msgPong && len(body) == 4:
		return Request{}, false, nil
	case kind == msgShut && len(body) == 4:
		return Request{Shut: true, Status: binary.BigEndian.Uint32(body)}, true, nil
	case kind == msgRequest && len(body) == 12:
	case kind == msgRequestIn && len(body) > 13 && len(body) == 13+int(body[12]):
		name := string(body[13:])
		r.block = -1
		for i, b := range r.blocks {
			if b.Name == name {
				r.block = i
			}
		}
		if r.block < 0 {
			return Request{}, false, r.malformed("pages of block %q are asked for, which there is not", name)
		}
	default:
		return Request{}, false, r.malformed("message %d of %d bytes, which is not known", kind, len(body))
	}
	q := Request{Block: r.block, Offset: binary.BigEndian.Uint64(body), Length: uint64(binary.BigEndian.Uint32(body[8:]))}
	if q.Block < 0 {
		return q, false, r.malformed("the first request does not name a block")
	}
	if b := r.blocks[q.Block]; q.Length == 0 || q.Offset%PageSize != 0 || q.Length%PageSize != 0 || q.Offset >= b.Length || q.Length > b.Length-q.Offset {
		return q, false, r.malformed("%#x bytes at %#x of block %q are asked for, which has %#x", q.Length, q.Offset, b.Name, b.Length)
	}
	return q, true, nil
}
