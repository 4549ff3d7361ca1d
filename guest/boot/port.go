package boot

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// port is the guest's end of a virtio-serial port. It stays out of the run
// time's poller: while no host is connected the port is always "ready", and a
// blocking read or write in a thread of its own costs nothing.
type port struct{ fd int }

// OpenPort opens the device of a virtio-serial port. Read returns io.EOF while
// no host is connected; Write waits for one.
func OpenPort(dev string) (io.ReadWriter, error) {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, step("open the agent's port "+dev, err)
	}
	return &port{fd}, nil
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, step("read the agent's port", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		if n > 0 {
			done += n
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return done, step("write to the agent's port", err)
		}
	}
	return done, nil
}
