package filesystem

import (
	"testing"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestFileSystems(t *testing.T) {
	assert.Equal(t, []string{
		"read_only [/] = 0 (/dev/nvme0n1p2 ext4)",
		"stalled [/] = 0 (/dev/nvme0n1p2 ext4)",
		"used_percent [/] = 31.5 % (/dev/nvme0n1p2 ext4)",
		"inodes_used_percent [/] = 4 % (/dev/nvme0n1p2 ext4)",
		"read_only [/boot/efi] = 0 (/dev/nvme0n1p1 vfat)",
		"stalled [/boot/efi] = 0 (/dev/nvme0n1p1 vfat)",
		"used_percent [/boot/efi] = 5 % (/dev/nvme0n1p1 vfat)",
		"inodes_used_percent [/boot/efi] = 0 % (/dev/nvme0n1p1 vfat)",
		"read_only [/scratch disk] = 1 (/dev/sda1 xfs)",
		"stalled [/scratch disk] = 0 (/dev/sda1 xfs)",
		"used_percent [/scratch disk] = 99.2 % (/dev/sda1 xfs)",
		"inodes_used_percent [/scratch disk] = 1 % (/dev/sda1 xfs)",
		"read_only [/home] = 0 (fs1:/home nfs4)",
		"stalled [/home] = 0 (fs1:/home nfs4)",
		"used_percent [/home] = 70 % (fs1:/home nfs4)",
		"inodes_used_percent [/home] = 12 % (fs1:/home nfs4)",
		"read_only [/gone] = 0 (mgs@tcp:/l lustre)", // unmounted meanwhile
	}, probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/mounts.txt")))))
	probetest.Absent(t, New(host.New(t.TempDir())))
}

func TestReadOnly(t *testing.T) {
	options := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			m[n] = ""
		}
		return m
	}
	for name, test := range map[string]struct {
		mount procfs.MountInfo
		want  float64
	}{
		"writable":              {procfs.MountInfo{Options: options("rw"), SuperOptions: options("rw")}, 0},
		"mounted read-only":     {procfs.MountInfo{Options: options("ro"), SuperOptions: options("rw")}, 1},
		"remounted after error": {procfs.MountInfo{Options: options("rw"), SuperOptions: options("ro")}, 1},
		"ext4's emergency":      {procfs.MountInfo{Options: options("rw"), SuperOptions: options("rw", "emergency_ro")}, 1},
		"shut down":             {procfs.MountInfo{Options: options("rw"), SuperOptions: options("rw", "shutdown")}, 1},
	} {
		assert.InDelta(t, test.want, readOnly(&test.mount), 0, name)
	}
}

// A file system that did not answer is not asked again before it has.
func TestAStalledFileSystem(t *testing.T) {
	p := New(host.New(treetest.Unpack(t, "testdata/mounts.txt")))
	answered := make(chan struct{})
	p.waiting["/home"] = answered
	got := probetest.Read(t, p)
	assert.Contains(t, got, "stalled [/home] = 1 (fs1:/home nfs4)")
	assert.NotContains(t, got, "used_percent [/home] = 70 % (fs1:/home nfs4)")
	close(answered)
	got = probetest.Read(t, p)
	assert.Contains(t, got, "stalled [/home] = 0 (fs1:/home nfs4)")
	assert.Contains(t, got, "used_percent [/home] = 70 % (fs1:/home nfs4)")
}

func TestADamagedMountTable(t *testing.T) {
	root := t.TempDir()
	treetest.Write(t, root, "-- proc/self/mountinfo --\nnonsense\n")
	_, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "mount table")
}
