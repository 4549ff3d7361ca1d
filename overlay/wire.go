package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The link protocol, docs/NETWORK.md.
const (
	linkVersion = 2
	linkMagic   = "vftl"

	messageHeader = 8
	maxBody       = 1 << 20
	numberSize    = 8       // of a numbered message, first in its body
	pairHeader    = 4       // source and destination of FRAMES
	maxHandles    = 1 << 16 // networks on one link
	maxName       = 1024    // of a node or a job
)

type messageType uint8

const (
	messageHello messageType = 1 + iota
	messageWelcome
	messageRefuse
	messageNetwork
	messageFrames
	messageMark
	messageUnmark
	messagePing
	messagePong
	messageAck
)

// numbered reports whether messages of this kind are kept until the peer
// acknowledges them.
func (k messageType) numbered() bool { return k >= messageNetwork && k <= messageUnmark }

// errMessage says that a peer does not speak the link protocol.
var errMessage = errors.New("bad message on link")

// message is one message; body aliases the buffer that it was parsed from,
// and does not include the number.
type message struct {
	kind   messageType
	handle uint32
	number uint64 // 0: not of a numbered kind
	body   []byte
}

// parseMessage parses the message that buf begins with and returns its size,
// or 0 if buf does not hold all of it yet.
func parseMessage(buf []byte) (message, int, error) {
	if len(buf) < messageHeader {
		return message{}, 0, nil
	}
	first := binary.BigEndian.Uint32(buf)
	kind, length := messageType(first>>24), int(first&0xffffff)
	if length > maxBody || kind < messageHello || kind > messageAck {
		return message{}, 0, fmt.Errorf("%w: type %d, %d bytes", errMessage, kind, length)
	}
	if len(buf) < messageHeader+length {
		return message{}, 0, nil
	}
	m := message{
		kind:   kind,
		handle: binary.BigEndian.Uint32(buf[4:]),
		body:   buf[messageHeader : messageHeader+length : messageHeader+length],
	}
	if kind.numbered() {
		if length < numberSize {
			return message{}, 0, fmt.Errorf("%w: type %d, %d bytes", errMessage, kind, length)
		}
		m.number, m.body = binary.BigEndian.Uint64(m.body), m.body[numberSize:]
		if m.number == 0 {
			return message{}, 0, fmt.Errorf("%w: type %d with number 0", errMessage, kind)
		}
	}
	return m, messageHeader + length, nil
}

func appendHeader(buf []byte, kind messageType, handle uint32, length int) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(kind)<<24|uint32(length))
	return binary.BigEndian.AppendUint32(buf, handle)
}

// appendNumbered appends the header and the number of a message whose body
// has length more bytes.
func appendNumbered(buf []byte, kind messageType, handle uint32, number uint64, length int) []byte {
	buf = appendHeader(buf, kind, handle, numberSize+length)
	return binary.BigEndian.AppendUint64(buf, number)
}

// appendMark appends MARK or UNMARK.
func appendMark(buf []byte, kind messageType, handle uint32, number, epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(appendNumbered(buf, kind, handle, number, 8), epoch)
}

// epoch returns the epoch of MARK or UNMARK.
func (m message) epoch() (uint64, error) {
	if len(m.body) != 8 {
		return 0, fmt.Errorf("%w: type %d, %d bytes", errMessage, m.kind, len(m.body))
	}
	return binary.BigEndian.Uint64(m.body), nil
}

func appendNetwork(buf []byte, handle uint32, number uint64, id NetworkID) []byte {
	buf = appendNumbered(buf, messageNetwork, handle, number, 8+len(id.Job))
	buf = binary.BigEndian.AppendUint64(buf, id.Incarnation)
	return append(buf, id.Job...)
}

func (m message) network() (NetworkID, error) {
	if len(m.body) < 8 || len(m.body) > 8+maxName || m.handle >= maxHandles {
		return NetworkID{}, fmt.Errorf("%w: network %d, %d bytes", errMessage, m.handle, len(m.body))
	}
	return NetworkID{Incarnation: binary.BigEndian.Uint64(m.body), Job: string(m.body[8:])}, nil
}

// framesOverhead is what FRAMES adds to the frames.
const framesOverhead = messageHeader + numberSize + pairHeader

func appendFramesHeader(buf []byte, handle uint32, number uint64, source, destination, length int) []byte {
	buf = appendNumbered(buf, messageFrames, handle, number, pairHeader+length)
	buf = binary.BigEndian.AppendUint16(buf, uint16(source))
	return binary.BigEndian.AppendUint16(buf, uint16(destination))
}

