package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// course is how a metric goes: it begins at from, grows by perMinute, and is
// a counter if it grows.
type course struct{ from, perMinute float64 }

// story is a machine on which a default rule has to raise its alarm, and
// then, when all is well again, to clear it.
type story struct {
	rule           string
	probe, subject string
	metric         string
	well, ill      course            // of the metric
	others         map[string]course // of others, all the time
	stays          bool              // until the machine restarts
	kept           float64           // value after the illness, if not that of well
}

func level(v float64) course  { return course{from: v} }
func growth(v float64) course { return course{perMinute: v} }

var stories = []story{
	{rule: "memory-corrected-rate", probe: "edac", subject: "mc0/dimm0", metric: "corrected", ill: growth(0.1)},
	{rule: "memory-corrected-storm", probe: "edac", subject: "mc0/dimm0", metric: "corrected", ill: growth(100)},
	{rule: "memory-corrected-spread", probe: "hwevent", subject: "DIMM_A1", metric: "pages", ill: growth(0.05)},
	{rule: "memory-uncorrected", probe: "edac", subject: "mc0/dimm0", metric: "uncorrected", ill: level(1), stays: true, kept: 1},
	{rule: "memory-page-lost", probe: "memory", metric: "hardware_corrupted", ill: level(4096), stays: true, kept: 4096},
	{rule: "machine-check-uncorrected", probe: "hwevent", subject: "cpu0/bank7", metric: "uncorrected", ill: level(1), stays: true, kept: 1},
	{rule: "machine-check-corrected", probe: "hwevent", subject: "cpu0/bank7", metric: "corrected", ill: growth(1)},
	{rule: "kernel-lockup", probe: "hwevent", subject: "lockup", metric: "kernel_events", ill: growth(0.1)},
	{rule: "kernel-oops", probe: "hwevent", subject: "oops", metric: "kernel_events", ill: growth(0.1)},
	{rule: "kernel-stall", probe: "hwevent", subject: "hung_task", metric: "kernel_events", ill: growth(0.1)},
	{rule: "gpu-error", probe: "hwevent", subject: "gpu 0000:3b:00", metric: "kernel_events", ill: growth(0.1)},
	{rule: "disk-io-errors", probe: "hwevent", subject: "io_error sda", metric: "kernel_events", ill: growth(0.2)},
	{rule: "disk-resets", probe: "hwevent", subject: "disk_reset nvme0", metric: "kernel_events", ill: growth(0.1)},
	{rule: "disk-failing", probe: "smart", subject: "sda X", metric: "failing", ill: level(1)},
	{rule: "disk-prefail", probe: "smart", subject: "sda X", metric: "prefail", ill: level(1)},
	{rule: "nvme-critical", probe: "smart", subject: "nvme0 X", metric: "critical_warning", ill: level(4)},
	{rule: "nvme-critical-other", probe: "smart", subject: "nvme0 X", metric: "critical_warning", ill: level(2)},
	{rule: "nvme-media-errors", probe: "smart", subject: "nvme0 X", metric: "media_errors", ill: growth(0.01)},
	{rule: "nvme-spare", probe: "smart", subject: "nvme0 X", metric: "available_spare", well: level(100), ill: level(9), kept: 100, others: map[string]course{"available_spare_threshold": level(10)}},
	{rule: "disk-worn-out", probe: "smart", subject: "nvme0 X", metric: "percentage_used", ill: level(101)},
	{rule: "disk-reallocated", probe: "smart", subject: "sda X", metric: "reallocated", ill: growth(0.01)},
	{rule: "disk-reported-uncorrectable", probe: "smart", subject: "sda X", metric: "reported_uncorrectable", ill: growth(0.01)},
	{rule: "disk-command-timeouts", probe: "smart", subject: "sda X", metric: "command_timeouts", ill: growth(0.01)},
	{rule: "disk-pending", probe: "smart", subject: "sda X", metric: "pending", ill: level(8)},
	{rule: "disk-offline-uncorrectable", probe: "smart", subject: "sda X", metric: "offline_uncorrectable", ill: growth(0.01)},
	{rule: "disk-grown-defects", probe: "smart", subject: "sdb X", metric: "grown_defects", ill: growth(0.05)},
	{rule: "disk-uncorrected", probe: "smart", subject: "sdb X", metric: "uncorrected_errors", ill: growth(0.01)},
	{rule: "disk-hangs", probe: "smart", subject: "sda", metric: "timed_out", ill: level(1)},
	{rule: "raid-degraded", probe: "mdraid", subject: "md0", metric: "missing_disks", ill: level(1)},
	{rule: "raid-inactive", probe: "mdraid", subject: "md0", metric: "inactive", ill: level(1)},
	{rule: "too-hot", probe: "thermal", subject: "coretemp", metric: "margin", well: level(40), ill: level(1), kept: 40},
	{rule: "sensor-alarm", probe: "thermal", subject: "coretemp", metric: "alarm", ill: level(1)},
	{rule: "throttled", probe: "thermal", subject: "package0", metric: "package_throttles", ill: growth(100)},
	{rule: "bmc-critical", probe: "ipmi", subject: "FAN1", metric: "sensor_state", ill: level(2)},
	{rule: "bmc-nonrecoverable", probe: "ipmi", subject: "P1 Temp", metric: "sensor_state", ill: level(3)},
	{rule: "bmc-log-hardware", probe: "ipmi", subject: "power", metric: "sel_events", ill: growth(0.01)},
	{rule: "link-lost", probe: "fabric", subject: "mlx5_0/1", metric: "up", well: level(1), ill: level(0), kept: 1},
	{rule: "link-flaps", probe: "fabric", subject: "eth0", metric: "carrier_changes", ill: growth(0.5)},
	{rule: "link-downed", probe: "fabric", subject: "mlx5_0/1", metric: "link_downed", ill: growth(0.2)},
	{rule: "link-symbol-errors", probe: "fabric", subject: "mlx5_0/1", metric: "symbol_errors", ill: growth(10)},
	{rule: "link-errors", probe: "fabric", subject: "eth0", metric: "rx_errors", ill: growth(2000)},
	{rule: "pcie-fatal", probe: "pcie", subject: "0000:3b:00.0", metric: "fatal", ill: level(1), stays: true, kept: 1},
	{rule: "pcie-nonfatal", probe: "pcie", subject: "0000:3b:00.0", metric: "nonfatal", ill: growth(0.1)},
	{rule: "pcie-corrected", probe: "pcie", subject: "0000:3b:00.0", metric: "corrected", ill: growth(100)},
	{rule: "memory-short", probe: "memory", metric: "available_percent", well: level(50), ill: level(1), kept: 50},
	{rule: "memory-killer", probe: "memory", metric: "oom_kills", ill: growth(0.1)},
	{rule: "memory-pressure", probe: "pressure", subject: "memory", metric: "full_avg60", ill: level(60)},
	{rule: "io-pressure", probe: "pressure", subject: "io", metric: "full_avg300", ill: level(95)},
	{rule: "filesystem-read-only", probe: "filesystem", subject: "/scratch", metric: "read_only", ill: level(1)},
	{rule: "filesystem-stalled", probe: "filesystem", subject: "/home", metric: "stalled", ill: level(1)},
	{rule: "filesystem-full", probe: "filesystem", subject: "/", metric: "used_percent", well: level(50), ill: level(99), kept: 50},
	{rule: "filesystem-inodes", probe: "filesystem", subject: "/", metric: "inodes_used_percent", well: level(5), ill: level(99), kept: 5},
	{rule: "filesystem-error", probe: "hwevent", subject: "filesystem sda1", metric: "kernel_events", ill: growth(0.1)},
	{rule: "clock-off", probe: "clock", metric: "offset", well: level(0.001), ill: level(4), kept: 0.001},
	{rule: "script-critical", probe: "script/nhc", metric: "problem", ill: level(2)},
	{rule: "script-warning", probe: "script/own", metric: "problem", ill: level(1)},
	{rule: "notice", probe: "notice/spot", metric: "announced", ill: level(1), others: map[string]course{"seconds_left": level(120)}},
}

