package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// MaxMessage bounds the memory that one message of the peer may take. The
// largest reply of a real QEMU, query-qmp-schema, is about 200 KB.
const MaxMessage = 64 << 20

// kind tells the sorts of message that a QMP server sends apart.
type kind int

const (
	kindGreeting kind = iota + 1
	kindReturn
	kindError
	kindEvent
)

// message is one decoded message.
type message struct {
	kind     kind
	id       uint64
	hasID    bool
	ret      json.RawMessage
	class    string
	desc     string
	event    goqemu.Event
	greeting goqemu.Version
	raw      []byte
}

// wireMessage is the union of all server messages of the QMP specification.
type wireMessage struct {
	QMP *struct {
		Version goqemu.Version `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID        json.RawMessage        `json:"id"`
	Event     *string                `json:"event"`
	Data      map[string]interface{} `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// errUnknownMessage says that a message is valid JSON but none of the kinds
// that the protocol has.
var errUnknownMessage = errors.New("qmp: not a greeting, reply or event")

// decodeMessage decodes one line. The result does not share memory with line
// other than in raw and ret.
func decodeMessage(line []byte) (message, error) {
	var w wireMessage
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, fmt.Errorf("qmp: decode message: %w", err)
	}
	m := message{raw: line}
	if len(w.ID) > 0 {
		// An id that is not a number is not one of ours: such a reply
		// cannot be matched and is treated as one without an id.
		if err := json.Unmarshal(w.ID, &m.id); err == nil && !bytes.Equal(w.ID, []byte("null")) {
			m.hasID = true
		}
	}
	switch {
	case w.QMP != nil:
		m.kind, m.greeting = kindGreeting, w.QMP.Version
	case w.Error != nil:
		m.kind, m.class, m.desc = kindError, w.Error.Class, w.Error.Desc
	case w.Event != nil:
		m.kind = kindEvent
		m.event = goqemu.Event{Event: *w.Event, Data: w.Data}
		m.event.Timestamp.Seconds = w.Timestamp.Seconds
		m.event.Timestamp.Microseconds = w.Timestamp.Microseconds
	case w.Return != nil:
		m.kind, m.ret = kindReturn, w.Return
	default:
		return message{}, errUnknownMessage
	}
	return m, nil
}

// lineReader cuts a byte stream into messages, one per line.
type lineReader struct {
	r   *bufio.Reader
	max int
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10), max: MaxMessage}
}

// next returns the next non-empty line in memory of its own.
func (l *lineReader) next() ([]byte, error) {
	for {
		var line []byte
		for {
			part, err := l.r.ReadSlice('\n')
			if len(line)+len(part) > l.max {
				return nil, ErrMessageTooLong
			}
			line = append(line, part...)
			if err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				if errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) > 0 {
					err = io.ErrUnexpectedEOF
				}
				return nil, err
			}
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}
