package vm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// migrateInfo is the part of query-migrate's reply that is used.
type migrateInfo struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
	RAM    struct {
		Transferred    int64 `json:"transferred"`
		Remaining      int64 `json:"remaining"`
		Duplicate      int64 `json:"duplicate"`
		Normal         int64 `json:"normal"`
		DirtyPagesRate int64 `json:"dirty-pages-rate"`
		Passes         int   `json:"dirty-sync-count"`
		PageSize       int64 `json:"page-size"`
	} `json:"ram"`
}

// Migration states that end a migration.
const (
	migCompleted = "completed"
	migFailed    = "failed"
	migCancelled = "cancelled"
	migPreSwitch = "pre-switchover"
	migNone      = "none"
	migActive    = "active"
)

// errCancelled is a copy that QEMU ended at our request.
var errCancelled = errors.New("migration cancelled")

// MigrationError is a copy that QEMU could not do.
type MigrationError struct {
	// Desc is QEMU's description; it may be empty.
	Desc string
}

// Error implements the error interface.
func (e *MigrationError) Error() string {
	if e.Desc == "" {
		return "migration failed"
	}
	return "migration failed: " + e.Desc
}

func (m *Machine) queryMigrate(ctx context.Context) (migrateInfo, error) {
	var i migrateInfo
	return i, m.execute(ctx, "query-migrate", nil, &i)
}

// usedCaps are all capabilities that any engine sets, with their neutral value.
func usedCaps() map[string]bool {
	return map[string]bool{"events": true, "background-snapshot": false, "pause-before-switchover": false, "postcopy-ram": false}
}

// usedParams are all parameters that any engine sets. Bandwidth 0 is no limit:
// the sink and the guest's host share one machine.
func usedParams() map[string]any {
	return map[string]any{"max-bandwidth": 0, "downtime-limit": 300}
}

// migrationSetup sets what an engine wants on top of the neutral values.
func (m *Machine) migrationSetup(ctx context.Context, caps map[string]bool, params map[string]any) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	set := func(caps map[string]bool) error {
		var list []capability
		for c, on := range caps {
			list = append(list, capability{c, on})
		}
		return m.execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
	}
	// The neutral values first: some pairs of capabilities exclude each other.
	if err := set(usedCaps()); err != nil {
		return err
	}
	if len(caps) > 0 {
		if err := set(caps); err != nil {
			return err
		}
	}
	all := usedParams()
	for p, v := range params {
		all[p] = v
	}
	return m.execute(ctx, "migrate-set-parameters", all, nil)
}

func (m *Machine) migrationReset(ctx context.Context) error {
	return m.migrationSetup(ctx, nil, nil)
}

// poll is how often QEMU is asked when no event says that it is worth it.
const poll = 100 * time.Millisecond

// await waits until the migration has a state that ok accepts. A migration
// that failed or was cancelled is an error unless ok accepts it.
func (s *session) await(ctx context.Context, ok func(migrateInfo) bool) (migrateInfo, error) {
	for {
		next := s.ev.next()
		info, err := s.m.queryMigrate(ctx)
		if err != nil {
			return info, err
		}
		if ok(info) {
			return info, nil
		}
		switch info.Status {
		case migFailed:
			return info, &MigrationError{Desc: info.Error}
		case migCancelled:
			return info, errCancelled
		}
		if err := s.pause(ctx, next, poll); err != nil {
			return info, err
		}
	}
}

// pause waits for an event, at most d.
func (s *session) pause(ctx context.Context, next <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-next:
	case <-t.C:
	case <-s.m.done:
		return s.m.exit
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// settled tells whether QEMU has no migration in progress.
func settled(i migrateInfo) bool {
	switch i.Status {
	case migCompleted, migFailed, migCancelled, migNone, "":
		return true
	}
	return false
}

// resume lets the guest run after a migration, unless Pause was called. QEMU
// reports a migration as ended before it leaves finish-migrate, and refuses
// cont until then.
func (m *Machine) resume(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	m.held = false
	if m.paused || m.handed {
		// QEMU may have run it by itself.
		return m.execute(ctx, "stop", nil, nil)
	}
	for {
		st, err := m.Status(ctx)
		if err != nil {
			return err
		}
		switch st {
		case StateRunning:
			return nil
		case StatePaused, StatePostmig, StatePrelaunch:
			return m.execute(ctx, "cont", nil, nil)
		case StateFinish:
		default:
			return fmt.Errorf("guest %q cannot go on: it is in state %q", m.spec.Name, st)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("guest %q is still in state %q: %w", m.spec.Name, st, ctx.Err())
		}
	}
}

// stopRunning stops a guest that must be running.
func (s *session) stopRunning(ctx context.Context) error {
	s.m.runMu.Lock()
	defer s.m.runMu.Unlock()
	st, err := s.m.Status(ctx)
	if err != nil {
		return err
	}
	if st != StateRunning || s.m.paused {
		return fmt.Errorf("%w: it is in state %q", ErrNotRunning, st)
	}
	if err := s.m.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	s.m.held = true
	s.ev.awaitStop(ctx)
	return nil
}

// cancelCopy cancels and waits until QEMU has ended the copy.
func (s *session) cancelCopy(ctx context.Context) error {
	if err := s.m.execute(ctx, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	_, err := s.await(ctx, settled)
	return err
}
