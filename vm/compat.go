package vm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Compat is what a snapshot's manifest says about the machine that it was
// taken from, and what must agree with the machine that loads it.
type Compat struct {
	// QEMUVersion is "major.minor.micro".
	QEMUVersion string `json:"qemu_version"`
	// Machine is the versioned machine type.
	Machine string `json:"machine"`
	// CPUModel is the CPU model with its flags.
	CPUModel string `json:"cpu_model"`
	// Accel is the accelerator.
	Accel Accel `json:"accel"`
	// MemoryMiB and CPUs are the guest's size.
	MemoryMiB int `json:"memory_mib"`
	CPUs      int `json:"cpus"`
	// ArgvHash is a SHA-256 over the command line with all names, addresses
	// and paths replaced: equal hashes mean equal devices.
	ArgvHash string `json:"argv_hash"`
}

// CompatOf is the Compat of a spec run by a QEMU of the given version.
func CompatOf(s Spec, qemuVersion string) (Compat, error) {
	s = s.withDefaults()
	n := s
	// What follows does not reach the guest's device state, or is state itself.
	n.Name, n.Dir, n.Incoming, n.KillWithParent, n.memFile = "guest", "/d", false, false, false
	n.NetSocket, n.AgentSocket, n.QMPSocket = "", "", ""
	n.Kernel, n.Initrd, n.Append = "", "", ""
	if n.MAC != "" {
		n.MAC = "02:00:00:00:00:00"
	}
	n.Disks = nil
	for i, d := range s.Disks {
		n.Disks = append(n.Disks, Disk{Path: "/d/" + strconv.Itoa(i), ReadOnly: d.ReadOnly, Serial: d.Serial})
	}
	argv, err := n.Argv()
	if err != nil {
		return Compat{}, err
	}
	sum := sha256.Sum256([]byte(strings.Join(argv, "\x00")))
	return Compat{
		QEMUVersion: qemuVersion,
		Machine:     s.Machine,
		CPUModel:    s.CPUModel,
		Accel:       s.Accel,
		MemoryMiB:   s.MemoryMiB,
		CPUs:        s.CPUs,
		ArgvHash:    hex.EncodeToString(sum[:]),
	}, nil
}

// CompatError says why a snapshot cannot be loaded.
type CompatError struct {
	// Field is what differs.
	Field string
	// Saved and Here are its values in the snapshot and on this machine.
	Saved, Here string
	// Hint says what to do.
	Hint string
}

// Error implements the error interface.
func (e *CompatError) Error() string {
	return fmt.Sprintf("cannot restore here: %s is %s and the snapshot needs %s: %s", e.Field, e.Here, e.Saved, e.Hint)
}

// CheckCompat returns a *CompatError when a snapshot of a machine saved cannot
// be loaded by a machine here. A newer QEMU loads snapshots of an older one of
// the same machine type; an older one may not.
func CheckCompat(saved, here Compat) error {
	type field struct{ name, saved, here, hint string }
	for _, f := range []field{
		{"machine type", saved.Machine, here.Machine, "start the guest with the snapshot's machine type"},
		{"memory", fmt.Sprint(saved.MemoryMiB, " MiB"), fmt.Sprint(here.MemoryMiB, " MiB"), "start the guest with the snapshot's memory"},
		{"number of CPUs", strconv.Itoa(saved.CPUs), strconv.Itoa(here.CPUs), "start the guest with the snapshot's CPUs"},
		{"accelerator", string(saved.Accel), string(here.Accel), "CPU state does not move between accelerators; restore on a node with the snapshot's one"},
		{"CPU model", saved.CPUModel, here.CPUModel, "start the guest with the snapshot's CPU model"},
		{"device set", short(saved.ArgvHash), short(here.ArgvHash), "start the guest with the snapshot's disks and network"},
	} {
		if f.saved != f.here {
			return &CompatError{Field: f.name, Saved: f.saved, Here: f.here, Hint: f.hint}
		}
	}
	s, err := parseVersion(saved.QEMUVersion)
	if err != nil {
		return fmt.Errorf("snapshot's QEMU version: %w", err)
	}
	h, err := parseVersion(here.QEMUVersion)
	if err != nil {
		return fmt.Errorf("this node's QEMU version: %w", err)
	}
	if h[0] < s[0] || h[0] == s[0] && h[1] < s[1] {
		return &CompatError{
			Field: "QEMU version", Saved: saved.QEMUVersion, Here: here.QEMUVersion,
			Hint: "install at least the snapshot's version of QEMU",
		}
	}
	return nil
}

func short(hash string) string { return hash[:min(len(hash), 12)] }

func parseVersion(v string) (out [3]int, err error) {
	parts := strings.SplitN(v, ".", 3)
	if len(parts) < 2 {
		return out, fmt.Errorf("%q is not a version", v)
	}
	for i, p := range parts {
		if out[i], err = strconv.Atoi(p); err != nil {
			return out, fmt.Errorf("%q is not a version", v)
		}
	}
	return out, nil
}
