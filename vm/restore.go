package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/vm/stream"
)

// RestoreError says that a snapshot could not be loaded.
type RestoreError struct {
	// Guest is the guest's name.
	Guest string
	// Err is the cause: what failed on our side, what QEMU reported, or both.
	Err error
}

// Error implements the error interface.
func (e *RestoreError) Error() string { return fmt.Sprintf("restore guest %q: %v", e.Guest, e.Err) }

// Unwrap returns the cause.
func (e *RestoreError) Unwrap() error { return e.Err }

// Restore starts a machine from a saved guest and returns when the guest could
// run; Machine.Cont lets it, whatever the run state in the snapshot. ctx bounds
// the restore; after an error no process is left. The error is a
// *RestoreError, and wraps a *PageError when a page could not be had.
//
// With RestoreLazy memory is still missing when Restore returns: saved is read
// until the channel that Machine.Filled returns is closed.
func Restore(ctx context.Context, spec Spec, saved Saved, way RestoreWay, opts Options) (*Machine, error) {
	spec.Incoming = true
	var m *Machine
	var err error
	switch way {
	case RestoreLazy:
		m, err = restoreLazy(ctx, spec, saved, opts)
	case RestoreFile:
		m, err = restoreFile(ctx, spec, saved, opts)
	case RestorePlain:
		m, err = restorePlain(ctx, spec, saved, opts)
	default:
		err = fmt.Errorf("unknown way of restoring %q", way)
	}
	if err != nil {
		return nil, &RestoreError{Guest: spec.Name, Err: err}
	}
	return m, nil
}

// RestoreStream is Restore from a stream as QEMU wrote it.
func RestoreStream(ctx context.Context, spec Spec, r io.Reader, opts Options) (*Machine, error) {
	spec.Incoming = true
	m, err := Start(ctx, spec, opts)
	if err != nil {
		return nil, err
	}
	err = m.orAbandon(ctx, m.load(ctx, func(conn net.Conn) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{r}, make([]byte, chunkSize))
		return err
	}))
	if err != nil {
		return nil, &RestoreError{Guest: spec.Name, Err: err}
	}
	return m, nil
}

// envelope is what of a saved guest comes before and after the pages.
type envelope struct {
	head stream.Head
	tail []byte
}

func readEnvelope(ctx context.Context, spec Spec, saved Saved) (envelope, error) {
	head, err := saved.Head(ctx)
	if err != nil {
		return envelope{}, fmt.Errorf("read the head: %w", err)
	}
	h, err := checkSaved(spec, head, saved.Blocks())
	if err != nil {
		return envelope{}, err
	}
	tail, err := saved.Tail(ctx)
	if err != nil {
		return envelope{}, fmt.Errorf("read the device state: %w", err)
	}
	if _, _, err := stream.SplitTail(tail); err != nil { // QEMU would not notice every cut
		return envelope{}, fmt.Errorf("read the device state: %w", err)
	}
	return envelope{head: h, tail: tail}, nil
}

// startWhile starts QEMU while prepare runs. When one fails the other ends.
func startWhile(ctx context.Context, spec Spec, opts Options, prepare func(context.Context) error, files ...*os.File) (*Machine, error) {
	var m *Machine
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return prepare(gctx) })
	g.Go(func() error {
		var err error
		m, err = start(gctx, spec, opts, files...)
		return err
	})
	if err := g.Wait(); err != nil {
		if m != nil {
			m.abandon()
		}
		return nil, err
	}
	return m, nil
}

// orAbandon returns the error of a restore after the machine was given up.
func (m *Machine) orAbandon(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	m.awaitExit(ctx, err)
	if x := m.ExitError(); x != nil && !errors.As(err, new(*ExitError)) && !errors.Is(x, err) {
		err = errors.Join(err, x)
	}
	m.abandon()
	return err
}

