package wrapper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// showError says that the program's output cannot be shown any more.
type showError struct {
	stream string
	err    error
}

func (e *showError) Error() string { return "writing to " + e.stream + ": " + e.err.Error() }
func (e *showError) Unwrap() error { return e.err }

// attach carries the program's streams of one incarnation until the program
// ends, which is the result, or the connection does.
func (r *run) attach(ctx context.Context, incarnation uint64, address string) (*vftv1.AttachExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := r.conn.Sidecar(address).Attach(ctx)
	out := &attachSender{run: r, send: stream.Send, wake: make(chan struct{}, 1)}
	defer func() {
		_ = stream.CloseRequest()
		cancel()
		_ = stream.CloseResponse()
		out.wg.Wait()
	}()
	first := &vftv1.AttachRequest{
		Job: r.id, Incarnation: incarnation,
		StdoutOffset: r.stdout.begin(incarnation), StderrOffset: r.stderr.begin(incarnation),
	}
	if err := stream.Send(first); err != nil {
		if errors.Is(err, io.EOF) { // the answer says why
			_, err = stream.Receive()
		}
		return nil, fmt.Errorf("attaching to the program: %w", err)
	}
	out.wg.Add(1)
	go out.acknowledge(ctx)
	for {
		m, err := stream.Receive()
		if err != nil {
			return nil, fmt.Errorf("attached to the program: %w", err)
		}
		switch {
		case m.GetOutput() != nil:
			o := m.GetOutput()
			to := r.stdout
			if o.GetStream() == vftv1.StreamKind_STREAM_KIND_STDERR {
				to = r.stderr
			}
			if err := to.take(o.GetOffset(), o.GetData()); err != nil {
				return nil, &showError{to.name, err}
			}
			out.shown()
		case m.GetWant() != nil:
			out.want(ctx, m.GetWant().GetOffset())
		case m.GetExit() != nil:
			e := m.GetExit()
			complete := r.stdout.finish(e.GetStdoutTotal())
			if !r.stderr.finish(e.GetStderrTotal()) || !complete {
				return nil, errors.New("attached to the program: it ended before all of its output came")
			}
			return e, nil
		}
	}
}

// attachSender sends what goes to the program's side: which output was shown,
// and standard input.
type attachSender struct {
	run  *run
	wg   sync.WaitGroup
	wake chan struct{}

	sendMu sync.Mutex
	send   func(*vftv1.AttachRequest) error

	mu      sync.Mutex
	feeding bool
	wanted  int64 // offset of the last request for input
	wants   int
	asked   chan struct{} // closed at the next request
}

func (s *attachSender) put(m *vftv1.AttachRequest) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.send(m)
}

// shown has what was shown acknowledged.
func (s *attachSender) shown() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *attachSender) acknowledge(ctx context.Context) {
	defer s.wg.Done()
	var stdout, stderr int64
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		o, e := s.run.stdout.position(), s.run.stderr.position()
		if o == stdout && e == stderr {
			continue
		}
		stdout, stderr = o, e
		if s.put(&vftv1.AttachRequest{Ack: &vftv1.AttachAck{Stdout: o, Stderr: e}}) != nil {
			return // the receiving side finds out why
		}
	}
}

// want notes that input is wanted from off on.
func (s *attachSender) want(ctx context.Context, off int64) {
	s.run.noteWant(off)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = off
	s.wants++
	if s.asked != nil {
		close(s.asked)
	}
	s.asked = make(chan struct{})
	if !s.feeding {
		s.feeding = true
		s.wg.Add(1)
		go s.feed(ctx, off)
	}
}

// How long the program's side may stay silent after it got all that it asked
// for, before more is sent or the same again.
const (
	firstStall = 100 * time.Millisecond
	longStall  = 30 * time.Second
)

// feed sends input from off on. At most a window is sent beyond what was last
// asked for. A side that asked only once is taken to want everything and to
// hold us up by itself; one that asks as it goes on, but stays silent with
// input outstanding, may have dropped it and gets it again.
func (s *attachSender) feed(ctx context.Context, off int64) {
	defer s.wg.Done()
	in := s.run.stdin
	ahead := s.run.deps.Timing.StdinWindow
	stall := firstStall
	seen := s.wantedNow()
	for ctx.Err() == nil {
		now := s.wantedNow()
		if now.count != seen.count {
			if now.offset == seen.offset && now.offset < off {
				off = now.offset // asked for it again
			}
			off = max(off, now.offset)
			seen, stall, ahead = now, firstStall, s.run.deps.Timing.StdinWindow
		}
		if off-now.offset >= ahead {
			timer := time.NewTimer(stall)
			select {
			case <-now.again:
			case <-timer.C:
				if now.count > 1 {
					off = now.offset
				} else {
					ahead += stdinChunk
				}
				stall = min(2*stall, longStall)
				if now.count == 1 {
					stall = firstStall
				}
			case <-ctx.Done():
			}
			timer.Stop()
			continue
		}
		limit := int(min(stdinChunk, ahead-(off-now.offset)))
		in.want(off + int64(limit))
		data, eof, err := in.next(ctx, off, limit, now.again)
		if err != nil {
			if ctx.Err() == nil {
				s.run.report.notice("input-lost", fmt.Sprintf("standard input cannot go on: %v", err), nil)
			}
			return
		}
		if len(data) == 0 && !eof {
			continue // asked again meanwhile
		}
		if s.put(&vftv1.AttachRequest{Input: &vftv1.AttachInput{Offset: off, Data: data, Eof: eof}}) != nil {
			return
		}
		off += int64(len(data))
		if !eof {
			continue
		}
		// All is sent. Should some of it have been dropped, it goes again.
		for sent := true; sent && ctx.Err() == nil; {
			timer := time.NewTimer(stall)
			select {
			case <-now.again:
				now = s.wantedNow()
				sent = now.offset > seen.offset || now.offset >= off
				if sent {
					seen, stall = now, firstStall
				}
			case <-timer.C:
				if now.count > 1 && now.offset < off {
					off, sent = now.offset, false
				}
				stall = min(2*stall, longStall)
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
}

type wantedInput struct {
	offset int64
	count  int
	again  <-chan struct{}
}

func (s *attachSender) wantedNow() wantedInput {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wantedInput{s.wanted, s.wants, s.asked}
}