// tell plays a story: an hour well, half a day ill, ten days well.
func (s *story) tell(e *Engine) (events []string) {
	up, value := 1.0, s.well.from
	at := func(minutes float64, c course) {
		value += c.perMinute * minutes
		batch := []Reading{{
			Probe: s.probe, Metric: s.metric, Subject: s.subject, Value: value, Up: up,
			Counter: s.ill.perMinute > 0, At: epoch.Add(time.Duration(up) * time.Second),
		}}
		for metric, o := range s.others {
			batch = append(batch, Reading{Probe: s.probe, Metric: metric, Subject: s.subject, Value: o.from, Up: up})
		}
		if c, changed := e.Observe(batch); changed {
			for _, r := range c.Raised {
				events = append(events, "+"+r.Rule)
			}
			for _, r := range c.Cleared {
				events = append(events, "-"+r.Rule)
			}
		}
		up += minutes * 60
	}
	for range 60 {
		at(1, s.well)
	}
	if s.ill.perMinute == 0 {
		value = s.ill.from
	}
	for range 12 * 60 {
		at(1, s.ill)
	}
	if s.ill.perMinute == 0 {
		value = s.kept
	}
	for range 10 * 24 * 6 {
		at(10, course{})
	}
	return events
}

func TestEveryDefaultRule(t *testing.T) {
	rules, err := DefaultRules()
	require.NoError(t, err)
	told := map[string]bool{}
	for _, s := range stories {
		told[s.rule] = true
		t.Run(s.rule, func(t *testing.T) {
			t.Parallel()
			events := s.tell(NewEngine(rules))
			assert.Contains(t, events, "+"+s.rule)
			if s.stays {
				assert.NotContains(t, events, "-"+s.rule)
			} else {
				assert.Contains(t, events, "-"+s.rule)
			}
			raised := 0
			for _, e := range events {
				if e == "+"+s.rule {
					raised++
				}
			}
			assert.Equal(t, 1, raised, "the alarm flaps: %v", events)
		})
	}
	for _, r := range rules.List() {
		assert.True(t, told[r.Name], "no story tells of rule %s", r.Name)
	}
}

