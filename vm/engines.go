package vm

import (
	"context"
	"errors"
	"time"
)

// backgroundDriver: stop, write-protect RAM, run, copy meanwhile.
type backgroundDriver struct{}

func (backgroundDriver) engine() Engine { return EngineBackground }

func (backgroundDriver) setup() (map[string]bool, map[string]any) {
	return map[string]bool{"background-snapshot": true}, nil
}

func (backgroundDriver) prepare(context.Context, *session) error { return nil }

// cut starts the snapshot while the guest is stopped. QEMU 7.2 runs the guest
// itself when RAM is protected. Later versions leave it stopped; it may then
// be continued when RAM pages are in the stream, since they come after the
// protection, and after a round trip through the main loop, which has done by
// then what was scheduled before.
func (backgroundDriver) cut(ctx context.Context, s *session) error {
	if err := s.stopRunning(ctx); err != nil {
		return err
	}
	if err := s.atCut(ctx); err != nil {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	for {
		next := s.ev.next()
		if _, resumed := s.ev.pause(); !resumed.IsZero() {
			return s.m.resume(ctx) // for Pause's sake
		}
		select {
		case <-s.pump.flowing:
			return s.runProtected(ctx)
		case <-next:
		case <-s.m.done:
			return s.m.exit
		case <-ctx.Done():
			return ctx.Err()
		}
		// Events come with every change of the migration's state.
		info, err := s.m.queryMigrate(ctx)
		if err != nil {
			return err
		}
		if info.Status == migFailed {
			return &MigrationError{Desc: info.Error}
		}
	}
}

// runProtected makes the guest run once RAM pages are in the stream.
func (s *session) runProtected(ctx context.Context) error {
	if s.pump.bytes.Load() < flowMark {
		// The stream ended without pages.
		info, err := s.await(ctx, settled)
		if err != nil {
			return err
		}
		if info.Status != migCompleted {
			return &MigrationError{Desc: info.Error}
		}
	}
	for range 2 {
		st, err := s.m.Status(ctx)
		if err != nil {
			return err
		}
		if st == StateRunning {
			break
		}
	}
	if err := s.m.resume(ctx); err != nil {
		return err
	}
	s.ev.awaitResume(ctx)
	return nil
}

// finish ignores the end of ctx: what is started must be read to its end.
func (backgroundDriver) finish(ctx context.Context, s *session) error {
	ctx = context.WithoutCancel(ctx)
	if _, err := s.await(ctx, func(i migrateInfo) bool { return i.Status == migCompleted }); err != nil {
		return err
	}
	return s.m.resume(ctx)
}

// cancel waits for the end instead: a cancelled background snapshot of QEMU
// 7.2 leaves RAM protected and the guest hung for ever.
func (backgroundDriver) cancel(ctx context.Context, s *session) error {
	_, err := s.await(context.WithoutCancel(ctx), settled)
	return err
}

// preCopyDriver: copy while running, stop, copy what is left and what changed.
type preCopyDriver struct{}

func (preCopyDriver) engine() Engine { return EnginePreCopy }

// setup asks for the smallest downtime that QEMU knows, so that it iterates
// and does not stop the guest by itself unless that is nearly idle.
func (preCopyDriver) setup() (map[string]bool, map[string]any) {
	return map[string]bool{"pause-before-switchover": true}, map[string]any{"downtime-limit": 1}
}

// unsentZero is how much of a guest's RAM QEMU may take for sent although we
// have not read it: a zero page is 9 bytes in the stream, and 208 KiB of them
// fit into the socket, 32 KiB into QEMU's own buffer.
const unsentZero = (208 + 32) << 10 / 9 * 4096

// prepare makes one pass over RAM, up to the last unsentZero bytes, which wait
// for the cut. It must not let QEMU begin a second one while the guest runs:
// QEMU 7.2 forgets, under TCG, to make the processors look up again whether a
// page is clean when it collects dirty pages, and misses what is written to
// them afterwards; guests restored from such a copy crash. For the same reason
// the guest stands still while QEMU begins to keep track of dirty pages.
func (preCopyDriver) prepare(ctx context.Context, s *session) error {
	if err := s.stopRunning(ctx); err != nil {
		return err
	}
	s.pump.holdAfter(1)
	err := s.migrate(ctx)
	if err == nil {
		_, err = s.await(ctx, func(i migrateInfo) bool { return i.RAM.Passes > 0 })
	}
	if err != nil {
		return errors.Join(err, s.m.resume(ctx))
	}
	if s.ran, err = s.runAgain(ctx); err != nil {
		return err
	}
	if !s.ran {
		s.ev.stoppedEarly()
		return nil
	}
	s.ev.watchEarly(ctx)
	for {
		info, err := s.m.queryMigrate(ctx)
		if err != nil {
			return err
		}
		if info.RAM.Remaining <= unsentZero+stepBytes || info.Status != migActive {
			return nil // the state is checked at the cut
		}
		if err := s.pump.allow(ctx, stepBytes); err != nil {
			return err
		}
	}
}

// runAgain lets the guest run once dirty pages are kept track of. It returns
// false when that cannot be: a guest so small that all of it fitted into the
// buffers is at the switch-over already and has to wait there for the cut.
func (s *session) runAgain(ctx context.Context) (bool, error) {
	for {
		info, err := s.m.queryMigrate(ctx)
		if err != nil {
			return false, err
		}
		if info.Status == migPreSwitch {
			return false, nil
		}
		// On its way to the switch-over QEMU refuses to run the guest.
		short, cancel := context.WithTimeout(ctx, time.Second)
		err = s.m.resume(short)
		cancel()
		if err == nil {
			return true, nil
		}
		if st, serr := s.m.Status(ctx); serr != nil || st != StateFinish {
			return false, errors.Join(err, serr)
		}
	}
}

// stepBytes is how much of the stream is read between two looks at what is left.
const stepBytes = 4 << 20

// errSecondPass says that the copy cannot be trusted.
var errSecondPass = errors.New("QEMU began a second pass over RAM while the guest ran; the copy may lack writes")

func (preCopyDriver) cut(ctx context.Context, s *session) error {
	info, err := s.m.queryMigrate(ctx)
	if err != nil {
		return err
	}
	if info.Status != migPreSwitch {
		st, err := s.m.Status(ctx)
		if err != nil {
			return err
		}
		// Between the two questions it may have stopped by itself.
		if st != StateFinish {
			if err := s.stopRunning(ctx); err != nil {
				return err
			}
		}
	}
	s.ev.awaitStop(ctx)
	// The stream is held, so that this is what QEMU did while the guest ran.
	if info, err = s.m.queryMigrate(ctx); err != nil {
		return err
	}
	if s.ran && info.RAM.Passes > 1 {
		return errSecondPass
	}
	if err := s.atCut(ctx); err != nil {
		return err
	}
	s.pump.release()
	return nil
}

func (preCopyDriver) finish(ctx context.Context, s *session) error {
	// The guest is stopped, so that QEMU finds nothing dirty any more.
	_, err := s.await(ctx, func(i migrateInfo) bool { return i.Status == migPreSwitch })
	if err != nil {
		return err
	}
	if err := s.m.execute(ctx, "migrate-continue", map[string]any{"state": migPreSwitch}, nil); err != nil {
		return err
	}
	return s.completed(ctx)
}

func (preCopyDriver) cancel(ctx context.Context, s *session) error { return s.cancelCopy(ctx) }

// stopCopyDriver: stop, copy, run.
type stopCopyDriver struct{}

func (stopCopyDriver) engine() Engine { return EngineStopCopy }

func (stopCopyDriver) setup() (map[string]bool, map[string]any) { return nil, nil }

func (stopCopyDriver) prepare(context.Context, *session) error { return nil }

func (stopCopyDriver) cut(ctx context.Context, s *session) error {
	if err := s.stopRunning(ctx); err != nil {
		return err
	}
	if err := s.atCut(ctx); err != nil {
		return err
	}
	return s.migrate(ctx)
}

func (stopCopyDriver) finish(ctx context.Context, s *session) error { return s.completed(ctx) }

func (stopCopyDriver) cancel(ctx context.Context, s *session) error { return s.cancelCopy(ctx) }

// completed waits for the end of a copy of a stopped guest and runs it. The
// guest does not wait for the sink.
func (s *session) completed(ctx context.Context) error {
	if _, err := s.await(ctx, func(i migrateInfo) bool { return i.Status == migCompleted }); err != nil {
		return err
	}
	return s.m.resume(ctx)
}
