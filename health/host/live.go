package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/health/internal/cputime"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// Bounds of running a program.
const (
	maxStdout = 4 << 20
	maxStderr = 4 << 10
	// killGrace is how long a killed program may take to be gone. Beyond it,
	// the kernel holds it, as a disk that does not answer makes it do.
	killGrace = 3 * time.Second
)

// PointReap is the fault point between a program's end and its being noticed:
// "pause" there makes a program that cannot be killed.
const PointReap = "health.program.reap"

// live runs programs of this machine.
type live struct {
	faults *faultpoint.Set
	mu     sync.Mutex
	stuck  map[string]time.Time // command → since when a process of it does not die
}

func newLive() *live { return &live{stuck: map[string]time.Time{}} }

// WithFaults makes the programs of a live host go wrong at fault points.
func WithFaults(s *faultpoint.Set) Option {
	return func(h *Host) {
		if l, ok := h.programs.(*live); ok {
			l.faults = s
		}
	}
}

// sbin is where programs for administrators are; a user's PATH may lack it.
const sbin = "/usr/local/sbin:/usr/sbin:/sbin"

func lookUp(program string) (string, error) {
	if strings.ContainsRune(program, '/') {
		_, err := os.Stat(program)
		return program, err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":" + sbin) {
		file := filepath.Join(dir, program)
		st, err := os.Stat(file) //nolint:gosec // PATH is whoever runs us
		if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 && filepath.IsAbs(dir) {
			return file, nil
		}
	}
	return "", os.ErrNotExist
}

func (l *live) has(program string) bool {
	_, err := lookUp(program)
	return err == nil
}

func (l *live) run(ctx context.Context, limit time.Duration, argv []string) (Output, error) {
	file, err := lookUp(argv[0])
	if err != nil {
		return Output{}, fmt.Errorf("%s: %w", argv[0], ErrNoProgram)
	}
	if since, ok := l.stuckSince(strings.Join(argv, " ")); ok {
		return Output{}, &TimeoutError{Program: argv[0], After: time.Since(since), Stuck: true}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := &process{done: make(chan struct{})}
	began := time.Now()
	if err := p.start(ctx, l.faults, file, argv); err != nil {
		return Output{}, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	select {
	case <-p.done:
		cputime.Add(ctx, p.cpu())
		return p.output(argv[0])
	case <-ctx.Done():
		return Output{}, l.cutOff(ctx, p, argv, began)
	}
}

// cutOff ends a program whose time is over and says how that went.
func (l *live) cutOff(ctx context.Context, p *process, argv []string, began time.Time) error {
	p.kill()
	select {
	case <-p.done:
		cputime.Add(ctx, p.cpu())
	case <-time.After(killGrace):
		l.abandon(strings.Join(argv, " "), began, p)
		return &TimeoutError{Program: argv[0], After: time.Since(began), Stuck: true}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return &TimeoutError{Program: argv[0], After: time.Since(began)}
}

func (l *live) stuckSince(command string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, ok := l.stuck[command]
	return since, ok
}

// abandon remembers a process that does not die until it does. Only a kernel
// that lets go of it can end this goroutine.
func (l *live) abandon(command string, since time.Time, p *process) {
	l.mu.Lock()
	l.stuck[command] = since
	l.mu.Unlock()
	go func() {
		<-p.done
		l.mu.Lock()
		delete(l.stuck, command)
		l.mu.Unlock()
	}()
}

// process is a program that runs in a process group of its own.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr limited
	done           chan struct{} // closed when it has ended
	err            error         // how; for who has seen done

	mu   sync.Mutex
	dead bool // its number may belong to somebody else soon
}

func (p *process) start(ctx context.Context, faults *faultpoint.Set, file string, argv []string) error {
	p.stdout.limit, p.stderr.limit = maxStdout, maxStderr
	p.cmd = &exec.Cmd{
		Path: file, Args: argv, Stdout: &p.stdout, Stderr: &p.stderr,
		Env:         append(os.Environ(), "LC_ALL=C"),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		// What it started may hold its output open after it has ended.
		WaitDelay: killGrace / 2,
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		p.err = p.wait()
		if err := faults.Hit(ctx, PointReap); err != nil {
			p.err = err
		}
		close(p.done)
	}()
	return nil
}

// wait ends what the program leaves behind in its process group. It does so
// while the dead program still holds the group's number.
func (p *process) wait() error {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.kill()
	p.mu.Lock()
	p.dead = true
	p.mu.Unlock()
	return p.cmd.Wait()
}

// kill ends the whole process group.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

func (p *process) cpu() time.Duration {
	if s := p.cmd.ProcessState; s != nil {
		return s.SystemTime() + s.UserTime()
	}
	return 0
}

func (p *process) output(program string) (Output, error) {
	out := Output{Stdout: p.stdout.kept.Bytes(), Stderr: p.stderr.kept.Bytes()}
	var exit *exec.ExitError
	switch {
	case p.stdout.over:
		return out, fmt.Errorf("%s printed more than %d bytes", program, maxStdout)
	case errors.As(p.err, &exit):
		if out.Exit = exit.ExitCode(); out.Exit < 0 {
			return out, fmt.Errorf("%s: %w: %w", program, ErrSignal, exit)
		}
	case errors.Is(p.err, exec.ErrWaitDelay): // the program itself ended well
	case p.err != nil:
		return out, fmt.Errorf("running %s: %w", program, p.err)
	}
	return out, nil
}

// limited keeps the beginning of what is written to it. It has no method but
// Write: a copy would use ReadFrom.
type limited struct {
	kept  bytes.Buffer
	limit int
	over  bool
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	room := l.limit - l.kept.Len()
	if len(p) > room {
		l.over = true
	}
	l.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}
