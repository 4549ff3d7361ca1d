//go:build e2e

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// cutState is what is seen of a guest at its cut.
type cutState struct {
	counter uint64
	ram     [32]byte
}

// take makes a snapshot and checks that the guest went on.
func take(t *testing.T, m *Machine, a *agent, e Engine, full bool) (*memSink, cutState, Result) {
	t.Helper()
	ctx := testContext(t)
	before, phys := a.get(t)
	sink := &memSink{}
	s, err := m.Snapshot(ctx, e, sink, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	var at cutState
	times, err := s.Cut(ctx, func(ctx context.Context) error {
		if st, err := m.Status(ctx); err != nil || st == StateRunning {
			t.Errorf("at the cut the guest is %q (%v)", st, err)
		}
		var err error
		if at.counter, err = peek(ctx, m, phys); err != nil {
			return err
		}
		if full {
			at.ram, err = memory(ctx, m)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if e == EngineBackground && times.Resumed.IsZero() {
		t.Error("background: the guest does not run after the cut")
	}
	r, err := s.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if int64(sink.Len()) != r.Bytes || sink.closed != 1 || sink.cause != nil {
		t.Errorf("sink has %d bytes of %d, closed %d times with %v", sink.Len(), r.Bytes, sink.closed, sink.cause)
	}
	if r.Pause <= 0 {
		t.Errorf("no pause: %+v", r)
	}
	if st, err := m.Status(ctx); err != nil || st != StateRunning {
		t.Fatalf("after the snapshot the guest is %q (%v)", st, err)
	}
	after, _ := a.get(t)
	if at.counter < before || after < at.counter {
		t.Errorf("counter before %d, at the cut %d, after %d", before, at.counter, after)
	}
	return sink, at, r
}

// restored starts a guest from a snapshot and checks that it continues from
// the cut.
func restored(t *testing.T, like Spec, sink *memSink, at cutState, phys uint64, full bool) (*Machine, *agent) {
	t.Helper()
	return restoredBy(t, like, at, phys, full, func(ctx context.Context, spec Spec) (*Machine, error) {
		return RestoreStream(ctx, spec, bytes.NewReader(sink.Bytes()), testOptions(t))
	})
}

func restoredBy(t *testing.T, like Spec, at cutState, phys uint64, full bool, restore func(context.Context, Spec) (*Machine, error)) (*Machine, *agent) {
	t.Helper()
	ctx := testContext(t)
	spec := testSpec(t, like.MemoryMiB, 1, 0)
	spec.Append, spec.KillWithParent = like.Append, true
	m, err := restore(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if st, err := m.Status(ctx); err != nil || st == StateRunning {
		t.Fatalf("the restored guest is %q (%v), want it stopped", st, err)
	}
	n, err := peek(ctx, m, phys)
	if err != nil || n != at.counter {
		t.Fatalf("restored counter is %d (%v), at the cut it was %d", n, err, at.counter)
	}
	if full {
		await(t, m.Filled())
		if ram, err := memory(ctx, m); err != nil || ram != at.ram {
			t.Errorf("restored RAM differs from that at the cut (%v)", err)
		}
	}
	if err := m.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	a := dialAgent(t, m)
	if n, _ := a.get(t); n < at.counter {
		t.Fatalf("restored guest counts %d, at the cut it was at %d", n, at.counter)
	}
	return m, a
}

// Every engine twice on one guest, every snapshot restored, the restored guest
// snapshotted with every engine again, and restored again.
func TestEngines(t *testing.T) {
	for _, e := range Engines() {
		t.Run(string(e), func(t *testing.T) {
			spec := testSpec(t, 256, 16, time.Millisecond)
			m, a := startGuest(t, spec)
			_, phys := a.get(t)
			take(t, m, a, e, false)
			sink, at, r := take(t, m, a, e, true)
			t.Logf("%+v", r)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m2, a2 := restored(t, spec, sink, at, phys, true)
			for _, e2 := range Engines() {
				sink, at, _ = take(t, m2, a2, e2, false)
			}
			_ = m2.Close()
			restored(t, spec, sink, at, phys, false)
		})
	}
}

// Guests boot, with a disk and a NIC, several at the same time.
func TestBoot(t *testing.T) {
	for i := range 3 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			spec := testSpec(t, 128, 1, time.Millisecond)
			_, a := startGuest(t, spec)
			first, _ := a.get(t)
			if n, _ := a.get(t); n < first {
				t.Errorf("counter went from %d to %d", first, n)
			}
			st, err := os.Stat(spec.Dir)
			if err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("runtime directory: %v, %v", st.Mode(), err)
			}
		})
	}
}

func TestAbort(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	for _, e := range Engines() {
		for _, when := range []string{"new", "prepared", "hook", "copying", "sink"} {
			t.Run(string(e)+"/"+when, func(t *testing.T) {
				ctx := testContext(t)
				sink := Sink(&memSink{})
				pr, pw := io.Pipe()
				if when == "copying" {
					sink = pw // nobody reads: the copy cannot end by itself
				}
				if when == "sink" {
					sink = pw
					_ = pr.CloseWithError(errors.New("disk full"))
				}
				s, err := m.Snapshot(ctx, e, sink, SnapshotOptions{BufferBytes: 256 << 20})
				if err != nil {
					t.Fatal(err)
				}
				if when != "new" {
					if err := s.Prepare(ctx); err != nil {
						t.Fatal(err)
					}
				}
				switch when {
				case "new", "prepared":
					if err := s.Abort(ctx); err != nil {
						t.Error(err)
					}
				case "hook":
					boom := errors.New("boom")
					if _, err := s.Cut(ctx, func(context.Context) error { return boom }); !errors.Is(err, boom) {
						t.Errorf("cut: %v", err)
					}
				case "copying":
					if _, err := s.Cut(ctx, nil); err != nil {
						t.Fatal(err)
					}
					if err := s.Abort(ctx); err != nil {
						t.Error(err)
					}
					if _, err := s.Wait(ctx); !errors.Is(err, ErrAborted) {
						t.Errorf("wait: %v", err)
					}
				case "sink":
					if _, err := s.Cut(ctx, nil); err != nil {
						t.Fatal(err)
					}
					if _, err := s.Wait(ctx); err == nil || !strings.Contains(err.Error(), "disk full") {
						t.Errorf("wait: %v", err)
					}
				}
				if err := s.Abort(ctx); err != nil {
					t.Error("second abort:", err)
				}
				if st, err := m.Status(ctx); err != nil || st != StateRunning {
					t.Fatalf("guest is %q (%v)", st, err)
				}
				a.get(t)
			})
		}
	}
	take(t, m, a, EngineBackground, false)
}

func TestBusyAndNotRunning(t *testing.T) {
	m, _ := startGuest(t, testSpec(t, 128, 1, time.Millisecond))
	ctx := testContext(t)
	s, err := m.Snapshot(ctx, EngineStopCopy, &memSink{}, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Snapshot(ctx, EngineStopCopy, &memSink{}, SnapshotOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("second snapshot: %v", err)
	}
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Cut(ctx, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("cut of a paused guest: %v", err)
	}
}

func TestKillAndExitError(t *testing.T) {
	defer goleak.VerifyNone(t)
	spec := testSpec(t, 128, 1, time.Millisecond)
	spec.KillWithParent = true
	ctx := testContext(t)
	m, err := Start(ctx, spec, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if m.ExitError() != nil {
		t.Error("exit error of a machine that runs")
	}
	for range 2 {
		if err := m.Kill(ctx); err != nil {
			t.Fatal(err)
		}
	}
	<-m.Done()
	var x *ExitError
	if !errors.As(m.ExitError(), &x) || !x.Killed {
		t.Errorf("exit: %v", m.ExitError())
	}
	if _, err := m.Status(ctx); err == nil {
		t.Error("status of a dead machine")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	bad := spec
	bad.Kernel = "/nonexistent"
	if _, err := Start(ctx, bad, Options{}); !errors.As(err, &x) || !strings.Contains(x.Stderr, "/nonexistent") {
		t.Errorf("start without kernel: %v", err)
	}
}

// A guest dies with its owner if and only if it was asked to.
func TestOwnerIsKilled(t *testing.T) {
	for _, die := range []bool{true, false} {
		t.Run(fmt.Sprint(die), func(t *testing.T) {
			ctx := testContext(t)
			spec := testSpec(t, 16, 1, 0)
			owner := exec.CommandContext(ctx, os.Args[0])
			owner.Env = append(os.Environ(), "VFT_TEST_OWNER="+spec.Dir)
			if die {
				owner.Env = append(owner.Env, "VFT_TEST_DIE=1")
			}
			out, err := owner.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			_, serr := fmt.Fscanf(out, "pid %d\n", &pid)
			if serr != nil {
				_ = owner.Process.Kill()
				_ = owner.Wait()
				t.Fatal(serr)
			}
			pidfd, err := openPidfd(pid)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = pidfd.Close() }()
			_ = owner.Process.Kill()
			_ = owner.Wait()
			if die {
				if err := (&process{pid: pid, pidfd: pidfd}).wait(); err != nil {
					t.Error(err)
				}
				return
			}
			m, err := Adopt(ctx, spec.Dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Kill(ctx); err != nil {
				t.Error(err)
			}
			_ = m.Close()
		})
	}
}

func TestAdopt(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx := testContext(t)
	spec := testSpec(t, 256, 4, time.Millisecond)
	m, err := Start(ctx, spec, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also when the test fails while nobody owns the guest
		if m, err := Adopt(context.WithoutCancel(ctx), spec.Dir, Options{}); err == nil {
			_ = m.Kill(context.WithoutCancel(ctx))
			_ = m.Close()
		}
	})
	first := dialAgent(t, m)
	before, _ := first.get(t)
	_ = first.conn.Close()            // QEMU serves one connection at a time
	if err := m.Close(); err != nil { // as a sidecar that ends
		t.Fatal(err)
	}
	m, err = Adopt(ctx, spec.Dir, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, spec, Options{}); err == nil {
		t.Error("a second machine was started in the same directory")
	}
	a := dialAgent(t, m)
	if n, _ := a.get(t); n < before {
		t.Errorf("counter went back from %d to %d", before, n)
	}
	for _, e := range Engines() {
		take(t, m, a, e, false)
	}
	if err := m.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	var x *ExitError
	if !errors.As(m.ExitError(), &x) || !x.Killed {
		t.Errorf("exit: %v", m.ExitError())
	}
	_ = m.Close()
	if _, err := Adopt(ctx, spec.Dir, Options{}); !errors.Is(err, ErrNoMachine) {
		t.Errorf("adopt of a dead machine: %v", err)
	}
	_ = a.conn.Close()
}

func TestRestoreRefusesDamage(t *testing.T) {
	spec := testSpec(t, 128, 1, time.Millisecond)
	m, a := startGuest(t, spec)
	sink, _, _ := take(t, m, a, EngineStopCopy, false)
	b := sink.Bytes()
	for name, r := range map[string]io.Reader{
		"empty":     bytes.NewReader(nil),
		"truncated": bytes.NewReader(b[:len(b)/2]),
		"garbage":   strings.NewReader(strings.Repeat("garbage", 1000)),
		"reader":    io.MultiReader(bytes.NewReader(b[:len(b)/2]), errReader{}),
	} {
		t.Run(name, func(t *testing.T) {
			s := testSpec(t, 128, 1, 0)
			_, err := RestoreStream(testContext(t), s, r, Options{})
			var re *RestoreError
			if !errors.As(err, &re) {
				t.Fatalf("restore: %v", err)
			}
			t.Log(err)
		})
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("page is lost") }

func TestProbe(t *testing.T) {
	f := needGuest(t)
	cache := filepath.Join(t.TempDir(), "probe.json")
	o := ProbeOptions{Binary: os.Getenv("VFT_TEST_QEMU"), Kernel: f.kernel, CacheFile: cache, Log: testLog(t)}
	begin := time.Now()
	c, err := Probe(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c)
	// 4 s on an idle machine, of which 3 s are a KVM that does not answer.
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("probe took %v", took)
	}
	for _, e := range Engines() {
		if !c.Supports(e) && (e != EngineBackground || os.Getuid() == 0) {
			t.Errorf("%s does not work: %+v", e, c.Engines)
		}
	}
	for _, way := range RestoreWays() {
		if got, why := c.RestoreWay(way); got != way && (way != RestoreLazy || os.Getuid() == 0) {
			t.Errorf("%s does not work: %s", way, why)
		}
	}
	again, err := Probe(testContext(t), o)
	if err != nil || !again.Cached || again.Accel != c.Accel {
		t.Errorf("second probe: %+v, %v", again, err)
	}
}

// measure is a snapshot into nothing with an empty hook.
func measure(t *testing.T, m *Machine, e Engine) Result {
	t.Helper()
	ctx := testContext(t)
	s, err := m.Snapshot(ctx, e, discardSink{io.Discard}, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	early := len(s.EarlyStop())
	if _, err := s.Cut(ctx, nil); err != nil {
		t.Fatal(err)
	}
	r, err := s.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if early > 0 {
		t.Logf("the guest stopped by itself before the cut")
	}
	return r
}

// TestPauses prints the pause of every engine for the sizes in the manual, if
// VFT_TEST_PAUSES is set: it measures, and takes half a minute.
func TestPauses(t *testing.T) {
	if os.Getenv("VFT_TEST_PAUSES") == "" {
		t.Skip("VFT_TEST_PAUSES is not set")
	}
	for _, mib := range []int{256, 512} {
		for _, dirty := range []int{8, 64} {
			m, a := startGuest(t, testSpec(t, mib, dirty, time.Millisecond))
			for _, e := range Engines() {
				for range 3 {
					r := measure(t, m, e)
					a.get(t)
					t.Logf("PAUSE %d MiB, dirties %d MiB: %-10s pause %6.1f ms (at cut %4.1f), total %7.1f ms, %4d MB, %4d MB after cut",
						mib, dirty, e, r.Pause.Seconds()*1e3, r.AtCut.Seconds()*1e3, r.Total.Seconds()*1e3, r.Bytes>>20, r.BytesAfterCut>>20)
				}
			}
			_ = m.Close()
		}
	}
}
