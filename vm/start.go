package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mpirun-vft/vft/vm/qmp"
)

// Start runs a guest and returns when its monitor answers. The process is in
// the caller's process group. ctx bounds only the start; after an error no
// process is left.
func Start(ctx context.Context, spec Spec, opts Options) (*Machine, error) {
	return start(ctx, spec, opts)
}

// start runs QEMU with the files as descriptors from qmpFD + 1 on.
func start(ctx context.Context, spec Spec, opts Options, files ...*os.File) (*Machine, error) {
	opts = opts.withDefaults()
	argv, err := spec.Argv()
	if err != nil {
		return nil, err
	}
	spec = spec.withDefaults()
	binary, err := exec.LookPath(opts.Binary)
	if err != nil {
		return nil, fmt.Errorf("find QEMU (on Debian: apt-get install qemu-system-x86): %w", err)
	}
	if err := prepareDir(spec); err != nil {
		return nil, err
	}
	listener, err := listenQMP(ctx, spec.QMPSocket)
	if err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(filepath.Join(spec.Dir, fileStderr), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("start guest %q: %w", spec.Name, err)
	}
	proc, err := launch(ctx, binary, argv, stderr, append([]*os.File{listener}, files...), spec.KillWithParent)
	// QEMU has its own copies; ours of the listener must go so that a
	// connection fails when QEMU does.
	_ = stderr.Close()
	_ = listener.Close()
	if err != nil {
		return nil, fmt.Errorf("start guest %q: %w", spec.Name, err)
	}
	m := newMachine(spec, binary, opts.Log, proc)
	if err := m.begin(ctx, argv); err != nil {
		m.awaitExit(ctx, err)
		x := m.ExitError()
		m.abandon()
		if x != nil {
			return nil, fmt.Errorf("start guest %q: %w", spec.Name, x)
		}
		return nil, fmt.Errorf("start guest %q: %w", spec.Name, err)
	}
	m.log.Info("guest started", "pid", proc.pid, "accel", spec.Accel, "qemu", m.QEMUVersion())
	return m, nil
}

// prepareDir makes the runtime directory and removes sockets of an earlier run.
func prepareDir(s Spec) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	st, err := os.Stat(s.Dir)
	if err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("runtime directory %s has mode %#o: others could control the guest; chmod 0700 it", s.Dir, st.Mode().Perm())
	}
	if r, err := loadRecord(s.Dir); err == nil && r.verify() == nil {
		return fmt.Errorf("a machine runs in %s already (process %d)", s.Dir, r.PID)
	}
	for _, p := range []string{
		s.QMPSocket, s.NetSocket, s.AgentSocket, filepath.Join(s.Dir, sockSnap),
		filepath.Join(s.Dir, sockLoad), filepath.Join(s.Dir, fileMachine), filepath.Join(s.Dir, fileFilling),
	} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("runtime directory: %w", err)
		}
	}
	return nil
}

// listenQMP makes the monitor's socket, private to our user.
func listenQMP(ctx context.Context, path string) (*os.File, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("monitor socket: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("monitor socket: unexpected listener %T", l)
	}
	ul.SetUnlinkOnClose(false)
	defer func() { _ = ul.Close() }()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("monitor socket: %w", err)
	}
	f, err := ul.File()
	if err != nil {
		return nil, fmt.Errorf("monitor socket: %w", err)
	}
	return f, nil
}

func newMachine(spec Spec, binary string, log *slog.Logger, proc *process) *Machine {
	m := &Machine{
		spec: spec, binary: binary, log: log.With("guest", spec.Name), proc: proc,
		done: make(chan struct{}), quit: make(chan struct{}),
	}
	m.wg.Add(2)
	go m.watch()
	go m.keepLogs()
	return m
}

// begin records a new process and connects to it.
func (m *Machine) begin(ctx context.Context, argv []string) error {
	start, err := startTicks(m.proc.pid)
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	r := record{Version: recordVersion, PID: m.proc.pid, Start: start, BootID: boot, Binary: m.binary, Argv: argv, Spec: m.spec}
	if err := r.save(m.spec.Dir); err != nil {
		return err
	}
	return m.connect(ctx)
}

func (m *Machine) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-m.done:
			cancel()
		case <-stop:
		}
	}()
	mon, err := qmp.Dial(ctx, m.spec.QMPSocket, m.log)
	if err != nil {
		return err
	}
	m.mon = mon
	return nil
}
