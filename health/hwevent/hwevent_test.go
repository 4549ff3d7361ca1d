package hwevent

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTest(t *testing.T, root string) *Probe {
	t.Helper()
	p := New(host.New(root))
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p
}

// execute runs statements on the database of a recorded machine.
func execute(t *testing.T, root, statements string) {
	t.Helper()
	path := filepath.Join(root, rasdaemonFile)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	_, err = db.Exec(statements)
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func schema(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/rasdaemon.sql")
	require.NoError(t, err)
	return string(text)
}

// fromLog is what the kernel log tells besides hardware errors.
var fromLog = []string{
	"kernel_events [disk_offline 6:0:0:0] += 1 events (sd 6:0:0:0: rejecting I/O to offline device)",
	"kernel_events [disk_reset ata3] += 1 events (ata3.00: exception Emask 0x10 SAct 0x0 SErr 0x400100 action 0x6 frozen)",
	"kernel_events [disk_reset nvme0] += 1 events (nvme nvme0: I/O 12 QID 3 timeout, aborting)",
	"kernel_events [filesystem sda1] += 1 events (EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0)",
	"kernel_events [filesystem sdc1] += 1 events (XFS (sdc1): Metadata I/O Error (0x4) detected at xfs_buf_ioend+0x1)",
	"kernel_events [gpu 0000:65:00] += 1 events (NVRM: Xid (PCI:0000:65:00): 79, pid=1234, GPU has fallen off the bus.)",
	"kernel_events [hung_task] += 1 events (INFO: task kworker/u8:1:1234 blocked for more than 120 seconds.)",
	"kernel_events [io_error dm-3] += 1 events (Buffer I/O error on dev dm-3, logical block 0, async page read)",
	"kernel_events [io_error sda] += 2 events (critical medium error, dev sda, sector 4096 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2)",
	"kernel_events [kernel_log] += 0 events",
	"kernel_events [link_down eno1] += 1 events (igb 0000:01:00.0 eno1: igb: eno1 NIC Link is Down)",
	"kernel_events [lockup] += 1 events (watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [bt-mz:4711])",
	"kernel_events [memory_failure] += 1 events (Memory failure: 0x12345: recovery action for dirty LRU page: Recovered)",
	"kernel_events [nic 0000:3b:00.0] += 1 events (mlx5_core 0000:3b:00.0: poll_health:839:(pid 0): device's health compromised - reached miss count)",
	"kernel_events [oops] += 1 events (BUG: unable to handle page fault for address: ffffffffffffffd8)",
	"kernel_events [raid sdb] += 1 events (md/raid1:md0: Disk failure on sdb, disabling device.)",
	"kernel_events [stall] += 1 events (rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:)",
	"kernel_events [thermal] += 1 events (CPU2: Package temperature is above threshold, cpu clock is throttled (total events = 1))",
}

func TestTheKernelLog(t *testing.T) {
	root := treetest.Unpack(t, "testdata/kmsg.txt")
	p := newTest(t, root)
	want := append([]string{
		"corrected [0000:3b:00.0] += 1 events (nvme 0000:3b:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID))",
		"corrected [CPU_SrcID#0_Ha#0_Chan#0_DIMM#0] += 3 events",
		"corrected [cpu0/bank7] += 1 events (status 9c00000000010090)",
	}, fromLog...)
	want = append(want,
		"pages [CPU_SrcID#0_Ha#0_Chan#0_DIMM#0] += 2 pages",
		"uncorrected [0000:00:1c.0] += 1 events (pcieport 0000:00:1c.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID))",
		"uncorrected [CPU_SrcID#1_Ha#0_Chan#1_DIMM#0] += 1 events",
		"uncorrected [cpu12/bank9] += 1 events (status bd0000000000017a)",
		"uncorrected [firmware] += 1 events (recoverable)",
	)
	assert.Equal(t, want, probetest.Read(t, p))
	assert.Equal(t, want, probetest.Read(t, p), "messages are counted again")

	// What is added is read, also when it comes in pieces.
	f, err := os.OpenFile(filepath.Join(root, "dev/kmsg"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // test file
	_, err = f.WriteString("3,400,40000000,-;I/O err")
	require.NoError(t, err)
	assert.Equal(t, want, probetest.Read(t, p))
	_, err = f.WriteString("or, dev dm-3, sector 8 op 0x0\n")
	require.NoError(t, err)
	assert.Contains(t, strings.Join(probetest.Read(t, p), "\n"), "[io_error dm-3] += 2")
}

func TestRasdaemonsDatabase(t *testing.T) {
	root := treetest.Unpack(t, "testdata/kmsg.txt")
	execute(t, root, schema(t))
	p := newTest(t, root)
	want := append([]string{
		"corrected [0000:3b:00.0] += 1 events (Receiver Error)",
		"corrected [CPU_SrcID#0_MC#0_Chan#0_DIMM#0] += 5 events",
		"corrected [cpu0/bank7] += 1 events (status 9c00000000010090)",
		"corrected [firmware] += 1 events (corrected)",
	}, fromLog...)
	want[16] = "kernel_events [memory_failure] += 2 events (Memory failure: 0x12345: recovery action for dirty LRU page: Recovered)"
	want = append(want,
		"pages [CPU_SrcID#0_MC#0_Chan#0_DIMM#0] += 2 pages",
		"uncorrected [0000:3b:00.0] += 1 events (Completion Timeout)",
		"uncorrected [cpu12/bank9] += 1 events (status bd0000000000017a)",
		"uncorrected [mc1] += 1 events",
	)
	assert.Equal(t, want, probetest.Read(t, p))
	assert.Equal(t, want, probetest.Read(t, p), "events are counted again")

	execute(t, root, `INSERT INTO mce_record (id, timestamp, status, cpu, bank) VALUES (3, '2026-11-20 14:10:28 +0000', -7205759403792727920, 0, 7);
		UPDATE mc_event SET err_count = 100 WHERE id = 1;`)
	want[2] = "corrected [cpu0/bank7] += 2 events (status 9c00000000010090)"
	assert.Equal(t, want, probetest.Read(t, p), "only what is new counts")
}

func TestManyEventsAtOnce(t *testing.T) {
	root := t.TempDir()
	execute(t, root, schema(t)+fmt.Sprintf(`
		WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO aer_event SELECT i, '2026-11-20 14:09:28 +0000', 'port ' || i, 'Corrected', 'x' FROM n`, 99+maxRows+1000))
	p := newTest(t, root)
	total := 0.0
	for range 3 {
		readings, err := p.Run(t.Context())
		require.NoError(t, err)
		assert.LessOrEqual(t, len(readings), 2*maxSubjects+10, "subjects are not bounded")
		total = 0
		for _, r := range readings {
			if strings.HasPrefix(r.Subject, "port") && r.Metric == "corrected" {
				total += r.Value
			}
		}
	}
	assert.InDelta(t, maxRows+1000, total, 0, "events that one run does not get to are lost")
}

func TestNothingToFollow(t *testing.T) {
	assert.Contains(t, probetest.Absent(t, newTest(t, t.TempDir())), "no kernel log")
}

func TestADamagedDatabase(t *testing.T) {
	root := treetest.Unpack(t, "testdata/kmsg.txt")
	treetest.Write(t, root, "-- "+rasdaemonFile+" --\n"+strings.Repeat("this is no database\n", 500))
	readings, err := newTest(t, root).Run(t.Context())
	require.ErrorContains(t, err, "rasdaemon")
	assert.NotErrorIs(t, err, health.ErrAbsent)
	assert.Contains(t, strings.Join(probetest.Lines(readings), "\n"), "[cpu0/bank7]", "the kernel log takes its place")
}

func FuzzMessages(f *testing.F) {
	text, err := os.ReadFile("testdata/kmsg.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("0,1,2,-;CPU 99999999999999999999: Machine Check: 0 Bank 1: ffffffffffffffff\n"))
	f.Add([]byte(";\n,;\n0;x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newCounts()
		l := kernelLog{fd: -1}
		for len(data) > 0 {
			n := min(len(data), 100)
			l.lines(data[:n], func(m string) { c.message(m, true) })
			data = data[n:]
		}
		for _, r := range c.readings() {
			r.Probe = "p"
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
