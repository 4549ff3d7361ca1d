//go:build e2e

package vm

import (
	"context"
	"io"
	"testing"
	"time"
)

// A guest is copied into another QEMU while it runs: the copy goes on from the
// cut, and the guest itself stands still whatever is done but taken back.
func TestHandOver(t *testing.T) {
	for _, e := range []Engine{EnginePreCopy, EngineStopCopy} {
		t.Run(string(e), func(t *testing.T) {
			spec := testSpec(t, 256, 16, time.Millisecond)
			m, a := startGuest(t, spec)
			_, phys := a.get(t)
			for range 2 { // taken back, and gone for good
				ctx := testContext(t)
				pr, pw := io.Pipe()
				s, err := m.Snapshot(ctx, e, pw, SnapshotOptions{HandOver: true})
				if err != nil {
					t.Fatal(err)
				}
				there := make(chan error, 1)
				var copied *Machine
				like := testSpec(t, spec.MemoryMiB, 1, 0)
				like.Append, like.KillWithParent = spec.Append, true
				go func() {
					var err error
					copied, err = RestoreStream(ctx, like, pr, testOptions(t))
					there <- err
				}()
				if err := s.Prepare(ctx); err != nil {
					t.Fatal(err)
				}
				var at cutState
				times, err := s.Cut(ctx, func(ctx context.Context) (err error) {
					at.counter, err = peek(ctx, m, phys)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				r, err := s.Wait(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err := <-there; err != nil {
					t.Fatal(err)
				}
				t.Logf("stopped to loaded %s: %+v", time.Since(times.Stopped), r)
				if err := m.Cont(ctx); err != nil { // as after a renewed lease
					t.Fatal(err)
				}
				if st, err := m.Status(ctx); err != nil || st == StateRunning {
					t.Fatalf("handed over, the guest is %q (%v)", st, err)
				}
				if n, err := peek(ctx, m, phys); err != nil || n != at.counter {
					t.Fatalf("counter %d (%v) moved from %d at the cut", n, err, at.counter)
				}
				if err := copied.Cont(ctx); err != nil {
					t.Fatal(err)
				}
				b := dialAgent(t, copied)
				if n, _ := b.get(t); n < at.counter {
					t.Fatalf("the copy counts %d, at the cut it was at %d", n, at.counter)
				}
				_ = copied.Close()
				if err := m.TakeBack(ctx); err != nil {
					t.Fatal(err)
				}
				if n, _ := a.get(t); n < at.counter {
					t.Fatalf("taken back it counts %d, at the cut it was at %d", n, at.counter)
				}
			}
		})
	}
}

// A guest that was handed over stays stopped when the copy fails.
func TestHandOverFails(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	ctx := testContext(t)
	pr, pw := io.Pipe() // nobody reads
	s, err := m.Snapshot(ctx, EngineStopCopy, pw, SnapshotOptions{HandOver: true, BufferBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Cut(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	_ = pr.Close()
	if st, err := m.Status(ctx); err != nil || st == StateRunning {
		t.Fatalf("after the failed copy the guest is %q (%v)", st, err)
	}
	if err := m.TakeBack(ctx); err != nil {
		t.Fatal(err)
	}
	a.get(t)
}
