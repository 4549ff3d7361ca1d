package ckpt

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// benchPage writes a page that compresses about as well as memory in use.
func benchPage(page []byte, n uint64) {
	r := rand.New(rand.NewPCG(n, 1))
	for i := 0; i < len(page); i += 16 {
		binary.LittleEndian.PutUint64(page[i:], r.Uint64()&0xffffff)
		binary.LittleEndian.PutUint64(page[i+8:], n)
	}
}

// BenchmarkIngest feeds guests of 256 MiB to a store: pages that it does not
// have, pages that it has, and zero pages.
func BenchmarkIngest(b *testing.B) {
	const pages = 256 << 20 / object.PageSize
	memory := make([]byte, pages*object.PageSize)
	for n := range uint64(pages) {
		benchPage(memory[n*object.PageSize:][:object.PageSize], n)
	}
	for _, kind := range []string{"new", "unchanged", "zero"} {
		b.Run(kind, func(b *testing.B) {
			s := openOS(b, filepath.Join(b.TempDir(), "s"))
			epoch := uint64(0)
			put := func() {
				epoch++
				w, err := s.Create(b.Context(), PartID{Job: "bench", Epoch: epoch})
				if err != nil {
					b.Fatal(err)
				}
				_ = w.Head(nil, []Block{{"ram", pages * object.PageSize}})
				for n := range uint64(pages) {
					page := memory[n*object.PageSize:][:object.PageSize]
					switch kind {
					case "zero":
						err = w.Zero(0, n)
					case "new":
						binary.LittleEndian.PutUint64(page[2048:], epoch)
						err = w.Page(0, n, page)
					default:
						err = w.Page(0, n, page)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if _, err := w.Commit(b.Context(), Meta{}); err != nil {
					b.Fatal(err)
				}
			}
			if kind == "unchanged" {
				put()
			}
			b.SetBytes(pages * object.PageSize)
			for b.Loop() {
				put()
			}
		})
	}
}

// BenchmarkRead reads a part page by page in order, as a restore does.
func BenchmarkRead(b *testing.B) {
	s := openOS(b, filepath.Join(b.TempDir(), "s"))
	p := newSample(1, 0, 20000)
	info := p.mustPut(b, s)
	r, err := s.Open(p.id, info.Manifest)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.SetBytes(20000 * object.PageSize)
	for b.Loop() {
		n := 0
		if err := r.Each(b.Context(), 0, func(uint64, []byte) error { n++; return nil }); err != nil || n != 20000 {
			b.Fatal(fmt.Errorf("%d pages, %w", n, err))
		}
	}
}
