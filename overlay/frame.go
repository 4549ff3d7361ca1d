package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// QEMU's framing on a stream netdev: a big-endian 32-bit length, then the
// frame (QEMU, net/stream.c and docs/NETWORK.md).
const (
	frameHeader = 4
	minFrame    = 14             // Ethernet header
	maxFrame    = 4096 + 64*1024 // QEMU's NET_BUFSIZE
	maxRun      = 256 * 1024     // bytes of consecutive frames handled as one
	readBuffer  = maxRun         // of a port
	maxWholeRun = frameHeader + maxFrame
)

// errFrameLength says that a peer's framing cannot be followed any longer.
var errFrameLength = errors.New("frame length over the limit")

// frameSize returns the size, header included, of the frame that buf begins
// with, or 0 if buf does not hold all of it yet.
func frameSize(buf []byte) (int, error) {
	if len(buf) < frameHeader {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(buf)
	if n > maxFrame {
		return 0, fmt.Errorf("%w: %d bytes", errFrameLength, n)
	}
	if size := frameHeader + int(n); size <= len(buf) {
		return size, nil
	}
	return 0, nil
}

// wholeFrames returns how many bytes at the start of buf are whole frames.
func wholeFrames(buf []byte) (int, error) {
	whole := 0
	for {
		n, err := frameSize(buf[whole:])
		if err != nil || n == 0 {
			return whole, err
		}
		whole += n
	}
}

// countFrames checks that run is nothing but whole frames of legal size and
// counts them.
func countFrames(run []byte) (int, error) {
	frames := 0
	for len(run) > 0 {
		n, err := frameSize(run)
		if err != nil {
			return 0, err
		}
		if n < frameHeader+minFrame {
			return 0, errors.New("frame cut short")
		}
		run = run[n:]
		frames++
	}
	return frames, nil
}

// prefix returns the longest part of run, whole frames, that fits in room,
// and the number of frames in it. The run must be valid.
func prefix(run []byte, room int) (bytes, frames int) {
	for bytes < len(run) {
		n := frameHeader + int(binary.BigEndian.Uint32(run[bytes:]))
		if bytes+n > room {
			break
		}
		bytes += n
		frames++
	}
	return bytes, frames
}

// splitFrames copies the frames of run, without headers, behind frames.
func splitFrames(frames [][]byte, run []byte) [][]byte {
	for len(run) > 0 {
		n := frameHeader + int(binary.BigEndian.Uint32(run))
		frames = append(frames, append([]byte(nil), run[frameHeader:n]...))
		run = run[n:]
	}
	return frames
}

// appendFrame appends frame with its header.
func appendFrame(buf, frame []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(frame)))
	return append(buf, frame...)
}

type macAddress [6]byte

func destinationOf(frame []byte) macAddress { return macAddress(frame[0:6]) }
func sourceOf(frame []byte) macAddress      { return macAddress(frame[6:12]) }
func (m macAddress) group() bool            { return m[0]&1 != 0 }
