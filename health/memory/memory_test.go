package memory

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestMemory(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, `
-- proc/meminfo --
MemTotal:       24000000 kB
MemFree:          500000 kB
MemAvailable:     600000 kB
SwapTotal:             0 kB
SwapFree:              0 kB
HardwareCorrupted:     8 kB
-- proc/vmstat --
nr_free_pages 125000
oom_kill 3
oom_kills_of_something_else 5
`)
	assert.Equal(t, []string{
		"available_percent = 2.5 %",
		"hardware_corrupted = 8192 B",
		"oom_kills += 3 processes",
	}, probetest.Read(t, New(host.New(root))))

	treetest.Write(t, root, "-- proc/vmstat --\noom_kill many\n-- proc/meminfo --\nSwapTotal: 100 kB\nSwapFree: 50 kB\n")
	readings, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "oom_kill")
	assert.Equal(t, []string{"swap_free_percent = 50 %"}, probetest.Lines(readings))
}
