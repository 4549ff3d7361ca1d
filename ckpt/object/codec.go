package object

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// level is how hard the encoder tries.
type level int

// Levels, each slower than the one before. At levelRaw nothing is compressed.
const (
	levelRaw level = iota
	levelFast
	levelDefault
	levelBetter

	levels
)

// encoders make zstd frames. An encoder is made when its level is first used,
// for those of higher levels take megabytes.
type encoders struct {
	once [levels]sync.Once
	enc  [levels]*zstd.Encoder
}

func (e *encoders) at(l level) *zstd.Encoder {
	e.once[l].Do(func() {
		zl := [levels]zstd.EncoderLevel{
			levelFast: zstd.SpeedFastest, levelDefault: zstd.SpeedDefault, levelBetter: zstd.SpeedBetterCompression,
		}[l]
		enc, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zl), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
			zstd.WithWindowSize(MaxSize), zstd.WithLowerEncoderMem(true),
			zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false)) // the digests are better
		if err != nil {
			panic(fmt.Sprintf("zstd encoder: %v", err)) // only options that do not exist
		}
		e.enc[l] = enc
	})
	return e.enc[l]
}

// encode compresses raw into the memory of dst, and reports false when that
// saves less than 1/16.
func (e *encoders) encode(l level, raw, dst []byte) ([]byte, bool) {
	if l == levelRaw {
		return nil, false
	}
	out := e.at(l).EncodeAll(raw, dst[:0])
	return out, len(out) <= len(raw)-len(raw)/16
}

// decoder is shared by all stores: it holds no state between calls.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxSize), zstd.WithDecoderMaxWindow(MaxSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(fmt.Sprintf("zstd decoder: %v", err)) // only options that do not exist
	}
	return d
})

// decode returns the raw bytes of an extent in the memory of dst, of which it
// needs no more than n.
func decode(c codec, stored []byte, n int, dst []byte) ([]byte, error) {
	if c == codecRaw {
		if len(stored) != n {
			return nil, fmt.Errorf("%d raw bytes instead of %d", len(stored), n)
		}
		return append(dst[:0], stored...), nil
	}
	if cap(dst) < n {
		dst = make([]byte, 0, n)
	}
	raw, err := decoder().DecodeAll(stored, dst[:0:n])
	switch {
	case err != nil:
		return nil, err
	case len(raw) != n:
		return nil, fmt.Errorf("decodes to %d bytes instead of %d", len(raw), n)
	}
	return raw, nil
}
