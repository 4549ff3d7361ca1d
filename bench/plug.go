package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

const (
	plugHeader = 4          // length of a frame, big-endian, as in QEMU's stream netdev
	plugFrame  = 65520 + 18 // longest frame of a tap
	plugBatch  = 256 << 10
)

// RunPlug carries frames between a new tap of this namespace and the switch
// that connects to the socket, as QEMU does between a guest's interface and its
// stream netdev, until the switch is gone or ctx ends.
func RunPlug(ctx context.Context, name, socket string) error {
	tap, err := openTap(name)
	if err != nil {
		return err
	}
	defer unix.Close(tap) //nolint:errcheck // the tap goes with it
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen for the switch: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	conn, err := l.Accept()
	stop()
	if err != nil {
		return ctx.Err()
	}
	file, err := conn.(*net.UnixConn).File() // blocking, which wakes up sooner
	if err != nil {
		return fmt.Errorf("socket of the switch: %w", err)
	}
	_ = conn.Close()
	defer file.Close() //nolint:errcheck // nothing is buffered
	fd := int(file.Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		return fmt.Errorf("socket of the switch: %w", err)
	}
	ended := make(chan error, 2) // whoever ends first ends the process
	go func() { ended <- fromTap(tap, fd) }()
	go func() { ended <- toTap(fd, tap) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

func openTap(name string) (int, error) {
	tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a tap: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(tap, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(tap)
		return -1, fmt.Errorf("make the tap %s: %w", name, err)
	}
	return tap, nil
}

// fromTap writes all frames that are there in one piece.
func fromTap(tap, fd int) error {
	buf := make([]byte, plugBatch)
	for at := 0; ; {
		n, err := 0, error(unix.EAGAIN)
		if len(buf)-at >= plugHeader+plugFrame {
			n, err = unix.Read(tap, buf[at+plugHeader:])
		}
		switch {
		case err == nil:
			binary.BigEndian.PutUint32(buf[at:], uint32(n))
			at += plugHeader + n
		case !errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("read from the tap: %w", err)
		case at > 0:
			for out := buf[:at]; len(out) > 0; {
				n, err := unix.Write(fd, out)
				if err != nil && !errors.Is(err, unix.EINTR) {
					return fmt.Errorf("write to the switch: %w", err)
				}
				out = out[max(0, n):]
			}
			at = 0
		default:
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(tap), Events: unix.POLLIN}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for the tap: %w", err)
			}
		}
	}
}

// toTap writes frames one by one, as a tap wants them.
func toTap(fd, tap int) error {
	buf := make([]byte, plugBatch)
	for end := 0; ; {
		n, err := unix.Read(fd, buf[end:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		end += n
		at := 0
		for end-at >= plugHeader {
			size := plugHeader + int(binary.BigEndian.Uint32(buf[at:]))
			if size > len(buf) {
				return fmt.Errorf("the switch sent a frame of %d bytes", size)
			}
			if size > end-at {
				break
			}
			_, _ = unix.Write(tap, buf[at+plugHeader:at+size]) // a tap that is down or full drops
			at += size
		}
		end = copy(buf, buf[at:end])
	}
}
