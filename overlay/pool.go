package overlay

import (
	"math/bits"
	"sync"
)

const (
	minClass = 9  // 512 bytes
	maxClass = 19 // 512 KiB
)

// buffer is pooled memory; its owner passes it on or frees it once.
type buffer struct {
	b     []byte
	class int
}

// pool hands out buffers whose capacity is a power of two.
type pool struct {
	classes [maxClass + 1]sync.Pool
}

// get returns an empty buffer with room for at least n bytes.
func (p *pool) get(n int) *buffer {
	class := max(minClass, bits.Len(uint(max(n, 1)-1)))
	if class > maxClass {
		return &buffer{b: make([]byte, 0, n), class: -1}
	}
	if b, ok := p.classes[class].Get().(*buffer); ok {
		b.b = b.b[:0]
		return b
	}
	return &buffer{b: make([]byte, 0, 1<<class), class: class}
}

func (p *pool) put(b *buffer) {
	if b != nil && b.class >= 0 {
		p.classes[b.class].Put(b)
	}
}
