package smart

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDisks(t *testing.T) {
	got := probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/disks.txt"))))
	assert.Equal(t, []string{
		"timed_out [sda] = 0",
		"unreadable [sda] = 0",
		"failing [sda WD-WX11A2B3C4D5] = 0 (WDC WD40EFRX-68N32N0)",
		"prefail [sda WD-WX11A2B3C4D5] = 0 (WDC WD40EFRX-68N32N0)",
		"error_log [sda WD-WX11A2B3C4D5] = 1 (WDC WD40EFRX-68N32N0)",
		"selftest_failed [sda WD-WX11A2B3C4D5] = 0 (WDC WD40EFRX-68N32N0)",
		"temperature [sda WD-WX11A2B3C4D5] = 31 °C (WDC WD40EFRX-68N32N0)",
		"reallocated [sda WD-WX11A2B3C4D5] += 24 sectors (WDC WD40EFRX-68N32N0)",
		"reported_uncorrectable [sda WD-WX11A2B3C4D5] += 3 errors (WDC WD40EFRX-68N32N0)",
		"command_timeouts [sda WD-WX11A2B3C4D5] += 1 timeouts (WDC WD40EFRX-68N32N0)", // 1 1 1 in one number
		"pending [sda WD-WX11A2B3C4D5] = 8 sectors (WDC WD40EFRX-68N32N0)",
		"offline_uncorrectable [sda WD-WX11A2B3C4D5] += 8 sectors (WDC WD40EFRX-68N32N0)",
		"crc_errors [sda WD-WX11A2B3C4D5] += 2 errors (WDC WD40EFRX-68N32N0)",
		// sdc sleeps and is not woken
		"timed_out [sdd] = 0",
		"unreadable [sdd] = 1 (Smartctl open device: /dev/sdd failed: Input/output error)",
		"timed_out [bus/0 megaraid,3] = 0",
		"unreadable [bus/0 megaraid,3] = 0",
		"failing [bus/0 megaraid,3 ZC1ABCDE] = 1 (HARDWARE IMPENDING FAILURE GENERAL HARD DRIVE FAILURE [asc=5d, ascq=10])",
		"error_log [bus/0 megaraid,3 ZC1ABCDE] = 0 (SEAGATE ST8000NM0075)",
		"selftest_failed [bus/0 megaraid,3 ZC1ABCDE] = 0 (SEAGATE ST8000NM0075)",
		"temperature [bus/0 megaraid,3 ZC1ABCDE] = 33 °C (SEAGATE ST8000NM0075)",
		"grown_defects [bus/0 megaraid,3 ZC1ABCDE] += 14 sectors (SEAGATE ST8000NM0075)",
		"uncorrected_errors [bus/0 megaraid,3 ZC1ABCDE] += 3 errors (SEAGATE ST8000NM0075)",
		"timed_out [nvme0] = 0",
		"unreadable [nvme0] = 0",
		"error_log [nvme0 NVME0001] = 0 (QEMU NVMe Ctrl)",
		"selftest_failed [nvme0 NVME0001] = 0 (QEMU NVMe Ctrl)",
		"temperature [nvme0 NVME0001] = 50 °C (QEMU NVMe Ctrl)",
		"critical_warning [nvme0 NVME0001] = 4 (reliability degraded)",
		"media_errors [nvme0 NVME0001] += 0 errors (QEMU NVMe Ctrl)",
		"percentage_used [nvme0 NVME0001] = 0 % (QEMU NVMe Ctrl)",
		"available_spare [nvme0 NVME0001] = 0 % (QEMU NVMe Ctrl)",
		"available_spare_threshold [nvme0 NVME0001] = 0 % (QEMU NVMe Ctrl)",
		"timed_out [nvme1] = 0",
		"unreadable [nvme1] = 0",
		"error_log [nvme1 S4EWNX0R000001] = 0 (SAMSUNG MZQLB1T9HAJR-00007)",
		"selftest_failed [nvme1 S4EWNX0R000001] = 0 (SAMSUNG MZQLB1T9HAJR-00007)",
		"temperature [nvme1 S4EWNX0R000001] = 50 °C (SAMSUNG MZQLB1T9HAJR-00007)",
		"critical_warning [nvme1 S4EWNX0R000001] = 0 (SAMSUNG MZQLB1T9HAJR-00007)",
		"media_errors [nvme1 S4EWNX0R000001] += 0 errors (SAMSUNG MZQLB1T9HAJR-00007)",
		"percentage_used [nvme1 S4EWNX0R000001] = 3 % (SAMSUNG MZQLB1T9HAJR-00007)",
		"available_spare [nvme1 S4EWNX0R000001] = 100 % (SAMSUNG MZQLB1T9HAJR-00007)",
		"available_spare_threshold [nvme1 S4EWNX0R000001] = 10 % (SAMSUNG MZQLB1T9HAJR-00007)",
	}, got)
}

func TestNothingToAsk(t *testing.T) {
	root := t.TempDir()
	assert.Contains(t, probetest.Absent(t, New(host.New(root))), "smartmontools")
	treetest.Write(t, root, "-- recorded/smartctl/--json=c_--scan.out --\n{}\n")
	assert.Contains(t, probetest.Absent(t, New(host.New(root))), "no disk")

	const ask = "recorded/smartctl/--json=c_-i_-H_-A_-l_error_-n_standby__dev_sda"
	treetest.Write(t, root, `-- recorded/smartctl/--json=c_--scan.out --
{"devices": [{"name": "/dev/sda", "type": "scsi"}]}
-- `+ask+`.out --
{"smartctl": {"messages": [{"string": "Smartctl open device: /dev/sda failed: Permission denied"}]}}
-- `+ask+`.exit --
2
`)
	assert.Contains(t, probetest.Absent(t, New(host.New(root))), "root", "a user who may not ask is not told that the disk is broken")
}

