package wrapper

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// inStream is the program's standard input. What was read is kept, because a
// restarted program asks for it again; nothing is read before it is wanted.
type inStream struct {
	source io.Reader

	mu     sync.Mutex
	kept   *spool
	eof    bool
	err    error // of keeping what was read
	demand int64 // bytes may be read up to here
	change chan struct{}
}

func newInStream(source io.Reader, tmp string) *inStream {
	return &inStream{source: source, kept: newSpool(tmp), change: make(chan struct{})}
}

func (s *inStream) changed() {
	close(s.change)
	s.change = make(chan struct{})
}

// want allows reading up to off.
func (s *inStream) want(off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off > s.demand {
		s.demand = off
		s.changed()
	}
}

// next returns input at off, at most limit bytes, waiting for some until
// interrupt is closed. eof: the input ends behind data.
func (s *inStream) next(ctx context.Context, off int64, limit int, interrupt <-chan struct{}) (data []byte, eof bool, err error) {
	for {
		s.mu.Lock()
		change := s.change
		switch {
		case s.err != nil:
			err = s.err
		case off < s.kept.end:
			data = make([]byte, limit)
			var n int
			n, err = s.kept.read(data, off)
			data = data[:n]
			eof = s.eof && off+int64(n) == s.kept.end
		case s.eof:
			eof = true
		}
		s.mu.Unlock()
		if err != nil || eof || len(data) > 0 {
			return data, eof, err
		}
		select {
		case <-change:
		case <-interrupt:
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// size is how many bytes are kept.
func (s *inStream) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.end - s.kept.base
}

func (s *inStream) trim(off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.trim(off)
}

func (s *inStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.close()
}

const stdinChunk = 32 << 10

// read takes input from the source as it is wanted, until its end or ctx's.
func (s *inStream) read(ctx context.Context) {
	buf := make([]byte, stdinChunk)
	for {
		s.mu.Lock()
		room, change := s.demand-s.kept.end, s.change
		s.mu.Unlock()
		if room <= 0 {
			select {
			case <-change:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !waitReadable(ctx, s.source) {
			return
		}
		n, err := s.source.Read(buf[:min(int64(len(buf)), room)])
		s.mu.Lock()
		if n > 0 {
			if kerr := s.kept.append(buf[:n]); kerr != nil && s.err == nil {
				s.err = kerr
			}
		}
		if err != nil {
			s.eof = true // as for mpirun, an unreadable input is an empty one
		}
		done := s.eof || s.err != nil
		s.changed()
		s.mu.Unlock()
		if done {
			return
		}
	}
}

// waitReadable waits until a read of source would not block, if that can be
// known: a file. A terminal is not read from the background, which would stop
// the process. It returns false when ctx ended.
func waitReadable(ctx context.Context, source io.Reader) bool {
	f, ok := source.(*os.File)
	if !ok {
		return ctx.Err() == nil
	}
	tty := isTerminal(f)
	for ctx.Err() == nil {
		if tty && !foreground(f) {
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 200)
		if n > 0 || err != nil && err != unix.EINTR { //nolint:errorlint // an errno as it comes
			return true
		}
	}
	return false
}
