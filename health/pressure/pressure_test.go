package pressure

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestPressure(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, `
-- proc/stat --
-- proc/pressure/cpu --
some avg10=65.53 avg60=57.04 avg300=44.97 total=4771133478
-- proc/pressure/memory --
some avg10=0.00 avg60=1.50 avg300=0.25 total=1000
full avg10=0.00 avg60=0.50 avg300=0.10 total=900
`)
	assert.Equal(t, []string{
		"some_avg60 [cpu] = 57.04 %", // older kernels have no "full" of processors
		"some_avg300 [cpu] = 44.97 %",
		"some_avg60 [memory] = 1.5 %",
		"some_avg300 [memory] = 0.25 %",
		"full_avg60 [memory] = 0.5 %",
		"full_avg300 [memory] = 0.1 %",
	}, probetest.Read(t, New(host.New(root))))

	treetest.Write(t, root, "-- proc/pressure/io --\nsome avg10=much\n")
	readings, err := New(host.New(root)).Run(t.Context())
	require.Error(t, err)
	assert.Len(t, readings, 6)
}
