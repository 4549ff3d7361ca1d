// Package host is the machine that probes look at: files below a root that
// can be moved, programs with a limit, and what only system calls tell.
//
// With the root "/" it is this machine. With another root it is a recorded
// one: nothing of this machine is asked, and what programs and system calls
// said is read from files below ROOT/recorded.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a machine, this one or a recorded one.
type Host struct {
	root     string
	programs programs
}

// New returns the machine below root; "" means "/", this machine.
func New(root string, options ...Option) *Host {
	if root == "" {
		root = "/"
	}
	h := &Host{root: filepath.Clean(root)}
	if h.Live() {
		h.programs = newLive()
	} else {
		h.programs = &recorded{dir: h.Path("recorded")}
	}
	for _, o := range options {
		o(h)
	}
	return h
}

// Option changes how a Host is made.
type Option func(*Host)

// Live says whether this is the machine that the program runs on.
func (h *Host) Live() bool { return h.root == "/" }

// Path is the place of a file that is at path on the machine.
func (h *Host) Path(path ...string) string {
	return filepath.Join(append([]string{h.root}, path...)...)
}

// maxFile bounds a file of the kernel.
const maxFile = 1 << 20

// ReadFile reads a small file of the kernel without ever waiting for it: a
// pipe or a broken driver gives an error, not a hung probe.
func (h *Host) ReadFile(path ...string) ([]byte, error) {
	name := h.Path(path...)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	buf := make([]byte, 0, 512)
	for {
		if len(buf) > maxFile {
			return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
		}
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, cap(buf))...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// Text is ReadFile without white space around.
func (h *Host) Text(path ...string) (string, error) {
	data, err := h.ReadFile(path...)
	return strings.TrimSpace(string(data)), err
}

// Number reads a file that holds one number. ok is false when there is none
// for this machine: see Missing.
func (h *Host) Number(path ...string) (v float64, ok bool, err error) {
	text, err := h.Text(path...)
	if Missing(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	v, err = strconv.ParseFloat(text, 64)
	if err != nil || v != v || v > 1e300 || v < -1e300 {
		return 0, false, fmt.Errorf("%s: %q is no number", h.Path(path...), clip(text))
	}
	return v, true, nil
}

func clip(s string) string { return s[:min(len(s), 40)] }

// Missing says whether an error of reading a file means that this machine has
// no such value: no file, no right, or a driver that does not know it.
func Missing(err error) bool {
	for _, e := range []error{
		unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.EPERM, unix.ENODEV,
		unix.ENXIO, unix.EINVAL, unix.ENODATA, unix.EOPNOTSUPP,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Exists says whether the machine has a file.
func (h *Host) Exists(path ...string) bool {
	var st unix.Stat_t
	return unix.Stat(h.Path(path...), &st) == nil
}

// MayWrite says whether this user may open a file for reading and writing.
func (h *Host) MayWrite(path ...string) bool {
	return unix.Access(h.Path(path...), unix.R_OK|unix.W_OK) == nil
}

// List returns the names in a directory that match a pattern, in order; nil
// when there is no such directory.
func (h *Host) List(dir, pattern string) []string {
	found, err := filepath.Glob(filepath.Join(escape(h.Path(dir)), pattern))
	if err != nil {
		return nil
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

// escape makes a path a pattern that matches just it.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Uptime is the time since the machine started; 0 when it is not known.
func (h *Host) Uptime() time.Duration {
	if h.Live() {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
			return time.Duration(ts.Nano())
		}
	}
	text, err := h.Text("proc/uptime")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(text, " ")
	s, err := strconv.ParseFloat(first, 64)
	if err != nil || !(s >= 0 && s < 1e9) {
		return 0
	}
	return time.Duration(s * float64(time.Second))
}

// Boot names the boot of the machine; empty when it is not known.
func (h *Host) Boot() string {
	id, _ := h.Text("proc/sys/kernel/random/boot_id")
	return id
}
