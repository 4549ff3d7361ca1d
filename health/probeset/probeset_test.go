package probeset

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a recorded machine on which everything is there and much is bad.
func machine(t testing.TB) string {
	t.Helper()
	root := treetest.Unpack(t,
		"../edac/testdata/dimm.txt", "../hwevent/testdata/kmsg.txt", "../smart/testdata/disks.txt",
		"../mdraid/testdata/mdstat.txt", "../thermal/testdata/thermal.txt", "../ipmi/testdata/bmc.txt",
		"../fabric/testdata/fabric.txt", "../pcie/testdata/aer.txt", "../filesystem/testdata/mounts.txt",
	)
	treetest.Write(t, root, `-- proc/uptime --
350735.47 234388.90
-- proc/meminfo --
MemTotal:       24000000 kB
MemAvailable:   12000000 kB
HardwareCorrupted:     4 kB
-- proc/vmstat --
oom_kill 0
-- proc/pressure/cpu --
some avg10=0.00 avg60=0.00 avg300=0.00 total=1
-- proc/pressure/memory --
some avg10=0.00 avg60=0.00 avg300=0.00 total=1
full avg10=0.00 avg60=0.00 avg300=0.00 total=1
-- proc/pressure/io --
some avg10=0.00 avg60=0.00 avg300=0.00 total=1
full avg10=0.00 avg60=0.00 avg300=0.00 total=1
-- recorded/clock.json --
{"synchronized": true, "max_error": 0.01, "offset": 0.0001}
-- recorded/nhc/-a.out --
ERROR:  nhc:  Health check failed:  /scratch is not mounted
-- recorded/nhc/-a.exit --
1
-- etc/drain --
{"kind": "maintenance", "at": "2000-01-01T00:00:00Z", "reason": "new firmware"}
`)
	return root
}

func siteRules(t testing.TB) *health.Rules {
	t.Helper()
	rules, err := health.ParseRules("site", []byte(`version: 1
scripts: [{name: nhc, run: [/usr/sbin/nhc, -a], convention: nhc, every: 5m}]
notices: [{name: drain, file: /etc/drain}, {name: cloud, url: "http://127.0.0.1:1/"}]
`))
	require.NoError(t, err)
	return rules
}

