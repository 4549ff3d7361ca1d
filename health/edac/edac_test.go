package edac

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestDIMMs(t *testing.T) {
	assert.Equal(t, []string{
		"corrected [mc0/dimm0] += 17 errors (CPU_SrcID#0_MC#0_Chan#0_DIMM#0)",
		"uncorrected [mc0/dimm0] += 0 errors (CPU_SrcID#0_MC#0_Chan#0_DIMM#0)",
		"corrected [mc0/dimm2] += 0 errors",
		"uncorrected [mc0/dimm2] += 0 errors",
		"corrected [mc0] += 0 errors (not told apart)",
		"uncorrected [mc0] += 0 errors (not told apart)",
		"corrected [mc1/rank0] += 0 errors (P1-DIMMA1)",
		"uncorrected [mc1/rank0] += 1 errors (P1-DIMMA1)",
		"corrected [mc1] += 2 errors (not told apart)",
	}, probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/dimm.txt")))))
}

func TestRows(t *testing.T) {
	assert.Equal(t, []string{
		"corrected [mc0/csrow0/ch0] += 4 errors (DIMM_A1)",
		"corrected [mc0/csrow0/ch1] += 5 errors (DIMM_B1)",
		"uncorrected [mc0/csrow0] += 0 errors (DIMM_A1 DIMM_B1)",
		"corrected [mc0] += 0 errors (not told apart)",
		"uncorrected [mc0] += 0 errors (not told apart)",
		"corrected [mc1/csrow3] += 1 errors",
		"uncorrected [mc1/csrow3] += 2 errors",
	}, probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/csrow.txt")))))
}

func TestNoEDAC(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- sys/devices/system/edac/mc/power/ --\n")
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- sys/devices/system/edac/mc/mc0/mc_name --\nx\n")
	probetest.Absent(t, New(host.New(root)))
}

// A file that makes no sense is an error, but the others are read.
func TestADamagedCounter(t *testing.T) {
	root := treetest.Unpack(t, "testdata/dimm.txt")
	treetest.Write(t, root, "-- sys/devices/system/edac/mc/mc0/dimm0/dimm_ce_count --\nlots\n")
	readings, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, `mc0/dimm0: `)
	assert.False(t, errors.Is(err, health.ErrAbsent))
	assert.Len(t, readings, 8)
}
