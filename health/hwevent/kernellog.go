package hwevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// kernelLog follows /dev/kmsg. It stays open between runs: opening it anew
// would show all that is in the kernel's buffer again.
type kernelLog struct {
	host *host.Host
	fd   int // -1: not open
	rest []byte
}

// maxRecords bounds one run; what is left is read by the next.
const (
	maxRecords = 20000
	maxRecord  = 8192
)

// read passes on the messages that have come since the run before; the first
// time, those since boot that the kernel still has.
func (l *kernelLog) read(ctx context.Context, message func(string)) error {
	if l.fd < 0 {
		fd, err := unix.Open(l.host.Path("dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return health.Absent("no right to read the kernel log; CAP_SYSLOG or kernel.dmesg_restrict=0 gives it")
		case host.Missing(err):
			return health.Absent("no kernel log")
		case err != nil:
			return fmt.Errorf("opening the kernel log: %w", err)
		}
		l.fd = fd
	}
	buf := make([]byte, maxRecord)
	for range maxRecords {
		n, err := unix.Read(l.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // EPIPE: some were overwritten
			continue
		case errors.Is(err, unix.EAGAIN):
			return ctx.Err()
		case errors.Is(err, unix.EPERM):
			return health.Absent("no right to read the kernel log; CAP_SYSLOG or kernel.dmesg_restrict=0 gives it")
		case err != nil:
			return fmt.Errorf("reading the kernel log: %w", err)
		case n == 0:
			return ctx.Err()
		}
		l.lines(buf[:n], message)
	}
	return ctx.Err()
}

// lines takes what was read apart. A record of the device is one read; a
// recorded log is a file and may be cut anywhere.
func (l *kernelLog) lines(data []byte, message func(string)) {
	data = append(l.rest, data...)
	for {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			break
		}
		if text, ok := parseRecord(line); ok {
			message(text)
		}
		data = rest
	}
	if len(data) > maxRecord {
		data = data[:0]
	}
	l.rest = append(l.rest[:0], data...)
}

// parseRecord reads "priority,sequence,microseconds,flags;message" (kernel:
// Documentation/ABI/testing/dev-kmsg). Only the kernel's own messages count.
func parseRecord(line []byte) (string, bool) {
	head, text, ok := bytes.Cut(line, []byte(";"))
	if !ok || len(line) == 0 || line[0] == ' ' {
		return "", false
	}
	prefix, _, _ := bytes.Cut(head, []byte(","))
	priority, err := strconv.ParseUint(string(prefix), 10, 32)
	if err != nil || priority>>3 != 0 {
		return "", false
	}
	return string(text), true
}

func (l *kernelLog) close() error {
	if l.fd < 0 {
		return nil
	}
	err := unix.Close(l.fd)
	l.fd = -1
	return err
}
