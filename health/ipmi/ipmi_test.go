package ipmi

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestSensors(t *testing.T) {
	got := probetest.Read(t, New(host.New(treetest.Unpack(t, "testdata/bmc.txt"))))
	assert.Equal(t, []string{
		"sensor_state [Inlet Temp] = 0 (23 degrees C)",
		"sensor_state [CPU1 Temp] = 2 (96 degrees C)",
		"sensor_state [CPU2 Temp] = 3 (120 degrees C)",
		"sensor_state [FAN1] = 0 (6700 RPM)",
		"sensor_state [FAN2] = 2 (300 RPM)",
		"sensor_state [12V] = 1 (11.20 Volts)",
		"sensor_state [Vbat] = 0 (-0.05 Volts)",
		"sensor_state [PS1 Status] = 0 (Presence detected)",
		"sensor_state [PS2 Status] = 2 (Presence detected, Failure detected)",
		"sensor_state [PS Redundancy] = 1 (Redundancy Lost)",
		"sensor_state [Drive 3] = 1 (Drive Present, Predictive failure)",
	}, got[:11])
	assert.Equal(t, "sel_entries = 2 entries", got[11])
}

// follow returns the counts that are not zero after the log has become text.
func follow(t *testing.T, l *log, text string) []string {
	t.Helper()
	var lines []string
	for _, line := range probetest.Lines(l.take(text)) {
		if strings.HasPrefix(line, "sel_events") && !strings.Contains(line, "+= 0 ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestEventLog(t *testing.T) {
	// As QEMU's controller and ipmitool print it.
	const old = `   0 | 11/20/26 | 14:09:28 UTC | Memory #0x02 | Correctable ECC | Asserted
   1 | 11/20/26 | 14:09:28 UTC | Fan #0x40 | Lower Critical going low  | Asserted
`
	const more = `   2 | 11/20/26 | 14:09:28 UTC | Memory #0x02 | Uncorrectable ECC | Asserted
   3 | 11/20/26 | 14:09:28 UTC | Power Supply #0x63 | Power Supply AC lost | Asserted
   4 | 11/20/26 | 14:09:28 UTC | Power Supply #0x63 | Power Supply AC lost | Deasserted
   5 | 11/20/26 | 14:09:28 UTC | Critical Interrupt #0x05 | PCI PERR | Asserted
   6 | 11/20/26 | 14:09:28 UTC | Processor #0x06 | IERR | Asserted
   7 | 11/20/26 | 14:09:28 UTC | Drive Slot / Bay #0x07 | Drive Fault | Asserted
`
	var l log
	assert.Empty(t, follow(t, &l, old), "what was there at the first look is not news")
	assert.Empty(t, follow(t, &l, old))
	want := []string{
		"sel_events [memory] += 1 entries (Memory #0x02: Uncorrectable ECC)",
		"sel_events [processor] += 1 entries (Processor #0x06: IERR)",
		"sel_events [power] += 1 entries (Power Supply #0x63: Power Supply AC lost)",
		"sel_events [drive] += 1 entries (Drive Slot / Bay #0x07: Drive Fault)",
		"sel_events [bus] += 1 entries (Critical Interrupt #0x05: PCI PERR)",
		"sel_events [other] += 1 entries (Power Supply #0x63: Power Supply AC lost (over))",
	}
	assert.Equal(t, want, follow(t, &l, old+more))
	assert.Equal(t, want, follow(t, &l, old+more))
	assert.Equal(t, want, follow(t, &l, "SEL has no entries\n"), "a log that was cleared takes nothing back")
	assert.Contains(t, follow(t, &l, old), "sel_events [memory] += 2 entries (Memory #0x02: Correctable ECC)")
}

func TestNoController(t *testing.T) {
	root := t.TempDir()
	assert.Contains(t, probetest.Absent(t, New(host.New(root))), "IPMI device")
	treetest.Write(t, root, "-- dev/ipmi0 --\n")
	assert.Contains(t, probetest.Absent(t, New(host.New(root))), "ipmitool")
	treetest.Write(t, root, "-- recorded/ipmitool/sdr_elist.out --\n-- recorded/ipmitool/sdr_elist.exit --\n1\n")
	_, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "ipmitool sdr elist")
	assert.NotErrorIs(t, err, health.ErrAbsent)
}

func FuzzSensors(f *testing.F) {
	f.Add("Inlet Temp       | 04h | ok  |  7.1 | 23 degrees C\n")
	f.Add("|||||\n||||")
	f.Add("a|b|unc|d|e")
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range parseSensors(text) {
			if r.Subject == "" || r.Value < 0 || r.Value > 3 {
				t.Fatalf("%+v", r)
			}
		}
		var l log
		l.take(text)
		l.take(text + text)
	})
}
