//go:build e2e

package vm

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/vm/stream"
)

// part is a snapshot taken apart and kept in memory, as a store would keep it.
type part struct {
	head, tail []byte
	blocks     []stream.Block
	pages      []map[uint64][]byte // by block and number; zero pages are left out
	again      int                 // pages that came more than once
}

func (p *part) Head(head []byte, blocks []stream.Block) error {
	p.head, p.blocks = bytes.Clone(head), blocks
	for range blocks {
		p.pages = append(p.pages, map[uint64][]byte{})
	}
	return nil
}

func (p *part) Page(block int, offset uint64, data []byte) error {
	if _, ok := p.pages[block][offset/stream.PageSize]; ok {
		p.again++
	}
	p.pages[block][offset/stream.PageSize] = bytes.Clone(data)
	return nil
}

func (p *part) Zero(block int, offset uint64) error {
	delete(p.pages[block], offset/stream.PageSize)
	return nil
}

func (p *part) Tail(b []byte) error {
	p.tail = append(p.tail, b...)
	return nil
}

// takeApart is a part with what a sink got.
func takeApart(t *testing.T, sink *memSink) *part {
	t.Helper()
	p := &part{}
	parser := stream.NewParser(p, stream.Limits{})
	if _, err := parser.Write(sink.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := parser.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

// putTogether is a sink with a stream made of a part: the pages of every block
// backwards, the zero pages of ROMs too.
func putTogether(t *testing.T, p *part) *memSink {
	t.Helper()
	sink := &memSink{}
	w := stream.NewWriter(sink)
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	check(w.Head(p.head, p.blocks))
	for i, b := range p.blocks {
		for n := b.Pages(); n > 0; {
			n--
			if data, ok := p.pages[i][n]; ok {
				check(w.Page(i, n*stream.PageSize, data))
			} else if b.Name != ramBlock {
				check(w.Zero(i, n*stream.PageSize))
			}
		}
	}
	check(w.Tail(p.tail))
	check(w.Close())
	return sink
}

// Every engine's stream, taken apart and put together, is the guest at the cut.
func TestStreamsPutTogether(t *testing.T) {
	for _, e := range Engines() {
		t.Run(string(e), func(t *testing.T) {
			spec := testSpec(t, 256, 16, time.Millisecond)
			m, a := startGuest(t, spec)
			_, phys := a.get(t)
			sink, at, _ := take(t, m, a, e, true)
			p := takeApart(t, sink)
			again := putTogether(t, p)
			t.Logf("blocks %v, head %d bytes, tail %d bytes, %d pages again; stream %d bytes, put together %d",
				p.blocks, len(p.head), len(p.tail), p.again, sink.Len(), again.Len())
			_ = m.Close()
			m2, a2 := restored(t, spec, again, at, phys, true)
			sink, at, _ = take(t, m2, a2, e, false)
			_ = m2.Close()
			restored(t, spec, putTogether(t, takeApart(t, sink)), at, phys, false)
		})
	}
}

// TestRecordStreams writes a stream of every engine, of a guest that has next
// to nothing in its memory, to the directory VFT_TEST_RECORD: the seeds in
// vm/stream/testdata. VFT_TEST_QEMU and VFT_TEST_MACHINE name another QEMU and
// machine type.
func TestRecordStreams(t *testing.T) {
	dir := os.Getenv("VFT_TEST_RECORD")
	if dir == "" {
		t.Skip("VFT_TEST_RECORD names no directory")
	}
	ctx := testContext(t)
	bios := filepath.Join(t.TempDir(), "bios")
	if err := os.WriteFile(bios, biosPayload(), 0o600); err != nil {
		t.Fatal(err)
	}
	rundir, err := os.MkdirTemp("", "vft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(rundir) })
	spec := Spec{Name: "seed", Dir: rundir, Machine: os.Getenv("VFT_TEST_MACHINE"), MemoryMiB: 1, CPUs: 1, KillWithParent: true, extra: []string{"-bios", bios}}
	m, err := Start(ctx, spec, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	for _, e := range Engines() {
		sink := &memSink{}
		if err := snapshotInto(ctx, m, e, sink); err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		z, _ := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		_, _ = z.Write(sink.Bytes())
		_ = z.Close()
		name := fmt.Sprintf("%s-%s.gz", e, m.QEMUVersion())
		if err := os.WriteFile(filepath.Join(dir, name), buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes of %d", name, buf.Len(), sink.Len())
	}
}

// testOptions are for the QEMU that VFT_TEST_QEMU names, if any.
func testOptions(t *testing.T) Options {
	return Options{Binary: os.Getenv("VFT_TEST_QEMU"), Log: testLog(t)}
}
