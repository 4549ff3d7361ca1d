package sidecar

import (
	"context"
	"errors"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm"
	"github.com/mpirun-vft/vft/vm/stream"
)

// partSink takes QEMU's stream apart into a part of the store. It takes the
// stream to its end, whatever becomes of the part: an old QEMU that is not read
// from freezes its guest. What went wrong is said by the part's commit.
type partSink struct {
	part   *ckpt.Writer
	parser *stream.Parser
	lost   bool
}

var _ vm.Sink = (*partSink)(nil)

func newPartSink(part *ckpt.Writer) *partSink {
	return &partSink{part: part, parser: stream.NewParser(partPages{part}, stream.Limits{})}
}

// Write takes the next piece of the stream. It waits while the store has too
// much on its way to the disk, and never fails.
func (s *partSink) Write(b []byte) (int, error) {
	if !s.lost {
		if _, err := s.parser.Write(b); err != nil {
			s.lost = true
			s.part.Fail(err)
		}
	}
	return len(b), nil
}

// Close implements vm.Sink. It does not complete the part: the channel state and
// the description follow.
func (s *partSink) Close() error {
	if err := s.parser.Close(); err != nil {
		s.part.Fail(err)
	}
	return nil
}

// CloseWithError ends a stream that is not complete.
func (s *partSink) CloseWithError(err error) error {
	s.part.Fail(err)
	return nil
}

// partPages hands the pages of a stream to a part.
type partPages struct{ *ckpt.Writer }

var _ stream.Handler = partPages{}

// Head implements stream.Handler.
func (p partPages) Head(head []byte, blocks []stream.Block) error {
	own := make([]ckpt.Block, len(blocks))
	for i, b := range blocks {
		own[i] = ckpt.Block{Name: b.Name, Length: b.Length}
	}
	return p.Writer.Head(head, own)
}

// Page implements stream.Handler.
func (p partPages) Page(block int, offset uint64, data []byte) error {
	return p.Writer.Page(block, offset/stream.PageSize, data)
}

// Zero implements stream.Handler.
func (p partPages) Zero(block int, offset uint64) error {
	return p.Writer.Zero(block, offset/stream.PageSize)
}

// savedPart is a part of the store as a guest to be restored.
type savedPart struct{ *ckpt.Part }

var _ vm.Saved = savedPart{}

// Blocks implements vm.Saved.
func (p savedPart) Blocks() []stream.Block {
	blocks := p.Part.Blocks()
	out := make([]stream.Block, len(blocks))
	for i, b := range blocks {
		out[i] = stream.Block{Name: b.Name, Length: b.Length}
	}
	return out
}

// Hot implements vm.Saved. A part whose hot pages cannot be read can still be
// restored.
func (p savedPart) Hot(ctx context.Context) ([]vm.PageRange, error) {
	hot, err := p.Part.Hot(ctx)
	if errors.Is(err, ckpt.ErrCorrupt) {
		return nil, nil
	}
	out := make([]vm.PageRange, len(hot))
	for i, r := range hot {
		out[i] = vm.PageRange{Block: r.Block, First: r.First, Count: r.Count}
	}
	return out, err
}
