// Package guest is the host's view of a guest: its addresses, its kernel
// command line, and a client of the agent inside it. docs/GUEST.md specifies
// the image, the boot, the serial line and the agent's calls.
package guest

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Defaults of [KernelConfig].
const (
	// DefaultNet holds the guests of one job; x.x.0.0/24 of it is left to the
	// gateway and other services.
	DefaultNet = "10.77.0.0/16"
	// DefaultMTU is the largest that fits QEMU's stream frames.
	DefaultMTU = 65520
	// DefaultHostPrefix and the index make a guest's name.
	DefaultHostPrefix = "guest"
)

// AgentPort is the name of the virtio-serial port that the agent serves.
const AgentPort = "org.vft.agent.0"

// RemotePort is the TCP port of the remote start service between guests.
const RemotePort = 1177

// RshPath is the remote start command inside the guest.
const RshPath = "/usr/lib/vft/rsh"

// MPICHPreload is the name of the library that goes into the ranks of MPICH
// programs (guest/preload/src/mpich.c says why), and MPICHPreloadPath where it is
// in the guest.
const (
	MPICHPreload     = "libvft-mpich.so"
	MPICHPreloadPath = "/usr/lib/vft/" + MPICHPreload
)

// GatewayIndex stands in the place of a guest's index for the job's gateway
// (docs/GATEWAY.md): [MAC] gives its Ethernet address.
const GatewayIndex = 0xffff

// GatewayAddr returns the address of the gateway on the default network.
func GatewayAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, 1}) }

// HostAddr returns the address on the default network by which guests reach
// the loopback address of the gateway's node, if they may.
func HostAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, 2}) }

// MaxGuests is the number of guests that [Addr] can number.
const MaxGuests = 250 * 250

// Addr returns the address of guest i on the default network:
// 10.77.(1+i/250).(1+i%250).
func Addr(i int) netip.Addr {
	return AddrIn(netip.MustParsePrefix(DefaultNet), i)
}

// AddrIn returns the address of guest i in a /16 network.
func AddrIn(network netip.Prefix, i int) netip.Addr {
	b := network.Masked().Addr().As4()
	b[2] = byte(1 + i/250)
	b[3] = byte(1 + i%250)
	return netip.AddrFrom4(b)
}

// MAC returns the Ethernet address of guest i: 52:54:00:77:xx:yy with the
// index in the last two bytes, big-endian. 52:54:00 is QEMU's locally
// administered prefix.
func MAC(i int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0x00, 0x77, byte(i >> 8), byte(i)}
}

// HostName returns the name of guest i with the default prefix.
func HostName(i int) string { return DefaultHostPrefix + strconv.Itoa(i) }

// KernelConfig is what a guest learns from its kernel command line.
type KernelConfig struct {
	// Index of this guest among Size guests, from 0.
	Index, Size int
	// Net is the guests' IPv4 network, a /16; empty means DefaultNet.
	Net string
	// MTU of eth0 in bytes; 0 means DefaultMTU.
	MTU int
	// HostPrefix and the index make a guest's name; empty means
	// DefaultHostPrefix.
	HostPrefix string
	// Gateway is the default route, and DNS the name server. Empty: none.
	Gateway, DNS string
	// Console writes the kernel's and the agent's messages to ttyS0. It slows
	// the boot.
	Console bool
}

