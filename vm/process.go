package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/mpirun-vft/vft/internal/atomicfile"
	"golang.org/x/sys/unix"
)

// process is a QEMU process, a child of ours or an adopted one.
type process struct {
	pid   int
	pidfd *os.File
	cmd   *exec.Cmd     // nil when adopted
	gone  chan struct{} // closed when the process has ended
}

// launch starts argv. With die, the kernel kills the process when we end.
func launch(ctx context.Context, binary string, argv []string, stderr *os.File, extra []*os.File, die bool) (*process, error) {
	// The process outlives ctx, which bounds only the start.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, argv...) //nolint:gosec // running QEMU is what this package is for
	cmd.Stderr = stderr
	cmd.Stdout = stderr
	cmd.ExtraFiles = extra
	p := &process{cmd: cmd, gone: make(chan struct{})}
	if !die {
		if err := cmd.Start(); err != nil {
			return nil, err
		}
	} else {
		// The signal comes when the starting *thread* ends, so that thread
		// is kept for as long as the process lives.
		// In a group of its own, so that Ctrl-C at the owner's terminal reaches
		// the owner only, which then decides.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		started := make(chan error)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			err := cmd.Start()
			started <- err
			if err == nil {
				<-p.gone
			}
		}()
		if err := <-started; err != nil {
			return nil, err
		}
	}
	p.pid = cmd.Process.Pid
	var err error
	if p.pidfd, err = openPidfd(p.pid); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		close(p.gone)
		return nil, err
	}
	return p, nil
}

// openPidfd opens a process handle that the runtime's poller can wait for.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: process %d has ended", ErrNoMachine, pid)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// wait returns nil when the process has ended and an error when the handle was
// closed before that.
func (p *process) wait() error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a file descriptor fits
		n, err := unix.Poll(fds, 0)
		return err == nil && n == 1
	})
}

// reap collects the exit status of a child.
func (p *process) reap() (code int, sig syscall.Signal, known bool) {
	if p.cmd == nil {
		return 0, 0, false
	}
	_ = p.cmd.Wait()
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, 0, false
	}
	if ws.Signaled() {
		return 0, ws.Signal(), true
	}
	return ws.ExitStatus(), 0, true
}

// kill sends SIGKILL to exactly this process. A process that has ended is not
// an error.
func (p *process) kill() error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := rc.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, kerr)
	}
	return nil
}

// ExitError says how a machine's process ended.
type ExitError struct {
	// Known is false for an adopted process, whose status goes to its parent.
	Known bool
	// Code is the exit status, Signal the signal that ended the process.
	Code   int
	Signal syscall.Signal
	// Killed says that Machine.Kill was called.
	Killed bool
	// Cause says why a guest was killed that could not go on; see
	// Machine.Filled. Nil in all other cases.
	Cause error
	// Stderr is the end of what QEMU wrote to its standard error.
	Stderr string
}

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Cause }

// Error implements the error interface.
func (e *ExitError) Error() string {
	var s string
	switch {
	case e.Cause != nil:
		return "qemu was killed: " + e.Cause.Error()
	case e.Killed:
		s = "qemu was killed"
	case !e.Known:
		s = "qemu ended"
	case e.Signal != 0:
		s = "qemu ended by signal " + e.Signal.String()
	default:
		s = fmt.Sprintf("qemu ended with status %d", e.Code)
	}
	if e.Stderr != "" {
		s += ": " + strings.ReplaceAll(e.Stderr, "\n", " | ")
	}
	return s
}

// tail returns the last lines of a file, at most limit bytes.
func tail(path string, limit int64) string {
	f, err := os.Open(path) //nolint:gosec // a log in the machine's own directory
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	off := max(st.Size()-limit, 0)
	b, err := io.ReadAll(io.NewSectionReader(f, off, limit))
	if err != nil {
		return ""
	}
	s := string(b)
	if off > 0 {
		if _, rest, ok := strings.Cut(s, "\n"); ok {
			s = rest
		}
	}
	return strings.TrimSpace(s)
}

// bound keeps a log below limit bytes: when it is larger, its last half goes
// to path.old and the file starts again. QEMU appends, so that it goes on at
// the new end; what it writes between the copy and the cut is lost.
func bound(path string, limit int64) error {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.Size() <= limit {
		return nil
	}
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(path+".old", []byte(tail(path, limit/2)+"\n"), 0o600); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}
