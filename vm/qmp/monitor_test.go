package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connect(t *testing.T, handle func(*server, request)) (*Monitor, *server) {
	t.Helper()
	s, conn := serve(t, handle)
	m, err := New(t.Context(), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Disconnect() })
	return m, s
}

func TestExecute(t *testing.T) {
	m, _ := connect(t, func(s *server, r request) {
		switch r.Execute {
		case "echo":
			s.send(`{"id": %s, "return": %s}`, r.ID, r.Arguments)
		case "refuse":
			s.send(`{"id": %s, "error": {"class": "DeviceNotFound", "desc": "no such thing"}}`, r.ID)
		}
	})
	if v := m.Version().String(); v != "7.2.22" {
		t.Errorf("version %s", v)
	}
	var got struct{ A string }
	if err := m.Execute(t.Context(), "echo", map[string]string{"A": "x"}, &got); err != nil || got.A != "x" {
		t.Errorf("echo: %+v, %v", got, err)
	}
	var e *Error
	if err := m.Execute(t.Context(), "refuse", nil, nil); !errors.As(err, &e) || e.Class != ClassDeviceNotFound || e.Desc != "no such thing" || e.Command != "refuse" {
		t.Errorf("refuse: %v", err)
	}
	if Closed(e) {
		t.Error("a refused command is not a lost connection")
	}
	raw, err := m.Run([]byte(`{"execute": "echo", "arguments": {"b": 1}, "id": "mine"}`))
	var reply struct {
		Return struct{ B int }
	}
	if err != nil || json.Unmarshal(raw, &reply) != nil || reply.Return.B != 1 {
		t.Errorf("run: %s, %v", raw, err)
	}
}

