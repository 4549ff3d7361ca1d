package boot

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mpirun-vft/vft/guest"
)

// nicName is what the kernel calls the first Ethernet device with
// net.ifnames=0 and no udev to rename it.
const nicName = "eth0"

// nicTimeout is short: a guest without a network device is a legal one.
const nicTimeout = 500 * time.Millisecond

// setNetwork brings up loopback and, if there is one, the Ethernet device.
func setNetwork(cfg guest.KernelConfig) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return step("find the loopback device", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return step("bring up the loopback device", err)
	}
	nic, err := waitForLink(nicName)
	if err != nil {
		return err
	}
	if nic == nil {
		return nil
	}
	p, err := netip.ParsePrefix(cfg.Net)
	if err != nil {
		return err
	}
	ip := guest.AddrIn(p, cfg.Index).AsSlice()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(p.Bits(), 32)}}
	if err := netlink.LinkSetMTU(nic, cfg.MTU); err != nil {
		return step(fmt.Sprintf("set the MTU of %s to %d", nicName, cfg.MTU), err)
	}
	if err := netlink.AddrReplace(nic, addr); err != nil {
		return step("set the address of "+nicName, err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return step("bring up "+nicName, err)
	}
	if cfg.Gateway != "" {
		route := &netlink.Route{LinkIndex: nic.Attrs().Index, Gw: net.ParseIP(cfg.Gateway)}
		return step("set the default route", netlink.RouteReplace(route))
	}
	return nil
}

func waitForLink(name string) (netlink.Link, error) {
	deadline := time.Now().Add(nicTimeout)
	for {
		link, err := netlink.LinkByName(name)
		var missing netlink.LinkNotFoundError
		if err == nil {
			return link, nil
		}
		if !errors.As(err, &missing) {
			return nil, step("find "+name, err)
		}
		if time.Now().After(deadline) {
			return nil, nil //nolint:nilnil // no device is a legal answer
		}
		time.Sleep(2 * time.Millisecond)
	}
}
