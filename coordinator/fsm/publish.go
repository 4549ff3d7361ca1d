package fsm

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

const (
	maxPublished = 64   // ports of a job
	firstPort    = 1024 // those below are the system's
	lastPort     = 65535
)

// CheckPublished says what is wrong with the ports that a job of so many
// guests publishes, if anything is.
func CheckPublished(ports []*vftv1.PublishedPort, guests int) error {
	if len(ports) > maxPublished {
		return fmt.Errorf("%d published ports, at most %d: %w", len(ports), maxPublished, ErrInvalid)
	}
	for i, p := range ports {
		if err := checkPort(p, guests); err != nil {
			return err
		}
		for _, q := range ports[:i] {
			if overlap(p, q) {
				return fmt.Errorf("port %s leads to guest %d already: %w", portName(p), q.GetGuest(), ErrInvalid)
			}
		}
	}
	return nil
}

func checkPort(p *vftv1.PublishedPort, guests int) error {
	if p.GetAddress() != "" {
		if _, err := netip.ParseAddr(p.GetAddress()); err != nil {
			return fmt.Errorf("published port: %q is no address of a node: %w", p.GetAddress(), ErrInvalid)
		}
	}
	switch {
	case p.GetPort() < firstPort || p.GetPort() > lastPort:
		return fmt.Errorf("published port %d: give one from %d to %d: %w", p.GetPort(), firstPort, lastPort, ErrInvalid)
	case p.GetGuestPort() < 1 || p.GetGuestPort() > lastPort:
		return fmt.Errorf("published port %d: a guest has no port %d: %w", p.GetPort(), p.GetGuestPort(), ErrInvalid)
	case int(p.GetGuest()) >= guests:
		return fmt.Errorf("published port %d: guest %d, the job has %d: %w", p.GetPort(), p.GetGuest(), guests, ErrInvalid)
	}
	return nil
}

// overlap says whether two ports cannot be open at once.
func overlap(p, q *vftv1.PublishedPort) bool {
	return p.GetPort() == q.GetPort() && (p.GetAddress() == q.GetAddress() || p.GetAddress() == "" || q.GetAddress() == "")
}

func portName(p *vftv1.PublishedPort) string {
	name := strconv.Itoa(int(p.GetPort()))
	if p.GetAddress() != "" {
		name = p.GetAddress() + ":" + name
	}
	return name
}

// publishPort changes the ports that the job's gateway is told to open.
func (t *transition) publishPort(c *vftv1.PublishPort) (bool, error) {
	j, port := t.job, c.GetPort()
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return false, ErrJobEnded
	}
	labels := map[string]string{"port": portName(port)}
	if c.GetRemove() {
		left := slices.DeleteFunc(slices.Clone(j.GetPublished()), func(p *vftv1.PublishedPort) bool {
			return p.GetPort() == port.GetPort() && p.GetAddress() == port.GetAddress()
		})
		if len(left) == len(j.GetPublished()) {
			return false, nil
		}
		j.Published = left
		t.event("unpublished", fmt.Sprintf("port %s is not published any more", portName(port)), nil, labels)
		return true, nil
	}
	if slices.ContainsFunc(j.GetPublished(), func(p *vftv1.PublishedPort) bool { return proto.Equal(p, port) }) {
		return false, nil
	}
	all := append(slices.Clone(j.GetPublished()), proto.CloneOf(port))
	if err := CheckPublished(all, len(j.GetSpec().GetGuests())); err != nil {
		return false, err
	}
	j.Published = all
	t.event("published", fmt.Sprintf("port %s of the gateway's node leads to port %d of guest %d", portName(port), port.GetGuestPort(), port.GetGuest()),
		map[string]int64{"guest": int64(port.GetGuest()), "guest_port": int64(port.GetGuestPort())}, labels)
	return true, nil
}