// run returns the pair and the frames of a FRAMES message.
func (m message) run() (source, destination int, data []byte, frames int, err error) {
	if len(m.body) < pairHeader+frameHeader+minFrame {
		return 0, 0, nil, 0, fmt.Errorf("%w: %d bytes of frames", errMessage, len(m.body))
	}
	source = int(binary.BigEndian.Uint16(m.body))
	destination = int(binary.BigEndian.Uint16(m.body[2:]))
	data = m.body[pairHeader:]
	if frames, err = countFrames(data); err != nil {
		return 0, 0, nil, 0, fmt.Errorf("%w: %w", errMessage, err)
	}
	return source, destination, data, frames, nil
}

func appendPing(buf []byte, token uint64) []byte {
	return binary.BigEndian.AppendUint64(appendHeader(buf, messagePing, 0, 8), token)
}

// ping returns the token of PING.
func (m message) ping() (uint64, error) {
	if len(m.body) != 8 {
		return 0, fmt.Errorf("%w: ping of %d bytes", errMessage, len(m.body))
	}
	return binary.BigEndian.Uint64(m.body), nil
}

func appendPong(buf []byte, token, received uint64) []byte {
	buf = binary.BigEndian.AppendUint64(appendHeader(buf, messagePong, 0, 16), token)
	return binary.BigEndian.AppendUint64(buf, received)
}

func appendAck(buf []byte, received uint64) []byte {
	return binary.BigEndian.AppendUint64(appendHeader(buf, messageAck, 0, 8), received)
}

// answer returns what a listener has handled, from PONG or ACK.
func (m message) answer() (received uint64, err error) {
	switch {
	case m.kind == messagePong && len(m.body) == 16:
		return binary.BigEndian.Uint64(m.body[8:]), nil
	case m.kind == messageAck && len(m.body) == 8:
		return binary.BigEndian.Uint64(m.body), nil
	}
	return 0, fmt.Errorf("%w: type %d, %d bytes from a listener", errMessage, m.kind, len(m.body))
}

// hello is the first message of a link's dialler, and welcome the answer.
type hello struct {
	session, dial, link uint64
	node                string
}

func appendHello(buf []byte, h hello) []byte {
	buf = appendHeader(buf, messageHello, 0, len(linkMagic)+2+3*8+len(h.node))
	buf = append(buf, linkMagic...)
	buf = binary.BigEndian.AppendUint16(buf, linkVersion)
	buf = binary.BigEndian.AppendUint64(buf, h.session)
	buf = binary.BigEndian.AppendUint64(buf, h.dial)
	buf = binary.BigEndian.AppendUint64(buf, h.link)
	return append(buf, h.node...)
}

func (m message) hello() (hello, error) {
	const fixed = len(linkMagic) + 2 + 3*8
	if m.kind != messageHello || len(m.body) <= fixed || len(m.body) > fixed+maxName || string(m.body[:4]) != linkMagic {
		return hello{}, fmt.Errorf("%w: no greeting", errMessage)
	}
	if v := binary.BigEndian.Uint16(m.body[4:]); v != linkVersion {
		return hello{}, fmt.Errorf("%w: version %d, this node speaks %d", errMessage, v, linkVersion)
	}
	h := hello{
		session: binary.BigEndian.Uint64(m.body[6:]),
		dial:    binary.BigEndian.Uint64(m.body[14:]),
		link:    binary.BigEndian.Uint64(m.body[22:]),
		node:    string(m.body[fixed:]),
	}
	if h.link == 0 {
		return hello{}, fmt.Errorf("%w: link 0", errMessage)
	}
	return h, nil
}

// welcome is the answer to hello.
type welcome struct {
	session  uint64
	known    bool   // the listener has this link,
	received uint64 // and has handled its messages up to this number
	node     string
}

func appendWelcome(buf []byte, w welcome) []byte {
	known := byte(0)
	if w.known {
		known = 1
	}
	buf = appendHeader(buf, messageWelcome, 0, welcomeFixed+len(w.node))
	buf = binary.BigEndian.AppendUint16(buf, linkVersion)
	buf = binary.BigEndian.AppendUint64(buf, w.session)
	buf = binary.BigEndian.AppendUint64(buf, w.received)
	return append(append(buf, known), w.node...)
}

const welcomeFixed = 2 + 8 + 8 + 1

func (m message) welcome() (welcome, error) {
	switch {
	case m.kind == messageRefuse:
		return welcome{}, fmt.Errorf("the peer refused the link: %q", m.body)
	case m.kind != messageWelcome || len(m.body) <= welcomeFixed || len(m.body) > welcomeFixed+maxName || m.body[18] > 1:
		return welcome{}, fmt.Errorf("%w: no welcome", errMessage)
	}
	if v := binary.BigEndian.Uint16(m.body); v != linkVersion {
		return welcome{}, fmt.Errorf("%w: version %d, this node speaks %d", errMessage, v, linkVersion)
	}
	return welcome{
		session:  binary.BigEndian.Uint64(m.body[2:]),
		received: binary.BigEndian.Uint64(m.body[10:]),
		known:    m.body[18] == 1,
		node:     string(m.body[welcomeFixed:]),
	}, nil
}
