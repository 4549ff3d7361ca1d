package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a port's connection to QEMU. Read, Writev and Unread never block,
// and nobody calls them or Shutdown once Close has begun.
type Socket interface {
	// AwaitRead calls f, and again whenever there is something to read, until
	// it returns true or the socket is interrupted.
	AwaitRead(f func() (done bool)) error
	// AwaitWrite does the same whenever there is room to write.
	AwaitWrite(f func() (done bool)) error
	// Read is read(2); it returns 0 at the end and unix.EAGAIN if nothing is there.
	Read(b []byte) (int, error)
	// Writev is writev(2) of vectors that are not empty.
	Writev(iov []unix.Iovec) (int, error)
	// Unread returns how many bytes QEMU has not read.
	Unread() (int, error)
	// Shutdown ends the connection, so that Read returns 0.
	Shutdown()
	// Interrupt makes waiting calls return, now and later. It may come at any time.
	Interrupt()
	Close() error
}

// unixSocket is the Socket of a real QEMU.
type unixSocket struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	fd   int // valid until Close
}

func dialUnix(ctx context.Context, path string) (Socket, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	s := &unixSocket{fd: -1}
	var ok bool
	if s.conn, ok = conn.(*net.UnixConn); !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: not a unix socket", path)
	}
	if s.raw, err = s.conn.SyscallConn(); err == nil {
		err = s.raw.Control(func(fd uintptr) { s.fd = int(fd) })
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: %w", path, err)
	}
	return s, nil
}

// AwaitRead waits until the kernel says that the socket can be read.
func (s *unixSocket) AwaitRead(f func() bool) error {
	return s.raw.Read(func(uintptr) bool { return f() })
}

// AwaitWrite waits until the kernel says that the socket can be written.
func (s *unixSocket) AwaitWrite(f func() bool) error {
	return s.raw.Write(func(uintptr) bool { return f() })
}

// Read is read(2).
func (s *unixSocket) Read(b []byte) (int, error) { return unix.Read(s.fd, b) }

// Writev writes what the kernel has room for.
func (s *unixSocket) Writev(iov []unix.Iovec) (int, error) {
	// The socket is non-blocking: this returns at once.
	n, _, errno := syscall.Syscall(unix.SYS_WRITEV, uintptr(s.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov))) //nolint:gosec // writev takes an array of pointers
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Unread is what SIOCOUTQ says.
func (s *unixSocket) Unread() (int, error) {
	n, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	if err != nil {
		return 0, errors.Join(errors.New("ask how much QEMU has not read"), err)
	}
	return n, nil
}

// Shutdown shuts both directions down.
func (s *unixSocket) Shutdown() { _ = unix.Shutdown(s.fd, unix.SHUT_RDWR) }

// Interrupt sets a deadline that has passed.
func (s *unixSocket) Interrupt() { _ = s.conn.SetDeadline(time.Unix(1, 0)) }

// Close closes the file; its number may be used again at once.
func (s *unixSocket) Close() error { return s.conn.Close() }