func TestAnswersThatAreNone(t *testing.T) {
	const ask = "recorded/smartctl/--json=c_-i_-H_-A_-l_error_-n_standby__dev_sda"
	for name, test := range map[string]struct{ out, exit, want string }{
		"no JSON":                   {"Segmentation fault\n", "0", "no JSON"},
		"nothing":                   {"", "0", "no JSON"},
		"does not know our options": {`{"smartctl": {"messages": [{"string": "UNRECOGNIZED OPTION: l"}]}}`, "1", "UNRECOGNIZED"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			treetest.Write(t, root, "-- recorded/smartctl/--json=c_--scan.out --\n"+`{"devices": [{"name": "/dev/sda"}]}`+"\n-- "+ask+".out --\n"+test.out+"\n-- "+ask+".exit --\n"+test.exit+"\n")
			_, err := New(host.New(root)).Run(t.Context())
			require.ErrorContains(t, err, test.want)
			assert.NotErrorIs(t, err, health.ErrAbsent)
		})
	}
	root := t.TempDir()
	treetest.Write(t, root, "-- recorded/smartctl/--json=c_--scan.out --\nsmartctl 6.6\n")
	_, err := New(host.New(root)).Run(t.Context())
	assert.ErrorContains(t, err, "version 7.0")
}

// A smartctl that hangs is cut off and reported, its processes are gone, and
// the other disks are asked before it from then on.
func TestASmartctlThatHangs(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	asked := filepath.Join(dir, "asked")
	script := `#!/bin/sh
for last; do :; done
case "$*" in *--scan*) echo '{"devices": [{"name": "/dev/sda"}, {"name": "/dev/sdb"}]}'; exit;; esac
echo $last >> ` + asked + `
case $last in /dev/sda) trap "" TERM; echo $$ >> ` + pids + `; sleep 1000 & sleep 1000;; esac
echo '{"serial_number": "X", "smart_status": {"passed": true}}'
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "smartctl"), []byte(script), 0o700)) //nolint:gosec // a program
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	p := New(host.New("/")).WithLimit(2 * time.Second)
	for range 2 {
		began := time.Now()
		readings, err := p.Run(t.Context())
		assert.Less(t, time.Since(began), 15*time.Second)
		var cut *host.TimeoutError
		require.ErrorAs(t, err, &cut)
		lines := strings.Join(probetest.Lines(readings), "\n")
		assert.Contains(t, lines, "timed_out [sda] = 1 (smartctl was cut off after")
		assert.Contains(t, lines, "failing [sdb X] = 0")
	}
	order, err := os.ReadFile(asked)
	require.NoError(t, err)
	assert.Equal(t, "/dev/sda\n/dev/sdb\n/dev/sdb\n/dev/sda\n", string(order))
	list, err := os.ReadFile(pids)
	require.NoError(t, err)
	for _, pid := range strings.Fields(string(list)) {
		assert.Eventually(t, func() bool { return !lives(pid) }, 10*time.Second, 5*time.Millisecond, "a process of group %s lives", pid)
	}
}

// lives says whether a process of a group runs; nobody may have reaped it.
func lives(group string) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		data, _ := os.ReadFile(f)
		_, rest, _ := strings.Cut(string(data), ") ")
		if fields := strings.Fields(rest); len(fields) > 2 && fields[2] == group && fields[0] != "Z" {
			return true
		}
	}
	return false
}

func TestExitStatusIsAMask(t *testing.T) {
	for status := range 256 {
		e := exitStatus(status)
		var a answer
		a.ATA.Table = []attribute{{ID: 1}}
		values := map[string]float64{}
		for _, r := range a.readings("sda", e) {
			values[r.Metric] = r.Value
		}
		assert.Equal(t, float64(status>>3&1), values["failing"])
		assert.Equal(t, float64(status>>4&1), values["prefail"])
		assert.Equal(t, float64(status>>6&1), values["error_log"])
		assert.Equal(t, float64(status>>7&1), values["selftest_failed"])
	}
}

func FuzzAnswer(f *testing.F) {
	for line := range strings.Lines(readAll(f, "testdata/disks.txt")) {
		if strings.HasPrefix(line, "{") {
			f.Add([]byte(line), 0)
		}
	}
	f.Add([]byte(`{"nvme_smart_health_information_log": {"critical_warning": 1e999, "media_errors": "12"}}`), 255)
	f.Add([]byte(`{"ata_smart_attributes": {"table": [{"id": 5, "raw": {"value": -1, "string": "99999999999999999999999"}}]}}`), -1)
	f.Fuzz(func(t *testing.T, data []byte, exit int) {
		var a answer
		if err := decode(data, &a); err != nil {
			return
		}
		for _, r := range a.readings("sda", exitStatus(exit)) {
			if math.IsNaN(r.Value) || math.IsInf(r.Value, 0) {
				t.Fatalf("%s is %v", r.Metric, r.Value)
			}
		}
	})
}

func readAll(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestNumbers(t *testing.T) {
	for text, want := range map[string]number{
		`5`: {5, true}, `"12"`: {12, true}, `18446744073709551616`: {18446744073709551616, true},
		`null`: {}, `"x"`: {}, `{"a": 1}`: {}, `1e999`: {},
	} {
		var n number
		require.NoError(t, json.Unmarshal([]byte(text), &n), text)
		assert.Equal(t, want, n, text)
	}
}
