package wrapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

var (
	errSignalled = errors.New("ended by a signal")
	errAbandoned = errors.New("left without waiting for the job's end")
)

// stopper turns signals into the job's end: the first lets mpirun end the
// program, the second ends everything at once.
type stopper struct {
	run    *run
	cancel context.CancelCauseFunc // of everything before the job is submitted
	own    chan os.Signal          // nil: signals are given to us
	ctx    context.Context
	end    context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	submitted bool
	first     syscall.Signal
	gone      chan struct{}
	goneOnce  sync.Once
}

func newStopper(ctx context.Context, r *run, cancel context.CancelCauseFunc) *stopper {
	s := &stopper{run: r, cancel: cancel, gone: make(chan struct{})}
	signals := r.deps.Signals
	if signals == nil {
		s.own = make(chan os.Signal, 8)
		// SIGPIPE is asked for so that a write to a closed stdout is an error to handle.
		signal.Notify(s.own, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE)
		signals = s.own
	}
	// Its calls must outlive what a signal cancels.
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	s.wg.Add(1)
	go s.listen(signals)
	return s
}

func (s *stopper) close() {
	if s.own != nil {
		signal.Stop(s.own)
	}
	s.end()
	s.wg.Wait()
}

// signal is the one that asked for the job's end, 0 for none.
func (s *stopper) signal() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// submitting says that the job is about to exist; false: a signal came first.
func (s *stopper) submitting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.submitted = s.first == 0
	return s.submitted
}

// abandoned is closed when the job's end is not to be waited for any longer.
func (s *stopper) abandoned() <-chan struct{} { return s.gone }

func (s *stopper) listen(signals <-chan os.Signal) {
	defer s.wg.Done()
	for {
		select {
		case got := <-signals:
			switch sig, _ := got.(syscall.Signal); sig {
			case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
				s.terminate(sig)
			case syscall.SIGUSR1, syscall.SIGUSR2:
				s.spawn(func() { s.forward(sig) })
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *stopper) spawn(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

func (s *stopper) terminate(sig syscall.Signal) {
	s.mu.Lock()
	again, submitted := s.first != 0, s.submitted
	if !again {
		s.first = sig
	}
	s.mu.Unlock()
	switch name := unix.SignalName(sig); {
	case !submitted:
		s.cancel(errSignalled)
	case !again:
		// Nobody waits for this line: a stopped terminal must not keep us.
		go s.run.report.notice("signal", fmt.Sprintf("%s: ending the job; once more ends it at once", name), nil)
		s.spawn(func() {
			s.stop("the user sent "+name, false)
			if s.sleep(s.run.deps.Timing.StopGrace) {
				s.now("the program did not end after " + name)
			}
		})
	default:
		s.spawn(func() { s.now("the user sent " + name + " again") })
	}
}

// now ends the job by force and soon leaves, whatever comes of it.
func (s *stopper) now(reason string) {
	s.spawn(func() { s.stop(reason, true) })
	s.sleep(s.run.deps.Timing.Abandon)
	s.goneOnce.Do(func() { close(s.gone) })
}

func (s *stopper) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// stop asks the coordinator to end the job. The request to submit it may
// still be on its way.
func (s *stopper) stop(reason string, now bool) {
	for {
		err := s.run.client.StopJob(s.ctx, s.run.id, reason, now)
		if err == nil || s.ctx.Err() != nil {
			return
		}
		if connect.CodeOf(err) != connect.CodeNotFound {
			go s.run.report.notice("unstopped", fmt.Sprintf("the job could not be stopped: %v", err), nil)
			return
		}
		if !s.sleep(50 * time.Millisecond) {
			return
		}
	}
}

// forward hands a signal to mpirun in guest 0, which passes it to the ranks.
func (s *stopper) forward(sig syscall.Signal) {
	view := s.run.view.now()
	if !view.attachable() {
		return
	}
	_, err := s.run.conn.Sidecar(view.address(0)).SignalProgram(s.ctx, connect.NewRequest(&vftv1.SignalProgramRequest{
		Job: s.run.id, Incarnation: view.incarnation, Signal: int32(sig),
	}))
	if err != nil && s.ctx.Err() == nil {
		s.run.report.notice("unsignalled", fmt.Sprintf("%s was not passed on: %v", unix.SignalName(sig), err), nil)
	}
}
