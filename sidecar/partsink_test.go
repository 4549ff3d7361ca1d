package sidecar

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm/stream"
)

// recorded returns a stream of a real QEMU.
func recorded(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // only read from
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	raw, err := io.ReadAll(z)
	require.NoError(t, err)
	return raw
}

// memory is a guest as a stream describes it.
type memory struct {
	head, tail []byte
	blocks     []stream.Block
	pages      map[int]map[uint64][]byte // that are not zero
}

func (m *memory) Head(head []byte, blocks []stream.Block) error {
	m.head, m.blocks, m.pages = bytes.Clone(head), blocks, map[int]map[uint64][]byte{}
	for i := range blocks {
		m.pages[i] = map[uint64][]byte{}
	}
	return nil
}

func (m *memory) Page(block int, offset uint64, data []byte) error {
	if len(bytes.Trim(data, "\x00")) == 0 {
		return m.Zero(block, offset)
	}
	m.pages[block][offset/stream.PageSize] = bytes.Clone(data)
	return nil
}

func (m *memory) Zero(block int, offset uint64) error {
	delete(m.pages[block], offset/stream.PageSize)
	return nil
}

func (m *memory) Tail(p []byte) error {
	m.tail = append(m.tail, p...)
	return nil
}

// TestPartSinkKeepsGuests puts streams of real QEMUs into the store and
// compares the guest that is restored from it.
func TestPartSinkKeepsGuests(t *testing.T) {
	files, err := filepath.Glob("../vm/stream/testdata/*.gz")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	s := idle(t, testConfig(t, "n1", &leader{}))
	ctx := t.Context()
	for i, file := range files {
		raw := recorded(t, file)
		id := ckpt.PartID{Job: "job", Epoch: uint64(i + 1)}
		w, err := s.parts.Create(ctx, id)
		require.NoError(t, err)
		sink := newPartSink(w)
		for rest := raw; len(rest) > 0; {
			n, err := sink.Write(rest[:min(len(rest), 100_003)])
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.NoError(t, sink.Close())
		info, err := w.Commit(ctx, ckpt.Meta{})
		require.NoError(t, err, file)

		p, err := s.parts.Open(id, info.Manifest)
		require.NoError(t, err)
		saved := savedPart{p}
		want := &memory{}
		parser := stream.NewParser(want, stream.Limits{})
		_, err = parser.Write(raw)
		require.NoError(t, err)
		head, err := saved.Head(ctx)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want.head, head), "%s: head", file)
		tail, err := saved.Tail(ctx)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want.tail, tail), "%s: tail", file)
		assert.Equal(t, want.blocks, saved.Blocks())
		for block := range want.blocks {
			got := map[uint64][]byte{}
			require.NoError(t, saved.Each(ctx, block, func(n uint64, data []byte) error {
				got[n] = bytes.Clone(data)
				return nil
			}))
			assert.Equal(t, want.pages[block], got, "%s: block %d", file, block)
		}
		_, err = saved.Hot(ctx)
		require.NoError(t, err)
		p.Close()
	}
}

// TestPartSinkTakesEverything: whatever a stream is, it is taken to its end, and
// the commit says what was wrong.
func TestPartSinkTakesEverything(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	raw := recorded(t, "../vm/stream/testdata/background-7.2.22.gz")
	broken := errors.New("QEMU is gone")
	for name, tc := range map[string]struct {
		stream []byte
		end    func(*partSink) error
		want   string
	}{
		"cut off":      {raw[:len(raw)/2], (*partSink).Close, "migration stream"},
		"not a stream": {bytes.Repeat([]byte("x"), 3<<20), (*partSink).Close, "migration stream"},
		"nothing":      {nil, (*partSink).Close, "migration stream"},
		"broken":       {raw, func(s *partSink) error { return s.CloseWithError(broken) }, broken.Error()},
	} {
		w, err := s.parts.Create(t.Context(), ckpt.PartID{Job: "job", Epoch: 1})
		require.NoError(t, err)
		sink := newPartSink(w)
		n, err := sink.Write(tc.stream)
		require.NoError(t, err, name)
		assert.Equal(t, len(tc.stream), n, name)
		require.NoError(t, tc.end(sink))
		_, err = w.Commit(t.Context(), ckpt.Meta{})
		require.ErrorContains(t, err, tc.want, name)
	}
}
