package vm

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-vft/vft/vm/qmp"
)

// DefaultBinary is the QEMU program that is run when Options names none.
const DefaultBinary = "qemu-system-x86_64"

const (
	stderrTail     = 4 << 10
	logLimit       = 1 << 20
	logCheck       = 5 * time.Second
	cleanupTimeout = 10 * time.Second
)

// Options are what Start, Adopt and Restore need besides the Spec.
type Options struct {
	// Binary is the QEMU program, DefaultBinary if empty.
	Binary string
	// Log receives the machine's log; nil for none.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Binary == "" {
		o.Binary = DefaultBinary
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// RunState is QEMU's run state.
type RunState string

// The run states that matter to callers; QEMU has more.
const (
	StateRunning   RunState = "running"
	StatePaused    RunState = "paused"
	StatePrelaunch RunState = "prelaunch"
	StateInMigrate RunState = "inmigrate"
	StateFinish    RunState = "finish-migrate"
	StatePostmig   RunState = "postmigrate"
	StateShutdown  RunState = "shutdown"
	StateInternal  RunState = "internal-error"
	StateIOError   RunState = "io-error"
	StatePanicked  RunState = "guest-panicked"
)

// Machine is a QEMU process and the connection to its monitor. Its methods
// may be called by several goroutines at the same time.
type Machine struct {
	spec    Spec
	binary  string
	log     *slog.Logger
	proc    *process
	mon     *qmp.Monitor
	killed  atomic.Bool
	snap    atomic.Pointer[session] // the snapshot in progress, or nil
	fill    atomic.Pointer[filling] // nil unless the guest was restored lazily
	runMu   sync.Mutex              // held while the run state is decided and changed
	paused  bool                    // Pause was called last, not Cont
	held    bool                    // a snapshot has stopped the guest and will run it
	handed  bool                    // handed over: stays stopped until TakeBack
	done    chan struct{}
	exit    *ExitError // valid when done is closed
	quit    chan struct{}
	closing sync.Once
	wg      sync.WaitGroup
}

// watch waits for the end of the process.
func (m *Machine) watch() {
	defer m.wg.Done()
	if err := m.proc.wait(); err != nil {
		return // detached
	}
	code, sig, known := m.proc.reap()
	close(m.proc.gone)
	m.exit = &ExitError{
		Known: known, Code: code, Signal: sig, Killed: m.killed.Load(), Cause: m.cause(),
		Stderr: tail(filepath.Join(m.spec.Dir, fileStderr), stderrTail),
	}
	m.log.Info("guest ended", "cause", m.exit.Error())
	close(m.done)
}

// keepLogs bounds what QEMU and the guest's serial console write.
func (m *Machine) keepLogs() {
	defer m.wg.Done()
	t := time.NewTicker(logCheck)
	defer t.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-m.quit:
			return
		case <-t.C:
			for _, f := range []string{fileStderr, fileSerial} {
				if err := bound(filepath.Join(m.spec.Dir, f), logLimit); err != nil {
					m.log.Warn("cannot bound log", "file", f, "err", err)
				}
			}
		}
	}
}

// Spec is the spec that the machine was started with, defaults filled in.
func (m *Machine) Spec() Spec { return m.spec }

// PID is the process id of QEMU.
func (m *Machine) PID() int { return m.proc.pid }

// QMP is the machine's monitor.
func (m *Machine) QMP() *qmp.Monitor { return m.mon }

// Events subscribes to QEMU's events; see qmp.Subscription.
func (m *Machine) Events() *qmp.Subscription { return m.mon.Subscribe(qmp.DefaultDepth) }

// QEMUVersion is "major.minor.micro" of the running QEMU.
func (m *Machine) QEMUVersion() string { return m.mon.Version().String() }

// Compat describes the machine for a snapshot's manifest.
func (m *Machine) Compat() (Compat, error) { return CompatOf(m.spec, m.QEMUVersion()) }

// Status asks QEMU for the run state.
func (m *Machine) Status(ctx context.Context) (RunState, error) {
	var r struct {
		Status RunState `json:"status"`
	}
	if err := m.execute(ctx, "query-status", nil, &r); err != nil {
		return "", err
	}
	return r.Status, nil
}

// Pause stops the guest. A guest that is stopped stays so, and no snapshot,
// in progress or later, makes it run before Cont is called.
func (m *Machine) Pause(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	m.paused = true
	return m.execute(ctx, "stop", nil, nil)
}

// Cont lets the guest run. A guest that runs is left alone, one that a snapshot
// has stopped runs when the snapshot allows it, and one that was handed over
// stays stopped.
func (m *Machine) Cont(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	m.paused = false
	if m.held || m.handed {
		return nil
	}
	// cont on a running guest makes 7.2 send a STOP and a RESUME event.
	st, err := m.Status(ctx)
	if err != nil || st == StateRunning || st == StateFinish && m.snap.Load() != nil {
		return err
	}
	return m.execute(ctx, "cont", nil, nil)
}

// TakeBack lets a guest that was handed over (SnapshotOptions.HandOver) run
// again, unless Pause was called. The snapshot must be over. Nothing happens to
// a guest that was not handed over.
func (m *Machine) TakeBack(ctx context.Context) error {
	m.runMu.Lock()
	was := m.handed
	m.handed = false
	m.runMu.Unlock()
	if !was {
		return nil
	}
	return m.resume(ctx)
}

// execute runs a command and explains the loss of the process.
func (m *Machine) execute(ctx context.Context, name string, args, into any) error {
	err := m.mon.Execute(ctx, name, args, into)
	if err == nil || !qmp.Closed(err) {
		return wrap(m.spec.Name, err)
	}
	// The connection and the process end together, in either order.
	select {
	case <-m.done:
		return wrap(m.spec.Name, m.exit)
	case <-time.After(time.Second):
		return wrap(m.spec.Name, err)
	case <-ctx.Done():
		return wrap(m.spec.Name, err)
	}
}

func wrap(guest string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("guest %q: %w", guest, err)
}

// Done is closed when the process has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// ExitError says how the process ended, nil while it has not.
func (m *Machine) ExitError() error {
	select {
	case <-m.done:
		return m.exit
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits until it is gone. It may be
// called again, and when the process has ended by itself.
func (m *Machine) Kill(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	m.killed.Store(true)
	if err := m.proc.kill(); err != nil {
		return wrap(m.spec.Name, err)
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return wrap(m.spec.Name, fmt.Errorf("wait for killed qemu: %w", ctx.Err()))
	}
}

// Close gives up the machine: with KillWithParent it is killed, otherwise it
// goes on and may be adopted. It returns when all goroutines of the machine
// have ended. A snapshot must not be in progress.
func (m *Machine) Close() error {
	var err error
	if m.spec.KillWithParent {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		err = m.Kill(ctx)
	}
	m.detach()
	return err
}

func (m *Machine) detach() {
	m.closing.Do(func() {
		close(m.quit)
		_ = m.proc.pidfd.Close()
		if m.mon != nil {
			_ = m.mon.Disconnect()
		}
		m.wg.Wait()
		select {
		case <-m.done:
		default:
			if m.proc.cmd != nil {
				_ = m.proc.cmd.Process.Release()
			}
		}
	})
}

// abandon kills and closes after a failed start.
func (m *Machine) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	_ = m.Kill(ctx)
	m.detach()
}
