//go:build e2e

package vm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/vm/stream"
)

// savedPart is a Saved from memory whose reading can be made slow or fail.
type savedPart struct {
	*part
	hot   []PageRange
	page  func(ctx context.Context, block int, number uint64) error // before each
	asked atomic.Int64
}

func (s *savedPart) Head(context.Context) ([]byte, error)     { return s.head, nil }
func (s *savedPart) Tail(context.Context) ([]byte, error)     { return s.tail, nil }
func (s *savedPart) Blocks() []stream.Block                   { return s.blocks }
func (s *savedPart) Hot(context.Context) ([]PageRange, error) { return s.hot, nil }

func (s *savedPart) Page(ctx context.Context, block int, number uint64, dst []byte) (bool, error) {
	s.asked.Add(1)
	if s.page != nil {
		if err := s.page(ctx, block, number); err != nil {
			return false, err
		}
	}
	data, ok := s.pages[block][number]
	copy(dst, data)
	return !ok, nil
}

func (s *savedPart) Each(ctx context.Context, block int, fn func(uint64, []byte) error) error {
	for n := range s.blocks[block].Pages() {
		data, ok := s.pages[block][n]
		if !ok {
			continue
		}
		if s.page != nil {
			if err := s.page(ctx, block, n); err != nil {
				return err
			}
		}
		if err := fn(n, data); err != nil {
			return err
		}
	}
	return nil
}

// takePart is take for a part.
func takePart(t *testing.T, m *Machine, a *agent, e Engine, full bool) (*savedPart, cutState) {
	t.Helper()
	sink, at, _ := take(t, m, a, e, full)
	return &savedPart{part: takeApart(t, sink)}, at
}

func restoredIn(t *testing.T, way RestoreWay, like Spec, s Saved, at cutState, phys uint64, full bool) (*Machine, *agent) {
	t.Helper()
	return restoredBy(t, like, at, phys, full, func(ctx context.Context, spec Spec) (*Machine, error) {
		return Restore(ctx, spec, s, way, testOptions(t))
	})
}

// await waits for a channel to be closed.
func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatal("nothing happens")
	}
}

// Every way brings back a guest in full; every engine works on it; and what
// they made can be restored in the same way again.
func TestRestoreWays(t *testing.T) {
	for _, way := range RestoreWays() {
		t.Run(string(way), func(t *testing.T) {
			spec := testSpec(t, 256, 16, time.Millisecond)
			m, a := startGuest(t, spec)
			_, phys := a.get(t)
			s, at := takePart(t, m, a, EngineBackground, true)
			_ = m.Close()
			m, a = restoredIn(t, way, spec, s, at, phys, true)
			for _, e := range Engines() {
				s, at = takePart(t, m, a, e, true)
			}
			if err := m.FillError(); err != nil {
				t.Error(err)
			}
			t.Logf("%+v", m.FillStats())
			_ = m.Close()
			m, a = restoredIn(t, way, spec, s, at, phys, false)
			await(t, m.Filled())
			for _, e := range Engines() {
				take(t, m, a, e, false)
			}
			t.Logf("%+v", m.FillStats())
		})
	}
}

