// Package proc identifies, supervises and ends processes without ever
// touching one that merely inherited a number.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Identity names one process for good: a number alone may be reused. The
// zero Identity names none.
type Identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks from boot, /proc/PID/stat field 22
}

// Identify reads the identity of a living process.
func Identify(pid int) (Identity, error) {
	start, _, err := stat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, Start: start}, nil
}

// Alive says whether the process still runs; a zombie does not.
func (id Identity) Alive() bool {
	if id.PID == 0 {
		return false
	}
	start, state, err := stat(id.PID)
	return err == nil && start == id.Start && state != 'Z' && state != 'X'
}

// groupGone bounds the wait for a killed group to disappear.
const groupGone = 10 * time.Second

// KillGroup sends SIGKILL to the process group that this process leads, or
// led while members remain, and waits until no member runs any more.
func (id Identity) KillGroup() error {
	if id.PID <= 1 {
		return nil
	}
	if start, _, err := stat(id.PID); err == nil && start != id.Start {
		return nil // the number went to somebody else, so the group is gone
	}
	for deadline := time.Now().Add(groupGone); ; time.Sleep(5 * time.Millisecond) {
		members, err := groupMembers(id.PID)
		if err != nil {
			return err
		}
		if members == 0 {
			return nil
		}
		if err := syscall.Kill(-id.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("killing process group %d: %w", id.PID, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process group %d still has %d members %v after SIGKILL", id.PID, members, groupGone)
		}
	}
}

// groupMembers counts the living members of a process group.
func groupMembers(pgid int) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("listing processes: %w", err)
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if err != nil || len(fields) < 3 {
			continue
		}
		if string(fields[2]) == strconv.Itoa(pgid) && fields[0][0] != 'Z' && fields[0][0] != 'X' {
			n++
		}
	}
	return n, nil
}

// statFields returns the fields of /proc/PID/stat from the third on: the
// second, the name, may hold anything.
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return nil, fmt.Errorf("looking at process %d: no name in its stat", pid)
	}
	return bytes.Fields(data[end+1:]), nil
}

func stat(pid int) (start uint64, state byte, err error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, 0, err
	}
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("looking at process %d: stat is short", pid)
	}
	start, err = strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return start, f[0][0], nil
}