func newRunner(t testing.TB, root string, log *slog.Logger) *health.Runner {
	t.Helper()
	h, rules := host.New(root), siteRules(t)
	r := health.NewRunner(health.Config{Probes: New(h, rules), Rules: rules, Uptime: h.Uptime(), Log: log})
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

func TestARecordedMachine(t *testing.T) {
	r := newRunner(t, machine(t), nil)
	var probes []string
	for _, report := range r.Once(t.Context()) {
		probes = append(probes, report.Probe)
		want := health.OK
		if report.Probe == "notice/file" {
			want = health.NotThere
		}
		assert.Equal(t, want, report.Outcome, "%s: %s", report.Probe, report.Reason)
		for _, reading := range report.Readings {
			assert.InDelta(t, 350735, reading.Up, 60, "times are not those of the machine")
		}
	}
	assert.Equal(t, []string{
		"edac", "hwevent", "smart", "mdraid", "thermal", "ipmi", "fabric", "pcie", "pressure",
		"memory", "filesystem", "clock", "notice/file", "notice/drain", "script/nhc",
	}, probes)
	v := r.Verdict()
	assert.Equal(t, health.Failing, v.State)
	assert.Greater(t, v.Confidence, 0.99)
	var reasons []string
	for _, reason := range v.Reasons {
		reasons = append(reasons, fmt.Sprintf("%s %s", reason.Rule, reason.Subject))
	}
	slices.Sort(reasons)
	assert.Equal(t, []string{
		"bmc-critical CPU1 Temp", "bmc-critical CPU2 Temp", "bmc-critical FAN2", "bmc-critical PS2 Status",
		"bmc-nonrecoverable CPU2 Temp",
		"disk-failing bus/0 megaraid,3 ZC1ABCDE",
		"machine-check-uncorrected CPU_SrcID#1_Ha#0_Chan#1_DIMM#0",
		"machine-check-uncorrected cpu12/bank9",
		"machine-check-uncorrected firmware",
		"memory-page-lost ",
		"memory-uncorrected mc1/rank0",
		"notice ",
		"nvme-critical nvme0 NVME0001",
		"nvme-critical-other nvme0 NVME0001",
		"raid-degraded md0", "raid-degraded md1",
		"script-critical ",
	}, reasons)
	var pending []string
	for _, reason := range r.Pending() {
		pending = append(pending, reason.Rule)
	}
	assert.ElementsMatch(t, []string{"too-hot", "sensor-alarm", "sensor-alarm", "filesystem-full"}, pending)
}

// On a machine that has nothing to read, nothing is healthy and nobody is
// bothered.
func TestAnEmptyMachine(t *testing.T) {
	var log bytes.Buffer
	r := newRunner(t, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		for _, report := range r.Once(t.Context()) {
			assert.Equal(t, health.NotThere, report.Outcome, "%s: %s", report.Probe, report.Reason)
			assert.NotEmpty(t, report.Reason)
		}
	}
	assert.Empty(t, log.String())
	assert.Equal(t, health.Unknown, r.Verdict().State)
}

func TestThisMachineIsReadInTime(t *testing.T) {
	began := time.Now()
	h, rules := host.New("/"), siteRules(t)
	r := health.NewRunner(health.Config{Probes: New(h, rules), Rules: rules, Uptime: h.Uptime()})
	reports := r.Once(t.Context())
	require.NoError(t, r.Close())
	assert.Len(t, reports, 17)
	assert.Less(t, time.Since(began), 4*time.Minute)
	assert.NotEqual(t, health.Unknown, r.Verdict().State)
}

func TestOffIsOff(t *testing.T) {
	rules, err := health.ParseRules("site", []byte("version: 1\nprobes: {ipmi: {off: true}, edac: {every: 5s, limit: 1s}}"))
	require.NoError(t, err)
	for _, s := range New(host.New(t.TempDir()), rules) {
		assert.NotEqual(t, "ipmi", s.Probe.Name())
		if s.Probe.Name() == "edac" {
			assert.Equal(t, 5*time.Second, s.Every)
			assert.Equal(t, time.Second, s.Limit)
		}
	}
}

// What programs cost is not measured here: these are processor times of one
// smartctl and one ipmitool, of a machine with 24 disks.
const (
	smartctlCPU = 10 * time.Millisecond
	ipmitoolCPU = 60 * time.Millisecond
	disks       = 24
)

// The default intervals keep probing below 0.1 % of one core.
func TestCost(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector costs more than the probes")
	}
	rules, err := health.DefaultRules()
	require.NoError(t, err)
	h := host.New(machine(t))
	schedule := New(h, rules)
	r := health.NewRunner(health.Config{Probes: schedule, Rules: rules, Uptime: h.Uptime()})
	defer func() { assert.NoError(t, r.Close()) }()
	costs := make([][]time.Duration, len(schedule))
	for range 20 {
		for i, report := range r.Once(t.Context()) {
			costs[i] = append(costs[i], report.CPU)
		}
	}
	total := 0.0
	for i, s := range schedule {
		slices.Sort(costs[i])
		cpu := costs[i][len(costs[i])/2]
		switch s.Probe.Name() {
		case "smart":
			cpu += (1 + disks) * smartctlCPU
		case "ipmi":
			cpu += 2 * ipmitoolCPU
		}
		share := cpu.Seconds() / s.Every.Seconds()
		t.Logf("%-18s %10v every %-6v %.4f %%", s.Probe.Name(), cpu.Round(time.Microsecond), s.Every, 100*share)
		total += share
	}
	t.Logf("%-18s %32.4f %%", "together", 100*total)
	assert.Less(t, total, 0.001)
}

// BenchmarkRound is one round of all probes on a recorded machine, with the
// evaluation of the rules.
func BenchmarkRound(b *testing.B) {
	rules, err := health.DefaultRules()
	if err != nil {
		b.Fatal(err)
	}
	h := host.New(machine(b))
	r := health.NewRunner(health.Config{Probes: New(h, rules), Rules: rules, Uptime: h.Uptime()})
	defer func() {
		if err := r.Close(); err != nil {
			b.Error(err)
		}
	}()
	for b.Loop() {
		r.Once(b.Context())
	}
}
