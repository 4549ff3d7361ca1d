package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/treetest"
)

// sick is a recorded machine with a DIMM that fails.
func sick(t *testing.T) string {
	t.Helper()
	return treetest.Unpack(t, "../../health/edac/testdata/dimm.txt", "../../health/mdraid/testdata/mdstat.txt")
}

func TestHealthProbe(t *testing.T) {
	root := sick(t)
	text := string(output(t, "health", "probe", "--root", root))
	assert.Regexp(t, `(?m)^edac +corrected +mc0/dimm0 +17 +errors +CPU_SrcID#0_MC#0_Chan#0_DIMM#0$`, text)
	assert.Regexp(t, `(?m)^edac +ok +\S+ +\S+ +9 *$`, text)
	assert.Regexp(t, `(?m)^smart +not there .*smartmontools`, text)
	assert.Regexp(t, `(?m)^verdict failing, confidence 0\.\d\d, lead 1h$`, text)
	assert.Regexp(t, `(?m)^  failing 0\.60  memory-uncorrected: DIMM mc1/rank0 P1-DIMMA1: 1 uncorrected errors since boot$`, text)
	assert.Regexp(t, `(?m)^cost 0\.\d+ % of one core`, text)

	var seen struct {
		Verdict struct {
			State   string
			Reasons []struct{ Rule, Subject string }
		}
		Probes []struct {
			Probe, Outcome string
			Readings       []struct{ Metric string }
		}
	}
	require.NoError(t, json.Unmarshal(output(t, "--json", "health", "probe", "--root", root), &seen))
	assert.Equal(t, "failing", seen.Verdict.State)
	assert.Equal(t, "memory-uncorrected", seen.Verdict.Reasons[0].Rule)
	assert.Equal(t, "edac", seen.Probes[0].Probe)
	assert.Equal(t, "ok", seen.Probes[0].Outcome)
	assert.Len(t, seen.Probes[0].Readings, 12)
}

func TestHealthRecordAndReplay(t *testing.T) {
	root := sick(t)
	file := filepath.Join(t.TempDir(), "readings")
	output(t, "health", "probe", "--root", root, "--record", file)
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	output(t, "health", "probe", "--root", root, "--record", file)
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(after), string(before)), "a recording is not appended to")

	text := string(output(t, "health", "replay", file))
	assert.Regexp(t, `(?m)^\S+T\S+ unknown → verdict failing, confidence 0\.60, lead 1h$`, text)
	assert.Regexp(t, `(?m)^\S+T\S+ raised  failing 0\.60  memory-uncorrected: DIMM mc1/rank0`, text)
	assert.Regexp(t, `(?m)^\d+ readings; at the end failing$`, text)

	first, _, _ := strings.Cut(string(output(t, "--json", "health", "replay", file)), "\n")
	var change struct {
		From    string
		Verdict struct{ State string }
	}
	require.NoError(t, json.Unmarshal([]byte(first), &change))
	assert.Equal(t, "unknown", change.From)
	assert.Equal(t, "failing", change.Verdict.State)

	// Other rules decide otherwise about the same readings.
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(rules, []byte("version: 1\nrules: [{name: memory-uncorrected, off: true}]\n"), 0o600))
	assert.NotContains(t, string(output(t, "health", "replay", file, "--rules", rules)), "memory-uncorrected")
}

func TestHealthRules(t *testing.T) {
	text := output(t, "health", "rules")
	file := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	assert.Contains(t, string(output(t, "health", "rules", "--check", file)), "is right")
	assert.Equal(t, string(text), string(output(t, "health", "rules", "--rules", file)))
	var list []struct{ Name, When string }
	require.NoError(t, json.Unmarshal(output(t, "--json", "health", "rules"), &list))
	assert.Greater(t, len(list), 40)

	require.NoError(t, os.WriteFile(file, []byte("version: 1\nrules:\n  - {name: x, probe: p, metric: m, when: valu > 1, level: failing, confidence: 1, lead: 1h, evidence: e}\n"), 0o600))
	quiet(t)
	assert.Equal(t, exitFailure, run(t.Context(), []string{"health", "rules", "--check", file}))
	assert.Equal(t, exitUsage, run(t.Context(), []string{"health", "replay"}))
	assert.Equal(t, exitFailure, run(t.Context(), []string{"health", "replay", file}))
}

// follow runs a command whose output a test reads meanwhile.
func follow(t *testing.T, args ...string) (text func() string, done <-chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	root := newRoot()
	root.SetOut(f)
	root.SetArgs(args)
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(t.Context()) }()
	return func() string {
		data, _ := os.ReadFile(path)
		return string(data)
	}, ended
}

func eventually(t *testing.T, text func() string, what string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(text(), what) }, 20*time.Second, 5*time.Millisecond, "never says %q", what)
}

// A watched machine gets worse; the rules are read again; then the process is
// told to go, which is the last thing that it sees.
func TestHealthWatch(t *testing.T) {
	root := sick(t)
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	write := func(more string) {
		require.NoError(t, os.WriteFile(rules, []byte("version: 1\nprobes: {edac: {every: 1s, limit: 1s}}\n"+more), 0o600))
	}
	write("")
	text, done := follow(t, "health", "probe", "--watch", "--root", root, "--rules", rules, "--grace", "1s")
	eventually(t, text, "raised  failing 0.60  memory-uncorrected: DIMM mc1/rank0")
	eventually(t, text, "probe smart not there: smartctl is not installed")
	treetest.Write(t, root, "-- sys/devices/system/edac/mc/mc0/dimm2/dimm_ue_count --\n3\n")
	eventually(t, text, "memory-uncorrected: DIMM mc0/dimm2 : 3 uncorrected errors")

	write("rules: [{name: memory-uncorrected, off: true}]\n")
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, text, "cleared  failing 0.60  memory-uncorrected")

	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	eventually(t, text, "raised  failing 0.95  notice: announced: signal: terminated")
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the grace time is over, but the command goes on")
	}
}
