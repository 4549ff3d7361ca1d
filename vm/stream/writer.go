package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Writer puts a stream together that QEMU loads. The calls are those of a
// [Handler], in the same order, and Close; pages may come in any order. A page
// of RAM that is left out is zero in the guest that loads the stream, or what
// its memory backend holds. Pages of ROMs must not be left out, whatever their
// content: QEMU has filled ROMs before it loads.
type Writer struct {
	w     *bufio.Writer
	head  Head
	block int // of the last page, -1 before the first
	state parseState
	err   error
	hdr   [8 + 1 + 255]byte
}

var _ Handler = (*Writer)(nil)

// writeBuffer is the size of the pieces that Writer passes on, in bytes.
const writeBuffer = 256 << 10

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, writeBuffer), block: -1}
}

// errOrder says that calls came out of order.
var errOrder = errors.New("parts of a migration stream are written in the wrong order")

// Head writes the head. The blocks must be those of the head.
func (w *Writer) Head(head []byte, blocks []Block) error {
	if w.state != inHead {
		return w.fail(errOrder)
	}
	h, err := ParseHead(head, Limits{})
	if err != nil {
		return w.fail(err)
	}
	if !slices.Equal(h.Blocks, blocks) {
		return w.fail(fmt.Errorf("the head has the RAM blocks %v and not %v", h.Blocks, blocks))
	}
	w.head = h
	w.state = atSection
	_, err = w.w.Write(head)
	return w.fail(err)
}

// Page writes a page; see [Handler].
func (w *Writer) Page(block int, offset uint64, data []byte) error {
	if len(data) != PageSize {
		return w.fail(fmt.Errorf("a page of %d bytes", len(data)))
	}
	return w.record(block, offset, flagPage, data)
}

// Zero writes a page of zeros.
func (w *Writer) Zero(block int, offset uint64) error {
	return w.record(block, offset, flagZero, []byte{0})
}

func (w *Writer) record(block int, offset uint64, flags uint64, body []byte) error {
	if w.err != nil {
		return w.err
	}
	if block < 0 || block >= len(w.head.Blocks) || offset >= w.head.Blocks[block].Length || offset%PageSize != 0 {
		return w.fail(fmt.Errorf("there is no page at %#x of block %d", offset, block))
	}
	if err := w.begin(); err != nil {
		return err
	}
	b := w.hdr[:0]
	if block == w.block {
		b = binary.BigEndian.AppendUint64(b, offset|flags|flagContinue)
	} else {
		name := w.head.Blocks[block].Name
		b = binary.BigEndian.AppendUint64(b, offset|flags)
		b = append(b, byte(len(name)))
		b = append(b, name...)
	}
	w.block = block
	if _, err := w.w.Write(b); err != nil {
		return w.fail(err)
	}
	_, err := w.w.Write(body)
	return w.fail(err)
}

// begin opens the one section of pages.
func (w *Writer) begin() error {
	switch w.state {
	case inRecords:
		return nil
	case atSection:
		w.state = inRecords
		b := binary.BigEndian.AppendUint32(append(w.hdr[:0], secPart), w.head.Section)
		_, err := w.w.Write(b)
		return w.fail(err)
	default:
		return w.fail(errOrder)
	}
}

// end closes the section of pages.
func (w *Writer) end() error {
	b := binary.BigEndian.AppendUint64(w.hdr[:0], flagEOS)
	b = append(b, secFooter)
	b = binary.BigEndian.AppendUint32(b, w.head.Section)
	_, err := w.w.Write(b)
	return w.fail(err)
}

// Tail writes a piece of the tail.
func (w *Writer) Tail(p []byte) error {
	if w.err != nil {
		return w.err
	}
	if w.state != inTail {
		// A guest without a page is written with an empty section, too.
		if err := w.begin(); err != nil {
			return err
		}
		if err := w.end(); err != nil {
			return err
		}
		w.state = inTail
	}
	_, err := w.w.Write(p)
	return w.fail(err)
}

// Close writes out what is buffered. It does not close the writer below.
func (w *Writer) Close() error {
	if w.err == nil && w.state != inTail {
		return w.fail(errOrder)
	}
	if w.err == nil {
		return w.fail(w.w.Flush())
	}
	return w.err
}

func (w *Writer) fail(err error) error {
	if w.err == nil && err != nil {
		w.err = fmt.Errorf("write migration stream: %w", err)
	}
	return w.err
}
