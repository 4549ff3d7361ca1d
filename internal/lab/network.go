package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Control sockets that the daemons of a lab node open in their run directory.
const (
	// CoordinatorControl is the coordinator's.
	CoordinatorControl = "coordinator.ctl"
	// SidecarControl is the sidecar's.
	SidecarControl = "sidecar.ctl"
)

func (l *Lab) bridge() string             { return fmt.Sprintf("vftlab%d", l.state.Number) }
func (l *Lab) namespace(n *node) string   { return fmt.Sprintf("vftlab%d-%s", l.state.Number, n.ID) }
func (l *Lab) hostDevice(n *node) string  { return fmt.Sprintf("vft%d%s", l.state.Number, n.ID) }
func (l *Lab) gatewayAddr() string        { return fmt.Sprintf("10.177.%d.254/24", l.state.Number) }
func (l *Lab) guestDevice(n *node) string { return fmt.Sprintf("vftp%d%s", l.state.Number, n.ID) }

func (l *Lab) addNetworks(ctx context.Context) error {
	br := l.bridge()
	if err := ip(ctx, "link", "add", br, "type", "bridge"); err != nil {
		return err
	}
	if err := ip(ctx, "addr", "add", l.gatewayAddr(), "dev", br); err != nil {
		return err
	}
	if err := ip(ctx, "link", "set", br, "up"); err != nil {
		return err
	}
	for _, n := range l.state.Nodes {
		ns := l.namespace(n)
		for _, args := range [][]string{
			{"netns", "add", ns},
			{"link", "add", l.hostDevice(n), "type", "veth", "peer", "name", l.guestDevice(n)},
			{"link", "set", l.guestDevice(n), "netns", ns, "name", "eth0"},
			{"link", "set", l.hostDevice(n), "master", br, "up"},
			{"-n", ns, "addr", "add", n.Address + "/24", "dev", "eth0"},
			{"-n", ns, "link", "set", "eth0", "up"},
			{"-n", ns, "link", "set", "lo", "up"},
		} {
			if err := ip(ctx, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) removeNetworks(ctx context.Context) error {
	var errs []error
	for _, n := range l.state.Nodes {
		// The namespace itself may linger while connections of killed processes
		// wind down; its device must not, as the next lab makes the same one.
		if err := ip(ctx, "link", "del", l.hostDevice(n)); err != nil && !absent(err) {
			errs = append(errs, err)
		}
		if err := ip(ctx, "netns", "del", l.namespace(n)); err != nil && !absent(err) {
			errs = append(errs, err)
		}
	}
	if err := ip(ctx, "link", "del", l.bridge()); err != nil && !absent(err) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func absent(err error) bool {
	return strings.Contains(err.Error(), "No such file") || strings.Contains(err.Error(), "Cannot find device")
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Partition cuts a node off from all others: its cable is pulled where it has
// one (network namespaces), else its daemons stop moving bytes.
func (l *Lab) Partition(ctx context.Context, id string) error { return l.cut(ctx, id, true) }

// Heal undoes Partition.
func (l *Lab) Heal(ctx context.Context, id string) error { return l.cut(ctx, id, false) }

func (l *Lab) cut(ctx context.Context, id string, off bool) error {
	n, err := l.find(id)
	if err != nil {
		return err
	}
	if l.state.Netns {
		state := "up"
		if off {
			state = "down"
		}
		err = ip(ctx, "link", "set", l.hostDevice(n), state)
	} else {
		err = l.setGates(ctx, n, off)
	}
	if err != nil {
		return err
	}
	n.Cut = off
	return l.save()
}

func (l *Lab) setGates(ctx context.Context, n *node, shut bool) error {
	run := filepath.Join(l.state.Run, n.ID)
	sockets := []string{SidecarControl}
	if _, err := os.Stat(filepath.Join(run, CoordinatorControl)); err == nil {
		sockets = append(sockets, CoordinatorControl)
	}
	for _, s := range sockets {
		if err := post(ctx, filepath.Join(run, s), fmt.Sprintf("/lab/gate?shut=%t", shut)); err != nil {
			return fmt.Errorf("cutting %s off: %w", n.ID, err)
		}
	}
	return nil
}

func post(ctx context.Context, socket, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is read from it
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s answered %s", filepath.Base(socket), resp.Status)
	}
	return nil
}
