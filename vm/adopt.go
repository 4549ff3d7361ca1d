package vm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Adopt takes over a machine that an earlier process started in dir. It
// returns an error that wraps ErrNoMachine when there is none any more. The
// machine is left as it is, running or not. The error wraps ErrUnfilled when
// the guest was being restored lazily by a process that has ended: it lacks
// memory that nobody will bring, and is killed.
func Adopt(ctx context.Context, dir string, opts Options) (*Machine, error) {
	opts = opts.withDefaults()
	r, err := loadRecord(dir)
	if err != nil {
		return nil, err
	}
	pidfd, err := openPidfd(r.PID)
	if err != nil {
		return nil, err
	}
	// Verified after the handle is open: the handle cannot change its process.
	if err := r.verify(); err != nil {
		_ = pidfd.Close()
		return nil, fmt.Errorf("adopt %s: %w", dir, err)
	}
	proc := &process{pid: r.PID, pidfd: pidfd, gone: make(chan struct{})}
	mark, err := findMark(dir)
	if err != nil {
		_ = pidfd.Close()
		return nil, fmt.Errorf("adopt guest %q: %w", r.Spec.Name, err)
	}
	m := newMachine(r.Spec, r.Binary, opts.Log, proc)
	if mark != nil {
		if err := m.adoptMarked(ctx, mark); err != nil {
			return nil, fmt.Errorf("adopt guest %q: %w", r.Spec.Name, err)
		}
	} else if err := m.connect(ctx); err != nil {
		m.detach()
		return nil, fmt.Errorf("adopt guest %q (is another process connected to it?): %w", r.Spec.Name, err)
	}
	m.log.Info("guest adopted", "pid", r.PID)
	return m, nil
}

// unfilledTimeout bounds the question to a QEMU that may be waiting, in its
// main loop, for a page that never comes.
const unfilledTimeout = 5 * time.Second

// adoptMarked connects to a machine that was being restored when its owner
// ended. Unless QEMU says that it got everything the guest is killed.
func (m *Machine) adoptMarked(ctx context.Context, mark *fillMark) error {
	actx, cancel := context.WithTimeout(ctx, unfilledTimeout)
	defer cancel()
	err := m.connect(actx)
	var info migrateInfo
	if err == nil {
		if info, err = m.queryMigrate(actx); err == nil && info.Status == migCompleted {
			return mark.clear()
		}
	}
	mark.leave()
	if cerr := ctx.Err(); cerr != nil {
		m.detach()
		return cerr
	}
	m.log.Error("guest is given up: "+ErrUnfilled.Error(), "migration", info.Status, "err", err)
	m.abandon()
	return ErrUnfilled
}

// ErrHung says that the guest can never run again: the process that took a
// background snapshot of it died before the copy was complete, and pages of
// the guest's memory are still write-protected.
var ErrHung = errors.New("guest hangs since the taker of its background snapshot died")

// Settle brings an adopted machine out of whatever its earlier owner left
// under way: a copy that was being made is cancelled. The guest runs or stands
// still as before. The error wraps [ErrHung] when that cannot be done and the
// machine can only be killed; it must not even be paused, as QEMU would wait
// for a processor that never stops.
func (m *Machine) Settle(ctx context.Context) error {
	var caps []struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	if err := m.execute(ctx, "query-migrate-capabilities", nil, &caps); err != nil {
		return err
	}
	info, err := m.queryMigrate(ctx)
	if err != nil {
		return err
	}
	over := info.Status == "" || info.Status == migNone || info.Status == migCompleted || info.Status == migCancelled
	for _, c := range caps {
		// Every snapshot that ends takes its capabilities back, so one that is
		// still set was interrupted; a completed copy has no page left protected.
		if c.Capability == "background-snapshot" && c.State && !over {
			return wrap(m.spec.Name, ErrHung)
		}
	}
	if !over && info.Status != migFailed {
		if err := m.execute(ctx, "migrate_cancel", nil, nil); err != nil {
			return err
		}
	}
	// Setting capabilities is refused until QEMU has wound the copy up.
	for {
		if err = m.migrationReset(ctx); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("settling guest %q: %w", m.spec.Name, errors.Join(ctx.Err(), err))
		case <-m.done:
			return m.ExitError()
		case <-time.After(poll):
		}
	}
	return nil
}
