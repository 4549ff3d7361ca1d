package pcie

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestPCIe(t *testing.T) {
	root := treetest.Unpack(t, "testdata/aer.txt")
	assert.Equal(t, []string{
		"corrected [0000:00:02.0] += 0 errors",
		"nonfatal [0000:00:02.0] += 0 errors",
		"fatal [0000:00:02.0] += 0 errors",
		"corrected [0000:3b:00.0] += 9 errors (BadTLP 7, Timeout 2)",
		"nonfatal [0000:3b:00.0] += 1 errors (CmpltTO 1)",
		"fatal [0000:3b:00.0] += 0 errors",
	}, probetest.Read(t, New(host.New(root))))
	probetest.Absent(t, New(host.New(t.TempDir())))

	treetest.Write(t, root, "-- sys/bus/pci/devices/0000:00:02.0/aer_dev_fatal --\nnonsense\n")
	readings, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "aer_dev_fatal of 0000:00:02.0")
	assert.Len(t, readings, 5, "one damaged file costs more than itself")
}

func FuzzParse(f *testing.F) {
	f.Add("RxErr 0\nBadTLP 3\nTOTAL_ERR_COR 3\n")
	f.Add("TOTAL_ 18446744073709551615")
	f.Add("\n \n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parse(text)
		if err == nil && (math.IsNaN(r.Value) || r.Value < 0) {
			t.Fatalf("%q gives %v", text, r.Value)
		}
	})
}
