package vm

import (
	"bytes"
	"context"

	"github.com/mpirun-vft/vft/vm/stream"
)

// savedStream is a snapshot in memory, taken apart: a Sink for the snapshot
// and then a Saved. It is for guests of a few pages.
type savedStream struct {
	parser *stream.Parser
	head   []byte
	tail   []byte
	blocks []stream.Block
	pages  []map[uint64][]byte // by block and number; zero pages are left out
}

func newSavedStream() *savedStream {
	s := &savedStream{}
	s.parser = stream.NewParser(streamHandler{s}, stream.Limits{})
	return s
}

// Write implements Sink.
func (s *savedStream) Write(p []byte) (int, error) { return s.parser.Write(p) }

// Close implements Sink.
func (s *savedStream) Close() error { return s.parser.Close() }

// Head implements Saved.
func (s *savedStream) Head(context.Context) ([]byte, error) { return s.head, nil }

// Tail implements Saved.
func (s *savedStream) Tail(context.Context) ([]byte, error) { return s.tail, nil }

// Blocks implements Saved.
func (s *savedStream) Blocks() []stream.Block { return s.blocks }

// Hot implements Saved.
func (s *savedStream) Hot(context.Context) ([]PageRange, error) { return nil, nil }

// Page implements Saved.
func (s *savedStream) Page(_ context.Context, block int, number uint64, dst []byte) (bool, error) {
	data, ok := s.pages[block][number]
	copy(dst, data)
	return !ok, nil
}

// Each implements Saved.
func (s *savedStream) Each(_ context.Context, block int, fn func(uint64, []byte) error) error {
	for n := range s.blocks[block].Pages() {
		if data, ok := s.pages[block][n]; ok {
			if err := fn(n, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// streamHandler fills a savedStream.
type streamHandler struct{ s *savedStream }

// Head implements stream.Handler.
func (h streamHandler) Head(head []byte, blocks []stream.Block) error {
	h.s.head, h.s.blocks = bytes.Clone(head), blocks
	for range blocks {
		h.s.pages = append(h.s.pages, map[uint64][]byte{})
	}
	return nil
}

// Page implements stream.Handler.
func (h streamHandler) Page(block int, offset uint64, data []byte) error {
	h.s.pages[block][offset/stream.PageSize] = bytes.Clone(data)
	return nil
}

// Zero implements stream.Handler.
func (h streamHandler) Zero(block int, offset uint64) error {
	delete(h.s.pages[block], offset/stream.PageSize)
	return nil
}

// Tail implements stream.Handler.
func (h streamHandler) Tail(p []byte) error {
	h.s.tail = append(h.s.tail, p...)
	return nil
}
