package vm

import (
	"sync/atomic"

	"github.com/mpirun-vft/vft/vm/stream"
)

// bitmap is a set of numbers below a bound.
type bitmap []uint64

func newBitmap(n uint64) bitmap { return make(bitmap, (n+63)/64) }

// set adds n and tells whether it was absent.
func (b bitmap) set(n uint64) bool {
	w, bit := &b[n/64], uint64(1)<<(n%64)
	absent := *w&bit == 0
	*w |= bit
	return absent
}

// setAtomic is set for several goroutines at the same time.
func (b bitmap) setAtomic(n uint64) bool {
	bit := uint64(1) << (n % 64)
	return atomic.OrUint64(&b[n/64], bit)&bit == 0
}

// batch is some pages as they go over the wire.
type batch struct {
	pc    *stream.Postcopy
	room  int
	wire  []byte
	pages []batchPage
	buf   [stream.PageSize]byte
}

// batchPage is a page of a batch; it ends at end in wire.
type batchPage struct {
	block  int
	number uint64
	end    int
}

func newBatch(pc *stream.Postcopy, pages int) *batch {
	return &batch{pc: pc, room: pages, wire: make([]byte, 0, pages*stream.MaxRecord)}
}

// page is room for the content of a page that is to be added.
func (b *batch) page() []byte { return b.buf[:] }

func (b *batch) add(block int, number uint64, data []byte) {
	b.wire = b.pc.AppendPage(b.wire, block, number*stream.PageSize, data)
	b.pages = append(b.pages, batchPage{block, number, len(b.wire)})
}

func (b *batch) addZero(block int, number uint64) {
	b.wire = b.pc.AppendZero(b.wire, block, number*stream.PageSize)
	b.pages = append(b.pages, batchPage{block, number, len(b.wire)})
}

func (b *batch) full() bool { return len(b.pages) >= b.room }

func (b *batch) reset() { b.wire, b.pages = b.wire[:0], b.pages[:0] }

// filter keeps the pages that keep accepts and returns them and their number.
func (b *batch) filter(keep func(block int, number uint64) bool) ([]byte, int) {
	to, from, n := 0, 0, 0
	for _, p := range b.pages {
		if keep(p.block, p.number) {
			if to != from {
				copy(b.wire[to:], b.wire[from:p.end])
			}
			to += p.end - from
			n++
		}
		from = p.end
	}
	return b.wire[:to], n
}
