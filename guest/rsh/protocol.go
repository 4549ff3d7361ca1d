// Package rsh starts commands on other guests of the same job. It is what an
// MPI launcher calls where it would call ssh: it carries the caller's
// directory, environment and user along, and returns when the command itself
// has ended, even if something the command left behind keeps its output open.
//
// The protocol is specified in docs/GUEST.md.
package rsh

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Version of the protocol.
const Version = 1

const (
	maxRequest = 16 << 20
	maxFrame   = 64 << 10
)

var magic = [4]byte{'V', 'F', 'T', 'R'}

// Request is what the caller wants started.
type Request struct {
	// Command is run by /bin/sh -c.
	Command string   `json:"command"`
	Dir     string   `json:"dir"`
	Env     []string `json:"env"`
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid"`
	Groups  []uint32 `json:"groups"`
	// User and Home go to /etc/passwd when the user is new to the guest.
	User  string `json:"user"`
	Home  string `json:"home"`
	Umask uint32 `json:"umask"`
}

// Frame types. From the caller: frameStdin, frameStdinEOF. From the server:
// frameStdout, frameStderr, then one of frameExit and frameFailed.
const (
	frameStdin    = 'i'
	frameStdinEOF = 'e'
	frameStdout   = 'o'
	frameStderr   = 'r'
	frameExit     = 'x'
	frameFailed   = 'f'
)

// errProtocol says that the other end does not speak this protocol.
var errProtocol = errors.New("remote start protocol error")

// writeRequest sends the magic, the version and the request.
func writeRequest(w io.Writer, r Request) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b := append(magic[:], Version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body))) //nolint:gosec // an environment is far smaller
	_, err = w.Write(append(b, body...))
	return err
}

func readRequest(r io.Reader) (Request, error) {
	var h [9]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Request{}, fmt.Errorf("read a remote start request: %w", err)
	}
	if [4]byte(h[:4]) != magic {
		return Request{}, fmt.Errorf("%w: bad magic", errProtocol)
	}
	if h[4] != Version {
		return Request{}, fmt.Errorf("%w: version %d, want %d", errProtocol, h[4], Version)
	}
	n := binary.BigEndian.Uint32(h[5:])
	if n > maxRequest {
		return Request{}, fmt.Errorf("%w: request of %d bytes", errProtocol, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Request{}, fmt.Errorf("read a remote start request: %w", err)
	}
	var req Request
	if err := json.Unmarshal(body, &req); err != nil {
		return Request{}, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return req, nil
}

// frameWriter sends whole frames from several goroutines.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (f *frameWriter) send(kind byte, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = append(f.buf[:0], kind)
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(len(payload))) //nolint:gosec // at most maxFrame
	f.buf = append(f.buf, payload...)
	_, err := f.w.Write(f.buf)
	return err
}

// readFrame reads one frame; the payload is valid until buf is used again.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if int64(n) > int64(len(buf)) {
		return 0, nil, fmt.Errorf("%w: frame of %d bytes", errProtocol, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, err
	}
	return h[0], buf[:n], nil
}
