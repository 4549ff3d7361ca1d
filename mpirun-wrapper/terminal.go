package wrapper

import (
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// screen writes to stdout and stderr so that lines of vft, the progress line
// and the program's own output do not garble one another.
type screen struct {
	quiet bool

	outMu  sync.Mutex // stdout, when it is no terminal
	stdout io.Writer
	outTTY bool

	mu       sync.Mutex // stderr, and whatever is a terminal
	stderr   io.Writer
	errTTY   bool
	drawn    bool // the progress line is visible
	midLine  bool // the last byte on the terminal was not a line's end
	errMid   bool // the same for stderr
	width    func() int
	mayWrite func() bool // in the foreground of the terminal
}

func newScreen(stdout, stderr io.Writer, quiet bool) *screen {
	s := &screen{stdout: stdout, stderr: stderr, quiet: quiet, outTTY: isTerminal(stdout), errTTY: isTerminal(stderr)}
	s.width = func() int { return 80 }
	s.mayWrite = func() bool { return true }
	if f, ok := stderr.(*os.File); ok && s.errTTY {
		s.width = func() int {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		}
		s.mayWrite = func() bool { return foreground(f) }
	}
	return s
}

func isTerminal(x any) bool {
	f, ok := x.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// foreground tells whether our process group owns the terminal f.
func foreground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// out writes the program's stdout.
func (s *screen) out(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !s.outTTY {
		s.outMu.Lock()
		defer s.outMu.Unlock()
		return writeAll(s.stdout, p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.midLine = p[len(p)-1] != '\n'
	return writeAll(s.stdout, p)
}

// err writes the program's stderr.
func (s *screen) err(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.errMid = p[len(p)-1] != '\n'
	if s.errTTY {
		s.midLine = s.errMid
	}
	return writeAll(s.stderr, p)
}

// line writes a line of our own on stderr.
func (s *screen) line(text string) {
	if s.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	start := ""
	if s.errMid || s.errTTY && s.midLine {
		start = "\n"
	}
	s.errMid = false
	if s.errTTY {
		s.midLine = false
	}
	_, _ = io.WriteString(s.stderr, start+"vft: "+oneLine(text)+"\n")
}

// progress shows text on the last line of the terminal until something else
// is written. In the middle of a line of the program it stays away.
func (s *screen) progress(text string) {
	if s.quiet || !s.errTTY || !s.mayWrite() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.midLine {
		return
	}
	text = oneLine(text)
	if runes := []rune(text); len(runes) > s.width()-1 {
		text = string(runes[:max(0, s.width()-1)])
	}
	_, _ = io.WriteString(s.stderr, "\r\x1b[K"+text)
	s.drawn = true
}

// end removes the progress line, unless somebody is stuck in writing.
func (s *screen) end() {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	s.clear()
}

func (s *screen) clear() {
	if s.drawn {
		_, _ = io.WriteString(s.stderr, "\r\x1b[K")
		s.drawn = false
	}
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == '\x1b' {
			return ' '
		}
		return r
	}, s)
}
