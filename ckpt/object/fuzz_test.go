package object

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// mend makes the digests of a pack agree with whatever is in it, so that the
// fuzzer gets behind them.
func mend(pack []byte) []byte {
	if len(pack) < headerSize+footerSize {
		return pack
	}
	pack = bytes.Clone(pack)
	copy(pack, magic)
	end := pack[len(pack)-footerSize:]
	copy(end[footerSize-len(magic):], magic)
	meta := int64(binary.LittleEndian.Uint32(end[saltSize+4:])) + int64(binary.LittleEndian.Uint32(end[saltSize+8:]))
	if at := int64(len(pack)-footerSize) - meta; at >= 0 {
		d := digest(pack[at : len(pack)-footerSize])
		copy(end[saltSize+12:], d[:])
	}
	self := digest(end[:footerSize-len(magic)-16])
	copy(end[footerSize-len(magic)-16:], self[:])
	return pack
}

// FuzzReadPackIndex reads everything of whatever is called a pack. What is read
// without an error is what its id says.
func FuzzReadPackIndex(f *testing.F) {
	id, err := GenerateIdentity()
	if err != nil {
		f.Fatal(err)
	}
	for _, opt := range []Options{smallPacks(nil), {Identity: id, PackSize: 64 << 10}} {
		m, path := onePack(f, opt, tiny())
		f.Add(m.Bytes(path))
	}
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = mend(b)
		r := bytes.NewReader(b)
		x, err := ReadPackIndex(r, int64(len(b)), id)
		if err != nil {
			return
		}
		for i := range x.Extents() {
			raw, err := x.ReadExtent(r, i)
			if err != nil {
				continue
			}
			for o := range x.objects(i) {
				if Sum(o.Kind, raw[o.Offset:][:o.Length]) != o.ID {
					t.Fatalf("%+v was read wrongly", o)
				}
				if _, ok := x.Find(o.ID); !ok {
					t.Fatalf("%+v is not found", o)
				}
			}
		}
	})
}

// FuzzDecodeIndex: an index that is accepted has one spelling.
func FuzzDecodeIndex(f *testing.F) {
	m, path := onePack(f, smallPacks(nil), tiny())
	pack := m.Bytes(path)
	foot, err := decodeFooter(pack[len(pack)-footerSize:], int64(len(pack)))
	if err != nil {
		f.Fatal(err)
	}
	at := foot.indexOffset(int64(len(pack)))
	f.Add(pack[at:at+int64(foot.index)], at, false)
	f.Fuzz(func(t *testing.T, b []byte, end int64, sealed bool) {
		overhead := 0
		if sealed {
			overhead = sealSize
		}
		x, err := decodeIndex(b, end, overhead)
		if err == nil && !bytes.Equal(x.encode(), b) {
			t.Fatal("another spelling is accepted")
		}
	})
}

// FuzzExtent: what another node sends.
func FuzzExtent(f *testing.F) {
	two := newSample(KindData, bytes.Repeat([]byte("data"), 100))
	var enc encoders
	frame, _ := enc.encode(levelDefault, append(bytes.Clone(two.data), two.data...), nil)
	f.Add(uint8(KindData), 2, 400, 800, true, frame)
	f.Add(uint8(KindPage), 1, 0, PageSize, false, page(1).data)
	f.Fuzz(func(t *testing.T, kind uint8, objects, length, total int, compressed bool, stored []byte) {
		if objects < 0 || objects > 1<<10 {
			return
		}
		e := Extent{Kind: Kind(kind), IDs: make([]ID, objects), Length: total, Compressed: compressed, Stored: stored}
		for i := range e.IDs {
			e.IDs[i] = two.id
			if e.Kind != KindPage {
				e.Lengths = append(e.Lengths, uint32(length))
			}
		}
		raw, err := e.Decode(nil)
		if err != nil {
			return
		}
		for i, b := range e.split(raw) {
			if Sum(e.Kind, b) != e.IDs[i] {
				t.Fatal("wrong object")
			}
		}
	})
}
