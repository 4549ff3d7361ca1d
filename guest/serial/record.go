// Package serial runs one reliable session at a time over a byte line that may
// lose, repeat or invent bytes: a virtio-serial port of a guest that can be
// saved and restored at any moment while the process at the host's end dies
// and dials again.
//
// The wire format is specified in docs/GUEST.md. The host opens a session with
// [Dial]; the guest accepts sessions from a [Listener]. Both ends of a session
// are a [net.Conn].
package serial

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Version of the record format; the last byte of the magic.
const Version = 1

// MaxPayload is the largest number of payload bytes in one record. A record
// fits in one write of 32 KiB, the most that the guest's driver takes at once.
const MaxPayload = 32<<10 - headerSize

const headerSize = 32

var magic = []byte{0xf5, 'V', 'F', 'T', 's', 'e', 'r', Version}

type kind uint8

const (
	kindSyn kind = iota + 1
	kindSynAck
	kindData
	kindFin
)

type record struct {
	kind    kind
	seq     uint32
	session uint64
	payload []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord encodes r:
//
//	0  magic[8]
//	8  session, be64
//	16 sequence number of a data record, be32
//	20 kind
//	21 zero[3]
//	24 payload length, be32
//	28 CRC-32C of bytes 8 to 27 and the masked payload, be32
//	32 payload, masked
func appendRecord(b []byte, r record) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint64(b, r.session)
	b = binary.BigEndian.AppendUint32(b, r.seq)
	b = append(b, byte(r.kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.payload))) //nolint:gosec // bounded by MaxPayload
	b = append(b, 0, 0, 0, 0)
	b = append(b, r.payload...)
	payload := b[start+headerSize:]
	mask(payload, r.session)
	sum := crc32.Update(crc32.Checksum(b[start+8:start+28], castagnoli), castagnoli, payload)
	binary.BigEndian.PutUint32(b[start+28:], sum)
	return b
}

// scanner finds records in a byte stream and skips what is not one.
type scanner struct {
	buf     []byte
	skipped int
}

// feed adds bytes that were read from the line.
func (s *scanner) feed(b []byte) { s.buf = append(s.buf, b...) }

// reset forgets a record that was cut off.
func (s *scanner) reset() { s.buf = s.buf[:0] }

// next returns the next whole and valid record. Its payload is valid until the
// next call of a method.
func (s *scanner) next() (record, bool) {
	for {
		i := bytes.Index(s.buf, magic)
		if i < 0 {
			// The end may be the beginning of a magic.
			i = max(len(s.buf)-len(magic)+1, 0)
			s.drop(i)
			return record{}, false
		}
		s.drop(i)
		if len(s.buf) < headerSize {
			return record{}, false
		}
		h := s.buf[:headerSize]
		r := record{
			session: binary.BigEndian.Uint64(h[8:]),
			seq:     binary.BigEndian.Uint32(h[16:]),
			kind:    kind(h[20]),
		}
		n := binary.BigEndian.Uint32(h[24:])
		if n > MaxPayload || r.kind < kindSyn || r.kind > kindFin || h[21]|h[22]|h[23] != 0 {
			s.drop(1)
			continue
		}
		end := headerSize + int(n)
		if len(s.buf) < end {
			// This may be the head of a record whose tail was lost. Waiting for
			// the tail would swallow what follows, so a request to synchronise
			// inside the wait wins.
			if j, ok := s.synInside(); ok {
				s.drop(j)
				continue
			}
			return record{}, false
		}
		r.payload = s.buf[headerSize:end]
		sum := crc32.Update(crc32.Checksum(h[8:28], castagnoli), castagnoli, r.payload)
		if sum != binary.BigEndian.Uint32(h[28:]) {
			s.drop(1)
			continue
		}
		mask(r.payload, r.session)
		s.buf = s.buf[end:]
		return r, true
	}
}

// synInside finds a whole SYN or SYN-ACK behind the incomplete record at the
// beginning of buf. Payloads are masked, so none is inside one by accident.
func (s *scanner) synInside() (int, bool) {
	for i := 1; ; i++ {
		j := bytes.Index(s.buf[i:], magic)
		if j < 0 {
			return 0, false
		}
		i += j
		b := s.buf[i:]
		if len(b) < headerSize {
			return 0, false
		}
		k := kind(b[20])
		if (k == kindSyn || k == kindSynAck) && binary.BigEndian.Uint32(b[24:]) == 0 &&
			crc32.Checksum(b[8:28], castagnoli) == binary.BigEndian.Uint32(b[28:]) {
			return i, true
		}
	}
}

// mask XORs b with the session id, byte by byte from the most significant on,
// so that no program can put a record of this format inside a payload.
func mask(b []byte, session uint64) {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], session)
	n := 0
	for ; n+8 <= len(b); n += 8 {
		binary.BigEndian.PutUint64(b[n:], binary.BigEndian.Uint64(b[n:])^session)
	}
	for ; n < len(b); n++ {
		b[n] ^= key[n%8]
	}
}

func (s *scanner) drop(n int) {
	s.skipped += n
	s.buf = s.buf[n:]
	if len(s.buf) == 0 {
		s.buf = nil
	}
}
