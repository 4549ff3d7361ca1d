package qmp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "test"}, "capabilities": ["oob"]}}`

// request is what the fake server gets.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// server is a fake QMP server on one end of a pipe. handle is called for every
// command but qmp_capabilities, in order, on the server's goroutine.
type server struct {
	conn net.Conn
	mu   sync.Mutex
	done chan struct{}
}

// send writes one message; errors mean that the client is gone.
func (s *server) send(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = io.WriteString(s.conn, fmt.Sprintf(format, a...)+"\r\n")
}

func serve(t *testing.T, handle func(*server, request)) (*server, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	s := &server{conn: ours, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.send(greeting)
		r := bufio.NewReader(ours)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			var req request
			if err := json.Unmarshal(line, &req); err != nil {
				t.Errorf("server got %q: %v", line, err)
				return
			}
			if req.Execute == "qmp_capabilities" {
				s.send(`{"return": {}, "id": %s}`, req.ID)
				continue
			}
			handle(s, req)
		}
	}()
	t.Cleanup(func() {
		_ = ours.Close()
		<-s.done
	})
	return s, theirs
}
