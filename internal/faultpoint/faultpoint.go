// Package faultpoint gives names to places in the code where tests and fault
// plans make something go wrong. A component takes a *Set when it is made and
// calls [Set.Hit] with a name at such a place; a nil *Set does nothing, so that
// production code needs no switch.
//
// What happens at a point is configured by a text, which daemons take from the
// environment variable VFT_FAULTPOINTS:
//
//	spec   = rule { ("," | ";") rule }
//	rule   = name "=" [ "count:" N ":" ] action
//	action = "crash" | "pause" | "delay:" duration | "error:" error
//
// crash kills the own process with SIGKILL: no deferred call, no flush. pause
// blocks until [Set.Release] or until the context ends. delay sleeps for a
// duration as time.ParseDuration reads it. error makes Hit return an error: an
// errno by name (ENOSPC, EIO, ...; errors.Is finds it) or else the text itself.
// With count:N the action happens at the N-th hit only, counted from 1;
// without it at every hit. Several rules may name one point; they apply in the
// order in which they are written. White space around rules is ignored.
//
// Examples:
//
//	ckpt.commit.before-rename=crash
//	ckpt.page=count:3:error:ENOSPC
//	overlay.mark=delay:200ms,vm.cut=pause
//
// The points that exist are listed in the documentation of the packages that
// have them. A name has letters, digits, dots, dashes and underscores, and
// starts with the package.
package faultpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// EnvVar is the environment variable that daemons take their fault points from.
const EnvVar = "VFT_FAULTPOINTS"

// ErrSpec is wrapped by every error about a specification that cannot be read.
var ErrSpec = errors.New("bad fault point specification")

// Error is what Hit returns at a point that is configured to fail.
type Error struct {
	Point string // name of the point
	Err   error  // the configured error, an errno where it names one
}

// Error implements error.
func (e *Error) Error() string { return "fault point " + e.Point + ": " + e.Err.Error() }

// Unwrap returns the configured error.
func (e *Error) Unwrap() error { return e.Err }

type kind int

const (
	crash kind = iota
	pause
	delay
	fail
)

type rule struct {
	kind     kind
	count    int // happens at this hit only; 0: at every hit
	duration time.Duration
	err      error
	text     string
}

type point struct {
	rules    []rule
	hits     int
	changed  chan struct{} // closed and replaced at every hit
	released chan struct{}
}

// Set is a configuration of fault points. Its methods may be called from
// several goroutines at once, and on a nil Set.
type Set struct {
	mu     sync.Mutex
	points map[string]*point
	names  []string // in order of first mention
}

// Parse reads a specification. An empty one gives a nil Set.
func Parse(spec string) (*Set, error) {
	s := &Set{points: map[string]*point{}}
	for part := range strings.FieldsFuncSeq(spec, func(r rune) bool { return r == ',' || r == ';' }) {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, action, ok := strings.Cut(part, "=")
		if !ok || !validName(name) {
			return nil, fmt.Errorf("%w: %q: want name=action", ErrSpec, part)
		}
		r, err := parseRule(action)
		if err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrSpec, part, err)
		}
		p := s.points[name]
		if p == nil {
			p = &point{changed: make(chan struct{}), released: make(chan struct{})}
			s.points[name] = p
			s.names = append(s.names, name)
		}
		p.rules = append(p.rules, r)
	}
	if len(s.points) == 0 {
		return nil, nil
	}
	return s, nil
}

// FromEnv parses what the environment variable EnvVar says.
func FromEnv() (*Set, error) {
	s, err := Parse(os.Getenv(EnvVar))
	if err != nil {
		return nil, fmt.Errorf("environment variable %s: %w", EnvVar, err)
	}
	return s, nil
}

