package thermal

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestThermal(t *testing.T) {
	p := New(host.New(treetest.Unpack(t, "testdata/thermal.txt")))
	want := []string{
		"temperature [nvme(hwmon0) Composite] = 49.85 °C",
		"margin [nvme(hwmon0) Composite] = 50 °C",
		"alarm [nvme(hwmon0) Composite] = 0",
		"temperature [coretemp(hwmon1) Package id 0] = 41 °C",
		"margin [coretemp(hwmon1) Package id 0] = 59 °C",
		"alarm [coretemp(hwmon1) Package id 0] = 0",
		"temperature [coretemp(hwmon2) Package id 1] = 99 °C",
		"margin [coretemp(hwmon2) Package id 1] = 1 °C",
		"alarm [coretemp(hwmon2) Package id 1] = 1",
		"fan_rpm [nct6775(hwmon3) fan1] = 0 1/min",
		"alarm [nct6775(hwmon3) fan1] = 1",
		"temperature [zone0 acpitz] = 27.8 °C",
		"core_throttles [package0] += 7 events",
		"package_throttles [package0] += 10 events",
		"core_throttles [package1] += 0 events",
		"package_throttles [package1] += 0 events",
	}
	assert.Equal(t, want, probetest.Read(t, p))
	assert.Equal(t, want, probetest.Read(t, p), "the second run differs")
}

func TestNoSensors(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- sys/devices/system/cpu/cpu0/online --\n1\n")
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count --\nx\n")
	_, err := New(host.New(root)).Run(t.Context())
	require.Error(t, err)
}
