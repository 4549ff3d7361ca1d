package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// recordVersion is the format of machine.json.
const recordVersion = 1

// record is machine.json: what another process needs to adopt the machine.
type record struct {
	Version int      `json:"version"`
	PID     int      `json:"pid"`
	Start   uint64   `json:"start_ticks"` // field 22 of /proc/PID/stat
	BootID  string   `json:"boot_id"`     // ticks count from this boot
	Binary  string   `json:"binary"`
	Argv    []string `json:"argv"`
	Spec    Spec     `json:"spec"`
}

// ErrNoMachine says that a directory has no machine that can be adopted: none
// was started there, or its process has ended.
var ErrNoMachine = errors.New("no running machine")

func (r record) save(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", fileMachine, err)
	}
	return atomicfile.WriteFile(filepath.Join(dir, fileMachine), append(b, '\n'), 0o600)
}

func loadRecord(dir string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(dir, fileMachine)) //nolint:gosec // the caller's own runtime directory
	if errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("%w in %s", ErrNoMachine, dir)
	}
	if err != nil {
		return r, fmt.Errorf("read machine record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("decode %s: %w", filepath.Join(dir, fileMachine), err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("%s has version %d and this program knows %d", filepath.Join(dir, fileMachine), r.Version, recordVersion)
	}
	if r.PID <= 1 {
		return r, fmt.Errorf("%s names process %d", filepath.Join(dir, fileMachine), r.PID)
	}
	return r, nil
}

// verify tells whether the recorded process still runs. A process id alone
// proves nothing: it may have been given to another process since.
func (r record) verify() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if boot != r.BootID {
		return fmt.Errorf("%w: the node was booted since", ErrNoMachine)
	}
	start, err := startTicks(r.PID)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: process %d has ended", ErrNoMachine, r.PID)
	}
	if err != nil {
		return err
	}
	if start != r.Start {
		return fmt.Errorf("%w: process %d is another one now", ErrNoMachine, r.PID)
	}
	cmdline, err := os.ReadFile(procPath(r.PID, "cmdline"))
	if err != nil {
		return fmt.Errorf("read command line of process %d: %w", r.PID, err)
	}
	want := strings.Join(append([]string{r.Binary}, r.Argv...), "\x00") + "\x00"
	if !bytes.Equal(cmdline, []byte(want)) {
		return fmt.Errorf("%w: process %d does not have the recorded command line", ErrNoMachine, r.PID)
	}
	return nil
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// startTicks is the start time of a process in clock ticks since boot.
func startTicks(pid int) (uint64, error) {
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	t, err := parseStartTicks(b)
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	return t, nil
}

// parseStartTicks finds field 22 of a stat line. The second field is the
// program's name in parentheses and may itself have blanks and parentheses.
func parseStartTicks(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("malformed stat line")
	}
	f := bytes.Fields(stat[i+1:])
	if len(f) < 20 {
		return 0, errors.New("malformed stat line")
	}
	if len(f[0]) > 0 && (f[0][0] == 'Z' || f[0][0] == 'X') {
		return 0, fmt.Errorf("process has ended: %w", os.ErrNotExist)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}