// Replies in another order than the commands, events and stray replies in
// between, many callers.
func TestOutOfOrder(t *testing.T) {
	var held []request
	m, _ := connect(t, func(s *server, r request) {
		held = append(held, r)
		if len(held) < 8 {
			return
		}
		s.send(`{"return": "stray", "id": 999999}`)
		s.send(`{"return": "stray", "id": "text"}`)
		s.send(`{"error": {"class": "GenericError", "desc": "no id"}}`)
		for i := len(held) - 1; i >= 0; i-- {
			s.send(`{"event": "NOISE", "timestamp": {"seconds": 1, "microseconds": 2}}`)
			s.send(`{"return": %s, "id": %s}`, held[i].Arguments, held[i].ID)
		}
		held = nil
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var got int
			if err := m.Execute(t.Context(), "x", i, &got); err != nil || got != i {
				t.Errorf("command %d got %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

func TestContext(t *testing.T) {
	release := make(chan struct{})
	m, _ := connect(t, func(s *server, r request) {
		if r.Execute == "slow" {
			<-release
		}
		s.send(`{"return": {}, "id": %s}`, r.ID)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v", err)
	}
	// The server does not read now: the write must respect its context too.
	ctx2, cancel2 := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel2()
	if err := m.Execute(ctx2, "blocked", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("blocked: %v", err)
	}
	close(release)
	if err := m.Execute(t.Context(), "after", nil, nil); err != nil {
		t.Errorf("after: %v", err)
	}
}

func TestLongReply(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	m, _ := connect(t, func(s *server, r request) { s.send(`{"return": %q, "id": %s}`, long, r.ID) })
	var got string
	if err := m.Execute(t.Context(), "x", nil, &got); err != nil || got != long {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestConnectionLoss(t *testing.T) {
	for name, end := range map[string]func(*server){
		"close":     func(s *server) { _ = s.conn.Close() },
		"garbage":   func(s *server) { s.send("garbage") },
		"unknown":   func(s *server) { s.send(`{"what": 1}`) },
		"greeting":  func(s *server) { s.send(greeting) },
		"half line": func(s *server) { _, _ = io.WriteString(s.conn, `{"return`); _ = s.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			m, _ := connect(t, func(s *server, _ request) {
				if n++; n == 3 {
					go end(s)
				}
			})
			sub := m.Subscribe(1)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := m.Execute(t.Context(), "x", nil, nil); !Closed(err) {
						t.Errorf("pending: %v", err)
					}
				})
			}
			wg.Wait()
			<-m.Done()
			if _, ok := <-sub.C; ok {
				t.Error("event after the end")
			}
			if m.Err() == nil || m.Connect() == nil {
				t.Error("the monitor claims to be connected")
			}
			if err := m.Execute(t.Context(), "x", nil, nil); !Closed(err) {
				t.Errorf("later: %v", err)
			}
			if _, err := m.Events(t.Context()); err == nil {
				t.Error("events of a dead monitor")
			}
			if _, ok := <-m.Subscribe(1).C; ok {
				t.Error("late subscription is open")
			}
		})
	}
}

func TestDisconnect(t *testing.T) {
	m, _ := connect(t, func(*server, request) {})
	got := make(chan error)
	go func() { got <- m.Execute(context.Background(), "x", nil, nil) }()
	for m.pendingCount() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		if err := m.Disconnect(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("pending: %v", err)
	}
}

func (m *Monitor) pendingCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending)
}

func TestEvents(t *testing.T) {
	m, s := connect(t, func(s *server, r request) { s.send(`{"return": {}, "id": %s}`, r.ID) })
	small, big := m.Subscribe(2), m.Subscribe(100)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	for i := range n {
		s.send(`{"event": "E", "data": {"i": %d}, "timestamp": {"seconds": %d, "microseconds": 5}}`, i, i)
	}
	// Events come before the reply to a command sent after them.
	if err := m.Execute(t.Context(), "sync", nil, nil); err != nil {
		t.Fatal(err)
	}
	if small.Dropped() != n-2 || len(small.C) != 2 {
		t.Errorf("small queue: %d dropped, %d queued", small.Dropped(), len(small.C))
	}
	if big.Dropped() != 0 || len(big.C) != n {
		t.Errorf("big queue: %d dropped, %d queued", big.Dropped(), len(big.C))
	}
	for i := range n {
		e := <-big.C
		if e.Data["i"] != float64(i) || !EventTime(e).Equal(time.Unix(int64(i), 5000)) {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	small.Close()
	small.Close()
	cancel()
	for range stream {
	}
	big.Close()
}

func TestHandshake(t *testing.T) {
	for name, first := range map[string]string{
		"ssh":   "SSH-2.0-x\n",
		"reply": `{"return": {}, "id": 1}` + "\n",
		"empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			go func() {
				_, _ = io.WriteString(ours, first)
				_ = ours.Close()
			}()
			if _, err := New(t.Context(), theirs, nil); !Closed(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer func() { _ = ours.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := New(ctx, theirs, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	if _, err := Dial(t.Context(), "/nonexistent/qmp", nil); err == nil {
		t.Error("dialled nothing")
	}
}

func TestMessageTooLong(t *testing.T) {
	l := newLineReader(strings.NewReader(strings.Repeat("x", 200<<10) + "\n"))
	l.max = 100 << 10
	if _, err := l.next(); !errors.Is(err, ErrMessageTooLong) {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		greeting, `{"return": {}, "id": 3}`, `{"return": [], "id": null}`, `{"error": {"class": "x", "desc": "y"}}`,
		`{"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": -1}}`, "{}", "[1", "\n\n{}\n", `{"id":1e99,"return":null}`,
	} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newLineReader(strings.NewReader(string(b)))
		l.max = 1 << 16
		for {
			line, err := l.next()
			if err != nil {
				return
			}
			m, err := decodeMessage(line)
			if err != nil {
				continue
			}
			switch m.kind {
			case kindGreeting, kindError, kindEvent:
			case kindReturn:
				if !json.Valid(m.ret) {
					t.Errorf("invalid return %q", m.ret)
				}
			default:
				t.Errorf("kind %d", m.kind)
			}
			if m.hasID && !strings.Contains(string(line), fmt.Sprint(m.id)[:1]) {
				t.Errorf("id %d is not in %q", m.id, line)
			}
		}
	})
}
