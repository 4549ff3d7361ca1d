package sidecar

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/probeset"
)

// healthRules reads the memory's counters and nothing else.
const healthRules = `
version: 1
base: none
levels: {suspect: 0.05, failing: 0.4}
probes:
  edac: {every: 1s, limit: 1s}
  hwevent: {off: true}
  smart: {off: true}
  mdraid: {off: true}
  thermal: {off: true}
  ipmi: {off: true}
  fabric: {off: true}
  pcie: {off: true}
  pressure: {off: true}
  memory: {off: true}
  filesystem: {off: true}
  clock: {off: true}
rules:
  - name: memory-uncorrected
    probe: edac
    metric: uncorrected
    when: value > 0
    level: failing
    confidence: 0.6
    lead: 1h
    evidence: 'DIMM {subject}: {value} uncorrected errors since boot'
`

// countUncorrected sets the counter of a machine's DIMM.
func countUncorrected(t *testing.T, root, count string) {
	t.Helper()
	dir := filepath.Join(root, "sys/devices/system/edac/mc/mc0/dimm1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dimm_ue_count"), []byte(count+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestHealthWatch: the verdict changes when the machine's counters do, not
// otherwise, and another process of the sidecar knows it.
func TestHealthWatch(t *testing.T) {
	root, data := t.TempDir(), t.TempDir()
	rules, err := health.ParseRules("test", []byte(healthRules))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{}, 10)
	reload := make(chan *health.Rules)
	start := func() (*healthWatch, func()) {
		machine := host.New(root)
		probes := probeset.New(machine, rules)
		for i := range probes {
			probes[i].Every = 20 * time.Millisecond
		}
		w := newHealthWatch(Health{Probes: probes, Rules: rules, Boot: "b", Reload: reload}, data,
			slog.New(slog.DiscardHandler), func() { told <- struct{}{} })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.run(ctx) }()
		return w, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	next := func() {
		t.Helper()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("no change of the verdict")
		}
	}
	want := func(w *healthWatch, state vftv1.HealthState) {
		t.Helper()
		if got := w.now().GetState(); got != state {
			t.Fatalf("the verdict is %v, want %v", got, state)
		}
	}
	w, stop := start()
	want(w, vftv1.HealthState_HEALTH_STATE_UNSPECIFIED)
	countUncorrected(t, root, "0")
	next()
	want(w, vftv1.HealthState_HEALTH_STATE_HEALTHY)
	countUncorrected(t, root, "1")
	next()
	want(w, vftv1.HealthState_HEALTH_STATE_FAILING)
	h := w.now()
	if got := h.GetWatching(); !slices.Equal(got, []string{"memory-uncorrected"}) {
		t.Errorf("rules %q watch", got)
	}
	if r := h.GetReasons()[0]; r.GetEvidence() != "DIMM mc0/dimm1: 1 uncorrected errors since boot" || h.GetLead() != int64(time.Hour) || h.GetConfidence() != 0.6 {
		t.Errorf("verdict %v", h)
	}
	stop()
	select {
	case <-told:
		t.Error("the verdict changed although nothing did")
	default:
	}
	w, stop = start()
	want(w, vftv1.HealthState_HEALTH_STATE_FAILING)
	none, err := health.ParseRules("test", []byte("version: 1\nbase: none\nlevels: {suspect: 0.05, failing: 0.4}\n"))
	if err != nil {
		t.Fatal(err)
	}
	reload <- none
	next()
	want(w, vftv1.HealthState_HEALTH_STATE_HEALTHY)
	stop()
}
