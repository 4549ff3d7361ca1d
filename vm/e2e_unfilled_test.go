//go:build e2e

package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/vm/stream"
)

// halfRestore is what a process gets that restores a guest and never ends.
type halfRestore struct {
	Spec   Spec
	Binary string
	Stream string // file
}

const halfFile = "half.json"

// restoreHalf is the life of a process that restores a guest lazily, lets it
// run, holds the background back, and is killed.
func restoreHalf(dir string) int {
	fail := func(err error) int { fmt.Println(err); return 1 }
	var h halfRestore
	b, err := os.ReadFile(filepath.Join(dir, halfFile))
	if err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return fail(err)
	}
	if b, err = os.ReadFile(h.Stream); err != nil {
		return fail(err)
	}
	p := &part{}
	if _, err := stream.NewParser(p, stream.Limits{}).Write(b); err != nil {
		return fail(err)
	}
	ctx := context.Background()
	m, err := Restore(ctx, h.Spec, &gatedPart{&savedPart{part: p}, nil}, RestoreLazy, Options{Binary: h.Binary})
	if err != nil {
		return fail(err)
	}
	if err := m.Cont(ctx); err != nil {
		return fail(err)
	}
	fmt.Println("pid", m.PID())
	<-m.Done()
	return 0
}

// halfRestored starts such a process and returns a function that kills it.
func halfRestored(t *testing.T, spec Spec, sink *memSink) (kill func()) {
	t.Helper()
	dir := t.TempDir()
	h := halfRestore{Spec: spec, Binary: os.Getenv("VFT_TEST_QEMU"), Stream: filepath.Join(dir, "stream")}
	if err := os.WriteFile(h.Stream, sink.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, halfFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), os.Args[0])
	cmd.Env = append(os.Environ(), "VFT_TEST_RESTORER="+dir)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatalf("the restorer says something else: %v", err)
	}
	t.Cleanup(func() { // also when the test fails before the guest is adopted
		if r, err := loadRecord(spec.Dir); err == nil && r.verify() == nil {
			t.Error("the guest lives")
			if p, err := openPidfd(pid); err == nil {
				_ = (&process{pid: pid, pidfd: p}).kill()
				_ = p.Close()
			}
		}
	})
	return kill
}

// A guest whose restorer is killed before all memory is there is lost, and
// whoever adopts it is told so. While the restorer lives nobody else gets it.
func TestRestorerIsKilled(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	sink, _, _ := take(t, m, a, EngineStopCopy, false)
	_ = m.Close()
	half := testSpec(t, 256, 16, time.Millisecond)
	kill := halfRestored(t, half, sink)
	ctx := testContext(t)
	if _, err := Adopt(ctx, half.Dir, testOptions(t)); !errors.Is(err, errRestoring) {
		t.Fatalf("adopted from a process that lives: %v", err)
	}
	kill()
	begin := time.Now()
	if m, err := Adopt(ctx, half.Dir, testOptions(t)); !errors.Is(err, ErrUnfilled) {
		_ = m.Close()
		t.Fatalf("adopted a guest that lacks memory: %v", err)
	}
	t.Logf("found out in %v", time.Since(begin))
	if _, err := Adopt(ctx, half.Dir, testOptions(t)); !errors.Is(err, ErrNoMachine) {
		t.Errorf("adopted again: %v", err)
	}
}

// The same within one process that gives its machine up too early. A guest
// that has all of its memory is adopted, with or without a mark.
func TestAdoptAfterLazyRestore(t *testing.T) {
	spec := testSpec(t, 256, 16, time.Millisecond)
	m, a := startGuest(t, spec)
	s, _ := takePart(t, m, a, EngineStopCopy, false)
	_ = m.Close()
	ctx := testContext(t)
	restore := func(s Saved) (*Machine, Spec) {
		t.Helper()
		spec := testSpec(t, 256, 16, time.Millisecond)
		m, err := Restore(ctx, spec, s, RestoreLazy, testOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = m.proc.kill()
			_ = m.Close()
		})
		if err := m.Cont(ctx); err != nil {
			t.Fatal(err)
		}
		return m, spec
	}
	m, spec = restore(&gatedPart{s, nil})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, m.Filled())
	if err := m.FillError(); !errors.Is(err, ErrUnfilled) {
		t.Errorf("closed too early: %v", err)
	}
	if _, err := Adopt(ctx, spec.Dir, testOptions(t)); !errors.Is(err, ErrUnfilled) {
		t.Fatalf("adopted a guest that lacks memory: %v", err)
	}

	m, spec = restore(s)
	await(t, m.Filled())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spec.Dir, fileFilling), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := Adopt(ctx, spec.Dir, testOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Settle(ctx); err != nil {
			t.Error(err)
		}
		a := dialAgent(t, m)
		take(t, m, a, EngineBackground, false)
		_ = a.conn.Close()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Adopt(ctx, spec.Dir, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Kill(ctx), m.Close()); err != nil {
		t.Error(err)
	}
}
