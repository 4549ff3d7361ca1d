package mdraid

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestArrays(t *testing.T) {
	assert.Equal(t, []string{
		"missing_disks [md0] = 1 disks (raid1, 1 of 2 disks)",
		"faulty_disks [md0] = 1 disks (sdb)",
		"inactive [md0] = 0 (active)",
		"missing_disks [md1] = 1 disks (raid5, 2 of 3 disks)",
		"faulty_disks [md1] = 0 disks",
		"inactive [md1] = 0 (recovering)",
		"rebuild_percent [md1] = 8 %",
		"missing_disks [md2] = 0 disks (raid6, 4 of 4 disks)",
		"faulty_disks [md2] = 0 disks",
		"inactive [md2] = 0 (active)",
		"missing_disks [md127] = 0 disks (unknown, 0 of 0 disks)",
		"faulty_disks [md127] = 0 disks",
		"inactive [md127] = 1 (inactive)",
	}, probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/mdstat.txt")))))
}

func TestNoArrays(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- proc/stat --\n")
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- proc/mdstat --\nPersonalities : \nunused devices: <none>\n")
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- proc/mdstat --\nmd0 : active raid1\n")
	_, err := New(host.New(root)).Run(t.Context())
	require.Error(t, err)
	assert.NotErrorIs(t, err, health.ErrAbsent)
}
