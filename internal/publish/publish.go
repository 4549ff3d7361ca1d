// Package publish reads and writes published ports as users do:
// [ADDRESS:]PORT:guestN:PORT.
package publish

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// prefix begins the names of guests.
const prefix = "guest"

// Parse reads a published port. The error repeats what was given and says what
// is wanted.
func Parse(s string) (*vftv1.PublishedPort, error) {
	bad := fmt.Errorf("%q: give [ADDRESS:]PORT:guestN:PORT, such as 8080:guest0:80", s)
	rest, inner, ok := cutLast(s)
	if !ok {
		return nil, bad
	}
	rest, name, ok := cutLast(rest)
	if !ok {
		return nil, bad
	}
	index, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return nil, bad
	}
	p, err := ParseOuter(rest)
	if err != nil {
		return nil, bad
	}
	guest, err := strconv.ParseUint(index, 10, 16)
	if err != nil {
		return nil, bad
	}
	port, err := strconv.ParseUint(inner, 10, 16)
	if err != nil || port == 0 {
		return nil, bad
	}
	p.Guest, p.GuestPort = uint32(guest), uint32(port)
	return p, nil
}

// ParseOuter reads the node's side of a published port: [ADDRESS:]PORT.
func ParseOuter(s string) (*vftv1.PublishedPort, error) {
	bad := fmt.Errorf("%q: give [ADDRESS:]PORT, such as 8080 or 127.0.0.1:8080", s)
	p := &vftv1.PublishedPort{}
	if strings.Contains(s, ":") {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			return nil, bad
		}
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return nil, bad
		}
		p.Address, s = addr.String(), port
	}
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return nil, bad
	}
	p.Port = uint32(port)
	return p, nil
}

// Outer writes the node's side of a published port as ParseOuter reads it.
func Outer(p *vftv1.PublishedPort) string {
	if p.GetAddress() == "" {
		return strconv.Itoa(int(p.GetPort()))
	}
	return net.JoinHostPort(p.GetAddress(), strconv.Itoa(int(p.GetPort())))
}

// Inner writes the guest's side of a published port.
func Inner(p *vftv1.PublishedPort) string {
	return fmt.Sprintf("%s%d:%d", prefix, p.GetGuest(), p.GetGuestPort())
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
