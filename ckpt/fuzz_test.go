package ckpt

import (
	"bytes"
	"slices"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
)

func FuzzManifest(f *testing.F) {
	s := openMem(f, faultfs.New())
	p := newSample(1, 0, 20)
	p.mustPut(f, s)
	m, err := s.readManifest(p.id)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.raw)
	f.Add([]byte(`{"version":3}`))
	f.Add([]byte(`{"version":2,"job":"a","blocks":[{"name":"x","length":18446744073709547520,"root":"00000000000000000000000000000000"}],"tail":{"size":9223372036854775807,"chunks":[]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		// What is accepted can be written, and stays what it is.
		once, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseManifest(once)
		if err != nil {
			t.Fatalf("%q does not parse: %v", once, err)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q, %v", once, twice, err)
		}
		if info := m.info("", len(b)); info.Size < info.Changed || info.Changed < 0 {
			t.Fatalf("%+v", info)
		}
	})
}

func FuzzManifestFile(f *testing.F) {
	f.Add(manifestFile(Digest([]byte("{}")), []byte("{}")))
	f.Fuzz(func(t *testing.T, b []byte) {
		digest, raw, err := parseManifestFile(b)
		if err == nil && !bytes.Equal(manifestFile(digest, raw), b) {
			t.Fatalf("%q read as %s %q", b, digest, raw)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 9, 0, 0, 0, 0}, 2)
	f.Add([]byte{255, 255, 255, 255}, 1)
	f.Fuzz(func(t *testing.T, b []byte, count int) {
		frames, err := parseFrames(b, count)
		if err != nil {
			return
		}
		if again := encodeFrames(frames); !bytes.Equal(again, b) || len(frames) != count {
			t.Fatalf("%x read as %x", b, frames)
		}
	})
}

func FuzzHot(f *testing.F) {
	blocks := []BlockTable{{Block: Block{"ram", 1 << 30}}, {Block: Block{"rom", 2 * object.PageSize}}}
	f.Add(encodeHot([]PageRange{{0, 7, 3}, {1, 1, 1}}))
	f.Add(bytes.Repeat([]byte{255}, hotSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		hot, err := parseHot(b, blocks)
		if err != nil {
			return
		}
		if again := encodeHot(hot); !bytes.Equal(again, b) {
			t.Fatalf("%x read as %v", b, hot)
		}
		if slices.ContainsFunc(hot, func(r PageRange) bool { return r.First+r.Count > blocks[r.Block].Pages() }) {
			t.Fatalf("%v", hot)
		}
	})
}