// What healthy machines show all the time raises nothing: a raw count of
// corrected errors, ports without cables, mounts that are read-only on
// purpose, an allocation that ends in hours.
func TestHealthyMachinesStayHealthy(t *testing.T) {
	rules, err := DefaultRules()
	require.NoError(t, err)
	for _, s := range []story{
		{rule: "many errors long ago", probe: "edac", subject: "mc0/dimm0", metric: "corrected", well: level(90000), ill: level(90000), kept: 90000},
		{rule: "ten corrected errors a day", probe: "edac", subject: "mc0/dimm0", metric: "corrected", ill: growth(10.0 / 1440)},
		{rule: "an error log in the disk", probe: "smart", subject: "sda X", metric: "error_log", well: level(1), ill: level(1), kept: 1},
		{rule: "old reallocated sectors", probe: "smart", subject: "sda X", metric: "reallocated", well: level(40), ill: level(40), kept: 40},
		{rule: "no cable", probe: "fabric", subject: "eth1", metric: "up", well: level(0), ill: level(0)},
		{rule: "read-only on purpose", probe: "filesystem", subject: "/usr", metric: "read_only", well: level(1), ill: level(1), kept: 1},
		{rule: "an array stopped on purpose", probe: "mdraid", subject: "md127", metric: "inactive", well: level(1), ill: level(1), kept: 1},
		{rule: "hours to go", probe: "notice/allocation", metric: "announced", well: level(1), ill: level(1), kept: 1, others: map[string]course{"seconds_left": level(20000)}},
		{rule: "PCIe corrects now and then", probe: "pcie", subject: "0000:3b:00.0", metric: "corrected", ill: growth(1)},
		{rule: "a warm processor", probe: "thermal", subject: "x", metric: "margin", well: level(20), ill: level(12), kept: 20},
	} {
		t.Run(s.rule, func(t *testing.T) { assert.Empty(t, s.tell(NewEngine(rules))) })
	}
}

// Every combination of bits of NVMe's critical warning is at least suspect.
func TestNVMeCriticalWarning(t *testing.T) {
	rules, err := DefaultRules()
	require.NoError(t, err)
	for bits := range 64 {
		e := NewEngine(rules)
		e.Observe([]Reading{{Probe: "smart", Metric: "critical_warning", Subject: "nvme0 X", Value: float64(bits), Up: 1}})
		want := Healthy
		if bits > 0 {
			want = Suspect
		}
		if bits&0b101101 != 0 {
			want = Failing
		}
		assert.Equal(t, want, e.Verdict().State, fmt.Sprintf("%06b", bits))
	}
}
