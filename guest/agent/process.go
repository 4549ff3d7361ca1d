package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// outputLimit is how much output per stream is kept unacknowledged.
	outputLimit = 4 << 20
	// inputLimit is how much standard input waits in the agent.
	inputLimit = 1 << 20
	// exitGrace is how long output of a program that has ended is waited for
	// while something it started keeps its pipes open.
	exitGrace = 250 * time.Millisecond
)

// Spec describes a program to start.
type Spec struct {
	Argv    []string
	Env     []string
	Dir     string
	User    User
	Umask   uint32
	NoStdin bool
}

// exitStatus is how a program ended.
type exitStatus struct {
	code   int
	signal int
}

// process is a started program with its streams.
type process struct {
	pid    int
	change *notifier
	stdout *outputBuffer
	stderr *outputBuffer
	stdin  *inputBuffer

	mu     sync.Mutex
	reaped bool // the program itself has ended
	ended  bool // and its output is complete
	exit   exitStatus
}

// launcher starts programs under one root directory.
type launcher struct {
	root string
	// umask is a property of the whole process, so starts go one by one.
	mu sync.Mutex
}

// command prepares spec without starting it.
func (l *launcher) command(spec Spec) (*exec.Cmd, error) {
	if len(spec.Argv) == 0 {
		return nil, errors.New("start a program: no argument vector")
	}
	path, err := lookPath(spec.Argv[0], spec.Dir, spec.Env)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: path, Args: spec.Argv, Env: spec.Env, Dir: spec.Dir}
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cred := &syscall.Credential{Uid: spec.User.UID, Gid: spec.User.GID, Groups: []uint32{}}
		for _, g := range spec.User.Groups {
			cred.Groups = append(cred.Groups, g.GID)
		}
		cmd.SysProcAttr.Credential = cred
	}
	return cmd, nil
}

// run starts cmd with the umask.
func (l *launcher) run(cmd *exec.Cmd, umask uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := syscall.Umask(int(umask))
	defer syscall.Umask(old)
	if err := cmd.Start(); err != nil {
		return err
	}
	// The agent is exempt from being killed when memory runs out; what it starts
	// is not. Without the right to do so there is no exemption to lift.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("0"), 0o600)
	return nil
}

// start starts spec's program and the goroutines that serve its streams. They
// end with the program.
func (l *launcher) start(spec Spec) (*process, error) {
	if err := ensureUser(l.root, spec.User); err != nil {
		return nil, err
	}
	cmd, err := l.command(spec)
	if err != nil {
		return nil, err
	}
	change := &notifier{}
	p := &process{
		change: change,
		stdout: newOutputBuffer(outputLimit, change),
		stderr: newOutputBuffer(outputLimit, change),
		stdin:  newInputBuffer(inputLimit, change),
	}
	var pipes pipeSet
	defer pipes.closeChild()
	outR, outW := pipes.make()
	errR, errW := pipes.make()
	inR, inW := (*os.File)(nil), (*os.File)(nil)
	if !spec.NoStdin {
		inR, inW = pipes.make()
		pipes.child(inR)
	}
	pipes.child(outW, errW)
	if pipes.err != nil {
		pipes.closeAll()
		return nil, fmt.Errorf("start %s: %w", spec.Argv[0], pipes.err)
	}
	cmd.Stdout, cmd.Stderr = outW, errW
	if inR != nil {
		cmd.Stdin = inR
	}
	if err := l.run(cmd, spec.Umask); err != nil {
		pipes.closeAll()
		// The error names the program even when it is the directory.
		return nil, fmt.Errorf("start %s in directory %s as uid %d: %w", spec.Argv[0], spec.Dir, spec.User.UID, err)
	}
	p.pid = cmd.Process.Pid

	reaped := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() { p.readOutput(outR, p.stdout, reaped) })
	readers.Go(func() { p.readOutput(errR, p.stderr, reaped) })
	if inW != nil {
		go p.feedInput(inW, reaped)
	} else {
		p.stdin.abandon()
	}
	go func() {
		_ = cmd.Wait()
		p.mu.Lock()
		p.reaped = true
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.signal = int(ws.Signal())
		} else {
			p.exit.code = cmd.ProcessState.ExitCode()
		}
		p.mu.Unlock()
		close(reaped)
		// Reads that wait for output now wait no longer than the grace.
		_ = outR.SetReadDeadline(time.Now().Add(exitGrace))
		_ = errR.SetReadDeadline(time.Now().Add(exitGrace))
		if inW != nil {
			_ = inW.SetWriteDeadline(time.Now())
		}
		readers.Wait()
		p.stdin.abandon()
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		change.broadcast()
	}()
	return p, nil
}

// readOutput moves a pipe's bytes to b and stops reading while b is full, so
// that the program waits.
func (p *process) readOutput(f *os.File, b *outputBuffer, reaped <-chan struct{}) {
	defer func() { _ = f.Close() }()
	buf := make([]byte, 64<<10)
	for {
		changed := p.change.wait()
		room := b.room()
		if room <= 0 {
			<-changed
			continue
		}
		select {
		case <-reaped:
			_ = f.SetReadDeadline(time.Now().Add(exitGrace))
		default:
		}
		n, err := f.Read(buf[:min(room, len(buf))])
		if n > 0 {
			b.append(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// feedInput moves standard input to the program's pipe.
func (p *process) feedInput(f *os.File, reaped <-chan struct{}) {
	defer func() { _ = f.Close() }()
	for {
		changed := p.change.wait()
		data, eof := p.stdin.peek(64 << 10)
		if len(data) == 0 {
			if eof {
				return
			}
			select {
			case <-changed:
				continue
			case <-reaped:
				return
			}
		}
		n, err := f.Write(data)
		p.stdin.consumed(n)
		if err != nil {
			p.stdin.abandon()
			return
		}
	}
}

// status returns how the program ended and whether it and its output have.
func (p *process) status() (exitStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit, p.ended
}

// signal sends sig to the program or its group and reports whether the program
// had been reaped, which leaves nobody to send it to.
func (p *process) signal(sig syscall.Signal, group bool) (ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true, nil
	}
	pid := p.pid
	if group {
		pid = -pid
	}
	err = syscall.Kill(pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return true, nil
	}
	return false, err
}

// pipeSet opens pipes and remembers the first error.
type pipeSet struct {
	all, ours []*os.File
	err       error
}

func (s *pipeSet) make() (r, w *os.File) {
	if s.err != nil {
		return nil, nil
	}
	r, w, s.err = os.Pipe()
	if s.err == nil {
		s.all = append(s.all, r, w)
	}
	return r, w
}

// child marks ends that only the program needs.
func (s *pipeSet) child(f ...*os.File) { s.ours = append(s.ours, f...) }

func (s *pipeSet) closeChild() {
	for _, f := range s.ours {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (s *pipeSet) closeAll() {
	for _, f := range s.all {
		_ = f.Close()
	}
}

// lookPath finds a program in the PATH of env, relative to dir where that
// matters.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, executable(name)
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	denied := error(nil)
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, os.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("start %s: not in the guest's PATH %s: %w", name, path, os.ErrNotExist)
}

func executable(file string) error {
	fi, err := os.Stat(file)
	switch {
	case err != nil:
		return fmt.Errorf("start %s in the guest: %w", file, err)
	case fi.IsDir():
		return fmt.Errorf("start %s in the guest: is a directory: %w", file, os.ErrPermission)
	case fi.Mode()&0o111 == 0:
		return fmt.Errorf("start %s in the guest: not executable: %w", file, os.ErrPermission)
	}
	return nil
}
