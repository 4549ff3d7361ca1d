package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mpirun-vft/vft/vm/stream"
)

// restoreLazy plays the source of a post-copy migration: QEMU gets the state
// of the devices, and asks for the memory.
func restoreLazy(ctx context.Context, spec Spec, saved Saved, opts Options) (*Machine, error) {
	f := &filling{begin: time.Now(), done: make(chan struct{})}
	var pc *stream.Postcopy
	var begin []byte
	var hot []PageRange
	m, err := startWhile(ctx, spec, opts, func(ctx context.Context) error {
		env, err := readEnvelope(ctx, spec, saved)
		if err != nil {
			return err
		}
		if hot, err = saved.Hot(ctx); err != nil {
			return fmt.Errorf("read which pages come first: %w", err)
		}
		hot = checkHot(hot, env.head.Blocks)
		if pc, err = stream.NewPostcopy(env.head.Raw); err != nil {
			return err
		}
		begin, err = pc.Begin(env.tail)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := m.orAbandon(ctx, m.loadLazily(ctx, f, pc, saved, hot, begin)); err != nil {
		return nil, err
	}
	return m, nil
}

// loadLazily returns when the guest could run. The server goes on.
func (m *Machine) loadLazily(ctx context.Context, f *filling, pc *stream.Postcopy, saved Saved, hot []PageRange, begin []byte) error {
	mark, err := markFilling(m.spec.Dir)
	if err != nil {
		return err
	}
	conn, err := m.listen(ctx, map[string]bool{"postcopy-ram": true})
	if err != nil {
		mark.leave()
		return err
	}
	f.server = newPageServer(conn, pc, saved, hot)
	m.fill.Store(f)
	m.wg.Add(1)
	go m.serveFill(context.WithoutCancel(ctx), f, mark, begin)
	if err := m.settlePaused(ctx, f.done); err != nil {
		return errors.Join(f.failed(), err)
	}
	return f.failed()
}

// serveFill serves the guest's memory until all of it is there. When that
// fails the guest is killed: processors that wait for a page could not even be
// stopped.
func (m *Machine) serveFill(ctx context.Context, f *filling, mark *fillMark, begin []byte) {
	defer m.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-m.done:
		case <-m.quit:
		case <-ctx.Done():
		}
		cancel()
	}()
	err := f.server.run(ctx, begin)
	if err == nil {
		err = m.completeFill(ctx)
	}
	cancel()
	if err == nil {
		if err := mark.clear(); err != nil {
			m.log.Warn("a mark of the restore is left", "err", err) // QEMU tells an adopter the truth
		}
		f.end(nil)
		m.log.Info("guest has all of its memory", "stats", m.FillStats())
		return
	}
	mark.leave()
	f.end(m.giveUp(f, err))
}

// giveUp kills a guest whose memory could not be completed, unless it is gone,
// or its owner has closed the machine. It returns the reason.
func (m *Machine) giveUp(f *filling, err error) error {
	select {
	case <-m.quit:
		return ErrUnfilled
	default:
	}
	if !errors.As(err, new(*PageError)) {
		// When QEMU has ended it says why, better than a broken connection.
		select {
		case <-m.done:
			return m.exit
		case <-m.quit:
			return ErrUnfilled
		case <-time.After(time.Second):
		}
	}
	m.log.Error("guest is given up: its memory cannot be completed", "err", err)
	f.setLost(err)
	if kerr := m.proc.kill(); kerr != nil {
		return errors.Join(err, kerr)
	}
	select {
	case <-m.done:
	case <-m.quit:
	}
	return err
}

// completeFill makes an ordinary machine of one that has all of its memory.
func (m *Machine) completeFill(ctx context.Context) error {
	for {
		info, err := m.queryMigrate(ctx)
		if err != nil {
			return err
		}
		switch info.Status {
		case migCompleted:
			return m.migrationReset(ctx)
		case migFailed, migCancelled:
			return &MigrationError{Desc: info.Error}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