// The guest runs while its memory is fetched slowly, and cannot be saved yet.
func TestLazyGuestRunsBeforeItsMemoryIsThere(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	_, phys := a.get(t)
	s, at := takePart(t, m, a, EngineStopCopy, false)
	_ = m.Close()
	gate := make(chan struct{})
	slow := &gatedPart{savedPart: s, gate: gate}
	m, a = restoredIn(t, RestoreLazy, spec, slow, at, phys, false)
	first, _ := a.get(t)
	for range 3 {
		if n, _ := a.get(t); n < first {
			t.Fatal("the guest went backwards")
		}
	}
	ctx := testContext(t)
	for _, e := range Engines() {
		if _, err := m.Snapshot(ctx, e, &memSink{}, SnapshotOptions{}); !errors.Is(err, ErrFilling) {
			t.Errorf("%s while memory is missing: %v", e, err)
		}
	}
	select {
	case <-m.Filled():
		t.Error("memory is there although it was held back")
	default:
	}
	// It can be paused and continued meanwhile.
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	a.get(t)
	close(gate)
	await(t, m.Filled())
	if err := m.FillError(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", m.FillStats())
	take(t, m, a, EngineBackground, false)
}

// gatedPart holds what is not asked for back until the gate opens.
type gatedPart struct {
	*savedPart
	gate chan struct{}
}

func (s *gatedPart) Each(ctx context.Context, block int, fn func(uint64, []byte) error) error {
	select {
	case <-s.gate:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.savedPart.Each(ctx, block, fn)
}

// A guest that needs a page that cannot be had is lost, and says why.
func TestLazyRestoreLosesAPage(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	_, phys := a.get(t)
	s, _ := takePart(t, m, a, EngineStopCopy, false)
	_ = m.Close()
	last := uint64(0) // page that is not zero
	for i, b := range s.blocks {
		for n := range s.pages[i] {
			if b.Name == ramBlock {
				last = max(last, n)
			}
		}
	}
	boom := errors.New("no level has object 1234: local, partner n2")
	for name, when := range map[string]func(number uint64) bool{
		"demanded":   func(n uint64) bool { return n == phys/stream.PageSize },
		"background": func(n uint64) bool { return n == last },
	} {
		t.Run(name, func(t *testing.T) {
			lost := &savedPart{part: s.part, page: func(_ context.Context, block int, n uint64) error {
				if s.blocks[block].Name == ramBlock && when(n) {
					return boom
				}
				return nil
			}}
			ctx := testContext(t)
			spec := testSpec(t, 256, 1, 0)
			spec.KillWithParent = true
			m, err := Restore(ctx, spec, lost, RestoreLazy, testOptions(t))
			if err == nil {
				defer func() { _ = m.Close() }()
				_ = m.Cont(ctx) // which may come too late
				await(t, m.Filled())
				await(t, m.Done())
				err = m.ExitError()
				if ferr := m.FillError(); !errors.Is(ferr, boom) {
					t.Errorf("fill error: %v", ferr)
				}
			}
			var p *PageError
			if !errors.Is(err, boom) || !errors.As(err, &p) || p.Block != ramBlock {
				t.Fatalf("lost with %v", err)
			}
			t.Log(err)
		})
	}
	for _, way := range []RestoreWay{RestoreFile, RestorePlain} {
		t.Run(string(way), func(t *testing.T) {
			lost := &savedPart{part: s.part, page: func(context.Context, int, uint64) error { return boom }}
			spec := testSpec(t, 256, 1, 0)
			_, err := Restore(testContext(t), spec, lost, way, testOptions(t))
			var p *PageError
			var r *RestoreError
			if !errors.Is(err, boom) || !errors.As(err, &p) || !errors.As(err, &r) {
				t.Fatalf("restored: %v", err)
			}
			t.Log(err)
		})
	}
}

// Device state that is damaged is QEMU's to refuse; what QEMU says is told.
func TestRestoreRefusesDamagedTail(t *testing.T) {
	spec := testSpec(t, 128, 1, time.Millisecond)
	m, a := startGuest(t, spec)
	s, _ := takePart(t, m, a, EngineStopCopy, false)
	_ = m.Close()
	for _, way := range RestoreWays() {
		for name, damage := range map[string]func(p *part){
			"cut":     func(p *part) { p.tail = p.tail[:len(p.tail)/3] },
			"garbled": func(p *part) { p.tail[5] ^= 1; p.tail[6] ^= 0x40 },
			"head":    func(p *part) { p.head = p.head[:len(p.head)-1] },
		} {
			t.Run(fmt.Sprint(way, " ", name), func(t *testing.T) {
				p := *s.part
				p.tail = append([]byte(nil), p.tail...)
				damage(&p)
				m, err := Restore(testContext(t), testSpec(t, 128, 1, 0), &savedPart{part: &p}, way, testOptions(t))
				var re *RestoreError
				if !errors.As(err, &re) {
					_ = m.Close()
					t.Fatalf("restored: %v", err)
				}
				t.Log(err)
			})
		}
	}
}
