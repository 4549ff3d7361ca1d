package fabric

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestFabric(t *testing.T) {
	assert.Equal(t, []string{
		"rx_errors [eno1] += 12 frames",
		"tx_errors [eno1] += 1 frames",
		"rx_drops [eno1] += 3 frames",
		"carrier_changes [eno1] += 9 changes",
		"up [eno1] = 1 (up)",
		"carrier_changes [eno2] += 1 changes",
		"up [eno2] = 0 (down)",
		"up [mlx5_0/1] = 1 (ACTIVE, LinkUp)",
		"link_downed [mlx5_0/1] += 2 errors",
		"link_recoveries [mlx5_0/1] += 1 errors",
		"symbol_errors [mlx5_0/1] += 41 errors",
		"rx_errors [mlx5_0/1] += 5 errors",
		"out_of_sequence [mlx5_0/1] += 7 errors",
		"up [mlx5_0/2] = 0 (DOWN, Polling)",
	}, probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/fabric.txt")))))
}

func TestNoNetwork(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- sys/class/net/lo/operstate --\nunknown\n-- proc/net/dev --\n")
	probetest.Absent(t, New(host.New(root)))
}

// A card that cannot be read does not cost the others.
func TestADamagedCard(t *testing.T) {
	root := treetest.Unpack(t, "testdata/fabric.txt")
	treetest.Write(t, root, `-- sys/class/infiniband/mlx5_1/fw_ver --
1
-- sys/class/infiniband/mlx5_1/ports/1/state --
odd
-- sys/class/net/eno1/carrier_changes --
many
`)
	readings, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "mlx5_1")
	require.ErrorContains(t, err, "carrier_changes")
	assert.Len(t, readings, 13)
}