func validName(s string) bool {
	if s == "" {
		return false
	}
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

func parseRule(s string) (rule, error) {
	r := rule{text: s}
	if rest, ok := strings.CutPrefix(s, "count:"); ok {
		n, action, _ := strings.Cut(rest, ":")
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 {
			return rule{}, fmt.Errorf("count %q: want a number from 1", n)
		}
		r.count, s = count, action
	}
	word, arg, hasArg := strings.Cut(s, ":")
	switch {
	case word == "crash" && !hasArg:
		r.kind = crash
	case word == "pause" && !hasArg:
		r.kind = pause
	case word == "delay":
		d, err := time.ParseDuration(arg)
		if err != nil || d < 0 {
			return rule{}, fmt.Errorf("delay %q: want a duration such as 200ms", arg)
		}
		r.kind, r.duration = delay, d
	case word == "error" && arg != "":
		r.kind, r.err = fail, parseError(arg)
	default:
		return rule{}, fmt.Errorf("action %q: want crash, pause, delay:DURATION or error:ERROR", s)
	}
	return r, nil
}

func parseError(s string) error {
	switch s {
	case "ENOSPC":
		return syscall.ENOSPC
	case "EDQUOT":
		return syscall.EDQUOT
	case "EIO":
		return syscall.EIO
	case "EROFS":
		return syscall.EROFS
	case "EACCES":
		return syscall.EACCES
	case "EPERM":
		return syscall.EPERM
	case "ENOENT":
		return syscall.ENOENT
	case "ENOMEM":
		return syscall.ENOMEM
	case "EMFILE":
		return syscall.EMFILE
	case "EAGAIN":
		return syscall.EAGAIN
	case "EPIPE":
		return syscall.EPIPE
	case "ECONNREFUSED":
		return syscall.ECONNREFUSED
	case "ECONNRESET":
		return syscall.ECONNRESET
	case "EHOSTUNREACH":
		return syscall.EHOSTUNREACH
	case "ETIMEDOUT":
		return syscall.ETIMEDOUT
	}
	return errors.New(s)
}

// Hit says that the code has come to the point name, and does what is
// configured for it: nothing, return an *Error, block, or kill the process.
// Blocking ends with the context, whose cause is then returned.
func (s *Set) Hit(ctx context.Context, name string) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	p := s.points[name]
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	p.hits++
	hit := p.hits
	close(p.changed)
	p.changed = make(chan struct{})
	s.mu.Unlock()

	for _, r := range p.rules {
		if r.count != 0 && r.count != hit {
			continue
		}
		if err := r.do(ctx, name, p.released); err != nil {
			return err
		}
	}
	return nil
}

func (r *rule) do(ctx context.Context, name string, released <-chan struct{}) error {
	switch r.kind {
	case crash:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal may take effect a little later
	case pause:
		select {
		case <-released:
		case <-ctx.Done():
			return fmt.Errorf("paused at fault point %s: %w", name, context.Cause(ctx))
		}
	case delay:
		t := time.NewTimer(r.duration)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("delayed at fault point %s: %w", name, context.Cause(ctx))
		}
	case fail:
		return &Error{Point: name, Err: r.err}
	}
	return nil
}

// Release lets everybody who is paused at the point name go on, and all who
// come later pass. A name that is not configured is ignored.
func (s *Set) Release(name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.points[name]
	if p == nil {
		return
	}
	select {
	case <-p.released:
	default:
		close(p.released)
	}
}

// Await blocks until the point name has been hit n times in all, or the
// context ends. It fails at once when the name is not configured, because hits
// are counted for configured points only.
func (s *Set) Await(ctx context.Context, name string, n int) error {
	if s == nil {
		return fmt.Errorf("fault point %s is not configured", name)
	}
	for {
		s.mu.Lock()
		p := s.points[name]
		if p == nil {
			s.mu.Unlock()
			return fmt.Errorf("fault point %s is not configured", name)
		}
		hits, changed := p.hits, p.changed
		s.mu.Unlock()
		if hits >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for hit %d of fault point %s, seen %d: %w", n, name, hits, context.Cause(ctx))
		}
	}
}

// Names returns the configured points in the order of the specification.
func (s *Set) Names() []string {
	if s == nil {
		return nil
	}
	return slices.Clone(s.names)
}

// Check returns an error when a point is configured that is not among known: a
// misspelt name would otherwise silently do nothing.
func (s *Set) Check(known ...string) error {
	for _, name := range s.Names() {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%w: no fault point is called %s; there are: %s", ErrSpec, name, strings.Join(known, " "))
		}
	}
	return nil
}

// String returns a specification that Parse reads as the same Set.
func (s *Set) String() string {
	if s == nil {
		return ""
	}
	var rules []string
	for _, name := range s.names {
		for _, r := range s.points[name].rules {
			rules = append(rules, name+"="+r.text)
		}
	}
	return strings.Join(rules, ",")
}