func (c KernelConfig) withDefaults() KernelConfig {
	if c.Net == "" {
		c.Net = DefaultNet
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.HostPrefix == "" {
		c.HostPrefix = DefaultHostPrefix
	}
	return c
}

// Validate reports the first value that no guest can be booted with.
func (c KernelConfig) Validate() error {
	c = c.withDefaults()
	p, err := netip.ParsePrefix(c.Net)
	switch {
	case err != nil:
		return fmt.Errorf("guest network %q: %w", c.Net, err)
	case !p.Addr().Is4() || p.Bits() != 16:
		return fmt.Errorf("guest network %q: want an IPv4 network of 16 bits such as %s", c.Net, DefaultNet)
	case c.Size < 1 || c.Size > MaxGuests:
		return fmt.Errorf("%d guests: want 1 to %d", c.Size, MaxGuests)
	case c.Index < 0 || c.Index >= c.Size:
		return fmt.Errorf("guest index %d: want 0 to %d", c.Index, c.Size-1)
	case c.MTU < 576 || c.MTU > DefaultMTU:
		return fmt.Errorf("MTU %d: want 576 to %d", c.MTU, DefaultMTU)
	case strings.Trim(c.HostPrefix, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("host name prefix %q: want letters, digits and hyphens", c.HostPrefix)
	}
	for _, a := range []string{c.Gateway, c.DNS} {
		if _, err := netip.ParseAddr(a); a != "" && err != nil {
			return fmt.Errorf("guest gateway or name server: %w", err)
		}
	}
	return nil
}

// KernelArgs returns the kernel command line for a guest:
//
//   - quiet loglevel=0: no console chatter, which costs a VM exit per byte;
//   - tsc=reliable no_timer_check: no watchdog against a clock that a restore
//     would trip, no calibration loops;
//   - clocksource=kvm-clock: under KVM the clock that leaves a pause out; other
//     accelerators do not have it and the kernel takes the TSC;
//   - mitigations=off nokaslr: the guest runs one user's program and holds no
//     secret from it;
//   - random.trust_cpu=on: no wait for entropy;
//   - panic=-1: a kernel panic resets at once, which QEMU's -no-reboot turns
//     into an exit that the host sees;
//   - cryptomgr.notests, audit=0, selinux=0, apparmor=0: boot work that serves
//     nobody here;
//   - nowatchdog, rcupdate.rcu_cpu_stall_suppress=1: a guest that was paused
//     for long is not locked up.
func KernelArgs(c KernelConfig) string {
	c = c.withDefaults()
	args := []string{
		"tsc=reliable", "no_timer_check", "clocksource=kvm-clock", "mitigations=off", "nokaslr",
		"random.trust_cpu=on", "panic=-1", "cryptomgr.notests", "audit=0", "selinux=0", "apparmor=0",
		"nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1",
		"net.ifnames=0",
	}
	if c.Console {
		args = append(args, "console=ttyS0", "loglevel=7", "vft.console=1")
	} else {
		args = append(args, "quiet", "loglevel=0")
	}
	args = append(args,
		"vft.index="+strconv.Itoa(c.Index), "vft.size="+strconv.Itoa(c.Size),
		"vft.net="+c.Net, "vft.mtu="+strconv.Itoa(c.MTU), "vft.hosts="+c.HostPrefix)
	if c.Gateway != "" {
		args = append(args, "vft.gw="+c.Gateway)
	}
	if c.DNS != "" {
		args = append(args, "vft.dns="+c.DNS)
	}
	return strings.Join(args, " ")
}

// ParseKernelArgs reads the vft parameters of a kernel command line and leaves
// the others alone.
func ParseKernelArgs(cmdline string) (KernelConfig, error) {
	var c KernelConfig
	for f := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(f, "=")
		var err error
		switch key {
		case "vft.index":
			c.Index, err = strconv.Atoi(value)
		case "vft.size":
			c.Size, err = strconv.Atoi(value)
		case "vft.mtu":
			c.MTU, err = strconv.Atoi(value)
		case "vft.net":
			c.Net = value
		case "vft.hosts":
			c.HostPrefix = value
		case "vft.gw":
			c.Gateway = value
		case "vft.dns":
			c.DNS = value
		case "vft.console":
			c.Console = value == "1"
		}
		if err != nil {
			return KernelConfig{}, fmt.Errorf("kernel parameter %s: %w", key, err)
		}
	}
	c = c.withDefaults()
	return c, c.Validate()
}

// Hosts returns the text of /etc/hosts for all guests of c.
func Hosts(c KernelConfig) (string, error) {
	c = c.withDefaults()
	p, err := netip.ParsePrefix(c.Net)
	if err != nil {
		return "", fmt.Errorf("guest network %q: %w", c.Net, err)
	}
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for i := range c.Size {
		fmt.Fprintf(&b, "%s %s%d\n", AddrIn(p, i), c.HostPrefix, i)
	}
	return b.String(), nil
}

// Address returns the guest's own address.
func (c KernelConfig) Address() (netip.Addr, error) {
	p, err := netip.ParsePrefix(c.withDefaults().Net)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("guest network %q: %w", c.Net, err)
	}
	return AddrIn(p, c.Index), nil
}