// restorePlain gives QEMU a stream with all pages.
func restorePlain(ctx context.Context, spec Spec, saved Saved, opts Options) (*Machine, error) {
	var env envelope
	m, err := startWhile(ctx, spec, opts, func(ctx context.Context) (err error) {
		env, err = readEnvelope(ctx, spec, saved)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = m.orAbandon(ctx, m.load(ctx, func(conn net.Conn) error {
		return env.write(ctx, conn, saved, func(string) bool { return true })
	}))
	if err != nil {
		return nil, err
	}
	return m, nil
}

// write writes a stream with the blocks that with accepts.
func (env envelope) write(ctx context.Context, to io.Writer, saved Saved, with func(block string) bool) error {
	w := stream.NewWriter(to)
	if err := w.Head(env.head.Raw, env.head.Blocks); err != nil {
		return err
	}
	for i, b := range env.head.Blocks {
		if !with(b.Name) {
			continue
		}
		if err := writeBlock(ctx, w, saved, i, b); err != nil {
			return err
		}
	}
	if err := w.Tail(env.tail); err != nil {
		return err
	}
	return w.Close()
}

// writeBlock writes the pages of a block. Zero pages of main memory are left
// out, it is zero when QEMU starts; ROMs and the like are not.
func writeBlock(ctx context.Context, w *stream.Writer, saved Saved, block int, b stream.Block) error {
	next := uint64(0)
	zeros := func(end uint64) error {
		for ; b.Name != ramBlock && next < end; next++ {
			if err := w.Zero(block, next*stream.PageSize); err != nil {
				return err
			}
		}
		next = end
		return nil
	}
	err := eachPage(ctx, saved, block, b, func(number uint64, data []byte) error {
		if err := zeros(number); err != nil {
			return err
		}
		next = number + 1
		return w.Page(block, number*stream.PageSize, data)
	})
	if err != nil {
		return err
	}
	return zeros(b.Pages())
}

// eachPage is Saved.Each with an error that names the page.
func eachPage(ctx context.Context, saved Saved, block int, b stream.Block, fn func(number uint64, data []byte) error) error {
	next := uint64(0)
	var fnErr error
	err := saved.Each(ctx, block, func(number uint64, data []byte) error {
		if number < next || number >= b.Pages() || len(data) != stream.PageSize {
			fnErr = fmt.Errorf("page %d of %d bytes after page %d of block %q, which has %d", number, len(data), next, b.Name, b.Pages())
			return fnErr
		}
		next = number + 1
		fnErr = fn(number, data)
		return fnErr
	})
	if err != nil && fnErr == nil && ctx.Err() == nil {
		return &PageError{Block: b.Name, Number: next, Err: err}
	}
	return err
}

// listen makes QEMU wait for a stream and connects to it.
func (m *Machine) listen(ctx context.Context, caps map[string]bool) (net.Conn, error) {
	path := filepath.Join(m.spec.Dir, sockLoad)
	if err := m.migrationSetup(ctx, caps, map[string]any{"announce-rounds": 0}); err != nil {
		return nil, err
	}
	if err := m.execute(ctx, "migrate-incoming", map[string]any{"uri": "unix:" + path}, nil); err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(path) }()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to load: %w", err)
	}
	return conn, nil
}

// load loads the whole stream that feed writes.
func (m *Machine) load(ctx context.Context, feed func(net.Conn) error) error {
	ev := newEventLog(m.Events())
	defer ev.close()
	conn, err := m.listen(ctx, nil)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = feed(conn)
	_ = conn.Close()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("feed snapshot: %w", err)
	}
	return m.loaded(ctx, ev)
}

// loaded waits until QEMU has taken the whole stream.
func (m *Machine) loaded(ctx context.Context, ev *eventLog) error {
	for {
		next := ev.next()
		info, err := m.queryMigrate(ctx)
		if err != nil {
			return err
		}
		switch info.Status {
		case migFailed, migCancelled:
			return &MigrationError{Desc: info.Error}
		case migCompleted:
			return m.settlePaused(ctx, nil)
		}
		t := time.NewTimer(poll)
		select {
		case <-next:
		case <-t.C:
		case <-m.done:
			return m.exit
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}

// settlePaused makes sure that the loaded guest is paused. QEMU reports the
// load as complete before it sets the run state. Closing over ends the wait.
func (m *Machine) settlePaused(ctx context.Context, over <-chan struct{}) error {
	for {
		st, err := m.Status(ctx)
		if err != nil {
			return err
		}
		switch st {
		case StatePaused:
			return nil
		case StateRunning:
			if err := m.Pause(ctx); err != nil {
				return err
			}
		case StateInMigrate, StatePrelaunch, StateFinish:
		case StatePostmig:
			return nil // stopped, and cont works
		default:
			return fmt.Errorf("the snapshot is of a guest in state %q, which cannot go on", st)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-over:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("guest is still in state %q: %w", st, ctx.Err())
		}
	}
}

// awaitExit gives a QEMU that fails to load the time to say why and end.
func (m *Machine) awaitExit(ctx context.Context, cause error) {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) || errors.As(cause, new(*PageError)) {
		return
	}
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-m.done:
	case <-t.C:
	case <-ctx.Done():
	}
}
