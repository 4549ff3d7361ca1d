package export

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// Writer writes a file. The order of the calls is Job, then the others in any
// order, then End. The first error ends the file: every later call returns it.
type Writer struct {
	w       io.Writer
	sum     *blake3.Hasher
	records uint64
	bytes   int64
	buf     []byte
	err     error
}

// NewWriter returns a Writer to w, to which nothing has been written yet.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, sum: blake3.New()} }

// Bytes is how long the file is so far.
func (w *Writer) Bytes() int64 { return w.bytes }

// Job writes what the file says of the job and the epoch.
func (w *Writer) Job(b []byte) error {
	if w.err == nil && w.records == 0 {
		w.write([]byte(magic))
	}
	return w.record(Job, b)
}

// Manifest writes the manifest of a part.
func (w *Writer) Manifest(b []byte) error { return w.record(Manifest, b) }

// Extent writes objects.
func (w *Writer) Extent(e object.Extent) error {
	if err := e.Check(); err != nil {
		return w.fail(fmt.Errorf("export: %w", err))
	}
	b := append(w.buf[:0], byte(e.Kind), 0)
	if e.Compressed {
		b[1] = 1
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(e.IDs)))
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Length))
	for _, id := range e.IDs {
		b = append(b, id[:]...)
	}
	for _, n := range e.Lengths {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	w.buf = append(b, e.Stored...)
	return w.record(Extent, w.buf)
}

// Blob writes a blob of size bytes, whose digest is 64 hex digits. It does not
// compare the digest with the content: whoever takes the file does.
func (w *Writer) Blob(digest string, size int64, r io.Reader) error {
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != digestSize || size < 0 {
		return w.fail(fmt.Errorf("export: a blob of %d bytes named %q", size, digest))
	}
	if err := w.record(Blob, binary.LittleEndian.AppendUint64(raw, uint64(size))); err != nil {
		return err
	}
	buf := make([]byte, min(size, maxData))
	for size > 0 {
		p := buf[:min(size, maxData)]
		if _, err := io.ReadFull(r, p); err != nil {
			return w.fail(fmt.Errorf("export: reading blob %s: %w", digest, err))
		}
		if err := w.record(data, p); err != nil {
			return err
		}
		size -= int64(len(p))
	}
	return nil
}

// End completes the file.
func (w *Writer) End() error {
	if err := w.record(end, binary.LittleEndian.AppendUint64(nil, w.records)); err != nil {
		return err
	}
	w.err = errors.New("export: the file has ended")
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

func (w *Writer) record(t Type, b []byte) error {
	switch {
	case w.err != nil:
		return w.err
	case len(b) > t.limit():
		return w.fail(fmt.Errorf("export: a %v of %d bytes, at most %d are allowed", t, len(b), t.limit()))
	case (w.records == 0) != (t == Job):
		return w.fail(fmt.Errorf("export: a %v as record %d", t, w.records+1))
	}
	head := binary.LittleEndian.AppendUint32([]byte{byte(t)}, uint32(len(b)))
	w.write(head)
	w.write(b)
	w.write(w.sum.Sum(nil)[:sumSize])
	w.records++
	return w.err
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	_, _ = w.sum.Write(b) // cannot fail
	n, err := w.w.Write(b)
	w.bytes += int64(n)
	if err != nil {
		_ = w.fail(fmt.Errorf("export: %w", err))
	}
}
