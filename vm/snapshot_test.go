package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func begin(t *testing.T, m *Machine, e Engine, sink Sink) Snapshot {
	t.Helper()
	s, err := m.Snapshot(t.Context(), e, sink, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// neutral checks that nothing of a snapshot is left.
func neutral(t *testing.T, m *Machine, q *fakeQEMU) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state != StateRunning {
		t.Errorf("guest is %q", q.state)
	}
	if q.caps["background-snapshot"] || q.caps["pause-before-switchover"] {
		t.Errorf("capabilities left: %v", q.caps)
	}
	if _, err := os.Stat(snapPath(m)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket left: %v", err)
	}
	if m.snap.Load() != nil {
		t.Error("machine is still busy")
	}
}

func TestSnapshotSequences(t *testing.T) {
	const size = 3 << 20
	for name, c := range map[string]struct {
		engine Engine
		q      *fakeQEMU
		early  bool
		conts  int
	}{
		"background 7.2":      {EngineBackground, &fakeQEMU{autoResume: true, stream: size}, false, 0},
		"background 9.0":      {EngineBackground, &fakeQEMU{stream: size}, false, 1},
		"background no pages": {EngineBackground, &fakeQEMU{stream: 100}, false, 1},
		"pre-copy":            {EnginePreCopy, &fakeQEMU{stream: size, finishLag: 3}, false, 2},
		"pre-copy early stop": {EnginePreCopy, &fakeQEMU{stream: 1 << 10, earlyStop: true}, true, 2},
		"stop-copy":           {EngineStopCopy, &fakeQEMU{stream: size, finishLag: 2}, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			m := fakeMachine(t, c.q)
			for round := range 2 {
				sink := &bufSink{}
				s := begin(t, m, c.engine, sink)
				if _, err := s.Cut(t.Context(), nil); !errors.Is(err, ErrSequence) {
					t.Errorf("cut before prepare: %v", err)
				}
				if _, err := s.Wait(t.Context()); !errors.Is(err, ErrSequence) {
					t.Errorf("wait before cut: %v", err)
				}
				if err := s.Prepare(t.Context()); err != nil {
					t.Fatal(err)
				}
				if c.early {
					if at := <-s.EarlyStop(); at.IsZero() {
						t.Error("no time of the early stop")
					}
				}
				hooks := 0
				times, err := s.Cut(t.Context(), func(ctx context.Context) error {
					hooks++
					if st, err := m.Status(ctx); err != nil || st == StateRunning {
						t.Errorf("at the cut: %q, %v", st, err)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if hooks != 1 || times.Stopped.IsZero() || times.Fixed.Before(times.Stopped) {
					t.Errorf("%d hooks, %+v", hooks, times)
				}
				if (c.engine == EngineBackground) == times.Resumed.IsZero() {
					t.Errorf("resumed in the cut: %v", times.Resumed)
				}
				r, err := s.Wait(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if r.Bytes != int64(c.q.stream) || sink.Len() != c.q.stream || sink.closed != 1 || sink.cause != nil {
					t.Errorf("%d bytes, sink %d, closed %d (%v)", r.Bytes, sink.Len(), sink.closed, sink.cause)
				}
				if r.Pause <= 0 || r.Resumed.IsZero() || r.Total <= 0 {
					t.Errorf("%+v", r)
				}
				if err := s.Abort(t.Context()); err != nil {
					t.Errorf("abort after the end: %v", err)
				}
				neutral(t, m, c.q)
				if c.q.conts != c.conts*(round+1) {
					t.Errorf("%d conts", c.q.conts)
				}
			}
		})
	}
}

// A background snapshot is never cancelled, whatever happens.
func TestBackgroundIsNeverCancelled(t *testing.T) {
	for name, end := range map[string]func(context.Context, Snapshot, context.CancelFunc) error{
		"abort":   func(ctx context.Context, s Snapshot, _ context.CancelFunc) error { return s.Abort(ctx) },
		"context": func(_ context.Context, _ Snapshot, cancel context.CancelFunc) error { cancel(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			q := &fakeQEMU{autoResume: true, stream: 8 << 20}
			m := fakeMachine(t, q)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, pw := io.Pipe() // nobody reads
			s, err := m.Snapshot(ctx, EngineBackground, pw, SnapshotOptions{BufferBytes: 1})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Cut(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if err := end(t.Context(), s, cancel); err != nil {
				t.Fatal(err)
			}
			_, err = s.Wait(t.Context())
			if name == "abort" && !errors.Is(err, ErrAborted) || name == "context" && !errors.Is(err, context.Canceled) {
				t.Errorf("wait: %v", err)
			}
			neutral(t, m, q)
			if q.cancels != 0 {
				t.Error("migrate_cancel was sent")
			}
		})
	}
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		engine Engine
		q      *fakeQEMU
		hook   error
		sink   error
		want   string
	}{
		"no privilege":      {EngineBackground, &fakeQEMU{refuseCap: "background-snapshot", stream: 1 << 20}, nil, nil, "not supported by host kernel"},
		"background fails":  {EngineBackground, &fakeQEMU{failMigrate: "no memory", stream: 1 << 20}, nil, nil, "no memory"},
		"pre-copy fails":    {EnginePreCopy, &fakeQEMU{failMigrate: "no memory", stream: 1 << 20}, nil, nil, "no memory"},
		"stop-copy fails":   {EngineStopCopy, &fakeQEMU{failMigrate: "no memory", stream: 1 << 20}, nil, nil, "no memory"},
		"hook background":   {EngineBackground, &fakeQEMU{autoResume: true, stream: 1 << 20}, boom, nil, "boom"},
		"hook pre-copy":     {EnginePreCopy, &fakeQEMU{stream: 1 << 20}, boom, nil, "boom"},
		"hook early stop":   {EnginePreCopy, &fakeQEMU{earlyStop: true, stream: 1 << 10}, boom, nil, "boom"},
		"hook stop-copy":    {EngineStopCopy, &fakeQEMU{stream: 1 << 20}, boom, nil, "boom"},
		"sink background":   {EngineBackground, &fakeQEMU{autoResume: true, stream: 9 << 20}, nil, boom, "boom"},
		"second pass":       {EnginePreCopy, &fakeQEMU{stream: 1 << 10, secondPass: true}, nil, nil, "second pass"},
		"sink pre-copy":     {EnginePreCopy, &fakeQEMU{stream: 9 << 20}, nil, boom, "boom"},
		"sink stop-copy":    {EngineStopCopy, &fakeQEMU{stream: 9 << 20}, nil, boom, "boom"},
		"sink fails to end": {EngineStopCopy, &fakeQEMU{stream: 9 << 20}, nil, errClose, "close"},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			m := fakeMachine(t, c.q)
			s := begin(t, m, c.engine, &badSink{err: c.sink})
			err := s.Prepare(t.Context())
			if err == nil {
				_, err = s.Cut(t.Context(), func(context.Context) error { return c.hook })
			}
			if err == nil {
				_, err = s.Wait(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			neutral(t, m, c.q)
			if err := s.Prepare(t.Context()); err == nil {
				t.Error("a snapshot that is over was prepared")
			}
		})
	}
}

var errClose = errors.New("close")

// badSink fails to write, or to close with errClose.
type badSink struct{ err error }

func (s *badSink) Write(p []byte) (int, error) {
	if s.err != nil && !errors.Is(s.err, errClose) {
		return 0, s.err
	}
	return len(p), nil
}

func (s *badSink) Close() error {
	if errors.Is(s.err, errClose) {
		return s.err
	}
	return nil
}

func TestAbortPhases(t *testing.T) {
	for _, e := range Engines() {
		for _, when := range []string{"new", "prepared", "in hook", "copying"} {
			t.Run(string(e)+"/"+when, func(t *testing.T) {
				noLeaks(t)
				q := &fakeQEMU{autoResume: true, stream: 8 << 20}
				m := fakeMachine(t, q)
				_, pw := io.Pipe()
				s := begin(t, m, e, pw)
				if when != "new" {
					if err := s.Prepare(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				aborted := make(chan error, 1)
				switch when {
				case "in hook":
					_, err := s.Cut(t.Context(), func(context.Context) error {
						go func() { aborted <- s.Abort(t.Context()) }()
						for {
							if s.(*session).isAborted() {
								return nil
							}
							time.Sleep(time.Millisecond)
						}
					})
					if !errors.Is(err, ErrAborted) {
						t.Errorf("cut: %v", err)
					}
				case "copying":
					if _, err := s.Cut(t.Context(), nil); err != nil {
						t.Fatal(err)
					}
					fallthrough
				default:
					aborted <- s.Abort(t.Context())
				}
				if err := <-aborted; err != nil {
					t.Error(err)
				}
				neutral(t, m, q)
				if _, err := m.Snapshot(t.Context(), "magic", pw, SnapshotOptions{}); err == nil {
					t.Error("unknown engine")
				}
			})
		}
	}
}

// The monitor's connection is lost during the copy.
func TestMonitorLost(t *testing.T) {
	q := &fakeQEMU{autoResume: true, stream: 8 << 20}
	m := fakeMachine(t, q)
	_, pw := io.Pipe()
	s, err := m.Snapshot(t.Context(), EngineBackground, pw, SnapshotOptions{BufferBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Cut(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	_ = q.conn.Close()
	if _, err := s.Wait(t.Context()); err == nil {
		t.Error("no error")
	}
}

// A guest that Pause stopped, at whatever moment, is not run by a snapshot.
func TestPauseWins(t *testing.T) {
	for _, e := range Engines() {
		for _, when := range []string{"before", "in hook", "copying"} {
			t.Run(string(e)+"/"+when, func(t *testing.T) {
				noLeaks(t)
				q := &fakeQEMU{autoResume: true, stream: 8 << 20}
				m := fakeMachine(t, q)
				pr, pw := io.Pipe()
				s := begin(t, m, e, pw)
				if err := s.Prepare(t.Context()); err != nil {
					t.Fatal(err)
				}
				pause := func() {
					if err := m.Pause(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if when == "before" {
					pause()
				}
				_, err := s.Cut(t.Context(), func(context.Context) error {
					if when == "in hook" {
						pause()
					}
					return nil
				})
				if (when == "before") != errors.Is(err, ErrNotRunning) {
					t.Errorf("cut: %v", err)
				}
				if when == "copying" {
					pause()
				}
				go func() { _, _ = io.Copy(io.Discard, pr) }()
				if when != "before" {
					if _, err := s.Wait(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if st, err := m.Status(t.Context()); err != nil || st == StateRunning {
					t.Errorf("guest is %q, %v", st, err)
				}
				if err := m.Cont(t.Context()); err != nil {
					t.Error(err)
				}
				neutral(t, m, q)
			})
		}
	}
}

// The machine is free when a snapshot that was given up is really over.
func TestAwaitSnapshot(t *testing.T) {
	noLeaks(t)
	q := &fakeQEMU{autoResume: true, stream: 8 << 20}
	m := fakeMachine(t, q)
	if err := m.AwaitSnapshot(t.Context()); err != nil {
		t.Errorf("without a snapshot: %v", err)
	}
	_, pw := io.Pipe() // nobody reads
	s := begin(t, m, EngineBackground, pw)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.AwaitSnapshot(over); !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Errorf("while there is one: %v", err)
	}
	free := make(chan error)
	go func() {
		err := m.AwaitSnapshot(t.Context())
		if err == nil && m.snap.Load() != nil {
			err = ErrBusy
		}
		free <- err
	}()
	if err := s.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-free; err != nil {
		t.Errorf("when it is over: %v", err)
	}
}
