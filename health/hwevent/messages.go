package hwevent

import (
	"regexp"
	"strconv"
	"strings"
)

// pattern finds one kind of message. has is a part that every such message
// has: looking for it first makes reading a log cheap.
type pattern struct {
	kind string
	has  string
	re   *regexp.Regexp // the group that matches is the part of the machine, if any
}

// patterns are kinds of messages besides hardware errors, in the kernel's
// words. One message counts for the first that matches.
var patterns = []pattern{
	{"lockup", "lockup", regexp.MustCompile(`(?i)watchdog.*(?:soft|hard) lockup`)},
	{"stall", "stall", regexp.MustCompile(`rcu.*detected (?:expedited )?stalls?|self-detected stall`)},
	{"hung_task", "blocked for more than", regexp.MustCompile(`task \S+:\d+ blocked for more than`)},
	{"io_error", "I/O error", regexp.MustCompile(`I/O error(?:, | on )dev (?:ice )?([\w!-]+)`)},
	{"io_error", "critical", regexp.MustCompile(`critical (?:medium|target|space allocation) error, dev ([\w!-]+)`)},
	{"disk_reset", "nvme", regexp.MustCompile(`nvme (nvme\d+): (?:I/O .*timeout|controller is down|Device not ready|Removing|resetting controller)`)},
	{"disk_reset", "ata", regexp.MustCompile(`\b(ata\d+)(?:\.\d+)?: (?:exception Emask|hard resetting link|COMRESET failed|failed command)`)},
	{"disk_offline", "offline", regexp.MustCompile(`(?:sd|scsi) ([\d:]+): .*(?:offlined|rejecting I/O to offline device)`)},
	{"raid", "Disk failure", regexp.MustCompile(`md/raid\S*: Disk failure on (\w+)`)},
	{"filesystem", "EXT4-fs", regexp.MustCompile(`EXT4-fs (?:error \(device ([\w-]+)\)|\(([\w-]+)\): Remounting)`)},
	{"filesystem", "XFS", regexp.MustCompile(`XFS \(([\w-]+)\):.*(?i:corruption|I/O error|shut(?:ting)? ?down)`)},
	{"filesystem", "BTRFS", regexp.MustCompile(`BTRFS (?:error|critical) \(device ([\w-]+)`)},
	{"memory_failure", "Memory failure", regexp.MustCompile(`Memory failure: 0x[0-9a-f]+: recovery action`)},
	{"gpu", "NVRM: Xid", regexp.MustCompile(`NVRM: Xid \(PCI:([0-9a-f:.]+)\)`)},
	{"gpu", "amdgpu", regexp.MustCompile(`amdgpu ([0-9a-f:.]+): .*(?:ring \S+ timeout|GPU reset begin|uncorrectable)`)},
	{"nic", "mlx5_core", regexp.MustCompile(`mlx5_core ([0-9a-f:]+\.[0-9a-f]).*(?i:health compromised|fatal|assert)`)},
	{"link_down", "ink is ", regexp.MustCompile(`(\w+):? (?:NIC )?[Ll]ink is [Dd]own`)},
	{"thermal", "temperature", regexp.MustCompile(`(?:temperature/speed|temperature) .*(?:above threshold|throttled)|critical temperature reached`)},
	{"oops", "kernel BUG at", regexp.MustCompile(`kernel BUG at`)},
	{"oops", "Oops", regexp.MustCompile(`Oops:`)},
	{"oops", "BUG: ", regexp.MustCompile(`BUG: (?:unable to handle|kernel NULL pointer)`)},
}

// Hardware errors, which rasdaemon records too where it runs.
var (
	machineCheckRE = regexp.MustCompile(`CPU (\d+): Machine Check(?: Exception)?: [0-9a-f]+ Bank (\d+): ([0-9a-f]{16})`)
	edacRE         = regexp.MustCompile(`EDAC \w+: (\d+) (CE|UE) .*? on (\S.*?) ?\(.*?page:0x([0-9a-f]+)`)
	aerRE          = regexp.MustCompile(`([0-9a-f:.]+): (?:AER: )?PCIe Bus Error: severity=(Correct|Uncorrect)`)
	firmwareRE     = regexp.MustCompile(`\[Hardware Error\]: event severity: (\w+)`)
)

// message counts one message of the kernel log.
func (c *counts) message(text string, hardware bool) {
	if c.hardware(text, hardware) {
		return
	}
	for i := range patterns {
		p := &patterns[i]
		if !strings.Contains(text, p.has) {
			continue
		}
		m := p.re.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		c.add("kernel_events", strings.TrimSpace(p.kind+" "+strings.Join(m[1:], "")), 1, text)
		return
	}
}

// hardware says whether the message is a hardware error, and counts it if it
// is to be counted from the log.
func (c *counts) hardware(text string, wanted bool) bool {
	if !strings.Contains(text, "Machine Check") && !strings.Contains(text, "EDAC ") &&
		!strings.Contains(text, "PCIe Bus Error") && !strings.Contains(text, "[Hardware Error]") {
		return false
	}
	if !wanted {
		return true
	}
	if m := machineCheckRE.FindStringSubmatch(text); m != nil {
		c.machineCheck(unsigned(m[1], 10), unsigned(m[2], 10), unsigned(m[3], 16))
	} else if m := edacRE.FindStringSubmatch(text); m != nil {
		c.memory(m[3], m[2] == "UE", float64(unsigned(m[1], 10)), unsigned(m[4], 16))
	} else if m := aerRE.FindStringSubmatch(text); m != nil {
		c.add(strings.ToLower(m[2])+"ed", m[1], 1, text)
	} else if m := firmwareRE.FindStringSubmatch(text); m != nil {
		c.firmware(m[1])
	}
	return true
}

// memory counts errors of a DIMM; page is the number of the page.
func (c *counts) memory(label string, uncorrected bool, n float64, page uint64) {
	if uncorrected {
		c.add("uncorrected", label, n, "")
		return
	}
	c.add("corrected", label, n, "")
	c.page(label, page)
}

// firmware counts an error that firmware reported first (APEI).
func (c *counts) firmware(severity string) {
	switch severity {
	case "corrected":
		c.add("corrected", "firmware", 1, severity)
	case "recoverable", "fatal":
		c.add("uncorrected", "firmware", 1, severity)
	}
}

// unsigned reads digits that a pattern matched; too many give the most.
func unsigned(s string, base int) uint64 {
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		return ^uint64(0)
	}
	return n
}
