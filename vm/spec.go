package vm

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Accel names the way in which guest instructions are executed.
type Accel string

// The accelerators. TCG needs nothing and is slow.
const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg"
)

// What Spec uses where a field is empty.
const (
	// DefaultMachine is versioned: the devices of a snapshot must be found
	// again by the QEMU that loads it, whatever its own version.
	DefaultMachine = "pc-q35-7.2"
	// DefaultTCGCPU is a CPU whose features TCG implements without
	// exception, with rdrand so that the guest's random generator is ready
	// at boot.
	DefaultTCGCPU = "Nehalem-v1,+rdrand"
	// DefaultKVMCPU is the oldest CPU that a KVM host can be expected to have.
	DefaultKVMCPU = "Nehalem-v1"

	// AgentPort is the name of the virtio-serial port of the guest's agent.
	AgentPort = "org.vft.agent.0"

	// maxSocketPath is the room in sockaddr_un.sun_path less its final NUL.
	maxSocketPath = 107
)

// Files in Spec.Dir.
const (
	fileMachine = "machine.json"
	fileStderr  = "stderr.log"
	fileSerial  = "serial.log"
	sockNet     = "net.sock"
	sockAgent   = "agent.sock"
	sockQMP     = "qmp.sock"
	sockSnap    = "snap.sock" // QEMU connects here to write a snapshot
	sockLoad    = "load.sock" // QEMU listens here for a snapshot to load
	fileFilling = "filling"   // there, and locked, while memory is still being restored
)

// Disk is a raw image attached by virtio-blk. Snapshots do not contain disks:
// a disk that is not read-only makes them inconsistent unless the caller
// snapshots it in the same cut.
type Disk struct {
	// Path of the image.
	Path string
	// ReadOnly attaches the disk write-protected.
	ReadOnly bool
	// Serial is shown to the guest (at most 20 bytes); empty for none.
	Serial string
}

// Spec describes a guest. Two specs that differ only in Name, Dir, paths and
// Append make machines that can load each other's snapshots.
type Spec struct {
	// Name of the guest, for people.
	Name string
	// Dir is the guest's runtime directory, made with mode 0700. Socket paths
	// in it must not be longer than 107 bytes.
	Dir string
	// MemoryMiB is the guest's RAM in MiB.
	MemoryMiB int
	// CPUs is the number of virtual CPUs.
	CPUs int
	// Accel is the accelerator, TCG if empty.
	Accel Accel
	// Machine is QEMU's machine type, DefaultMachine if empty. It must be a
	// versioned one.
	Machine string
	// CPUModel is QEMU's CPU model with its feature flags; empty for the
	// accelerator's default.
	CPUModel string
	// Kernel, Initrd and Append boot Linux directly. Initrd may be empty.
	// Under TCG tcgKernelArgs are put before Append: Linux then boots on one
	// processor, and its init has to bring up the others.
	Kernel, Initrd, Append string
	// Disks in the order in which the guest sees them (vda, vdb, ...).
	Disks []Disk
	// MAC is the Ethernet address; no NIC if empty.
	MAC string
	// MTU is told to the guest's driver; QEMU's default if 0.
	MTU int
	// NetSocket, AgentSocket and QMPSocket are the unix sockets at which QEMU
	// listens; names in Dir if empty.
	NetSocket, AgentSocket, QMPSocket string
	// Incoming starts the machine without running it, ready to load a
	// snapshot.
	Incoming bool
	// KillWithParent makes the kernel kill QEMU when the process that started
	// it ends. Without it the guest goes on and may be adopted.
	KillWithParent bool

	memFile bool     // RAM is a private mapping of the file at descriptor memFD
	extra   []string // options of the probe's guests
}

// qmpFD is the file descriptor at which QEMU finds its QMP socket, already
// listening: a client can connect before QEMU has come that far.
const qmpFD = 3

// memFD is the file descriptor of a file with the guest's RAM.
const memFD = qmpFD + 1

// ramBlock is QEMU's name of the block with the guest's main memory.
const ramBlock = "pc.ram"

func (s Spec) withDefaults() Spec {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	if s.Accel == "" {
		s.Accel = AccelTCG
	}
	def(&s.Machine, DefaultMachine)
	if s.Accel == AccelKVM {
		def(&s.CPUModel, DefaultKVMCPU)
	} else {
		def(&s.CPUModel, DefaultTCGCPU)
	}
	def(&s.NetSocket, filepath.Join(s.Dir, sockNet))
	def(&s.AgentSocket, filepath.Join(s.Dir, sockAgent))
	def(&s.QMPSocket, filepath.Join(s.Dir, sockQMP))
	return s
}

// Validate says what is wrong with the spec.
func (s Spec) Validate() error {
	s = s.withDefaults()
	var errs []error
	bad := func(format string, a ...any) {
		errs = append(errs, fmt.Errorf("guest %q: "+format, append([]any{s.Name}, a...)...))
	}
	if s.Name == "" {
		bad("no name")
	}
	if !filepath.IsAbs(s.Dir) {
		bad("runtime directory %q is not an absolute path", s.Dir)
	}
	if s.MemoryMiB < 1 {
		bad("%d MiB of memory", s.MemoryMiB)
	}
	if s.CPUs < 1 || s.CPUs > 255 {
		bad("%d CPUs, want 1 to 255", s.CPUs)
	}
	if s.Accel != AccelKVM && s.Accel != AccelTCG {
		bad("unknown accelerator %q, want %q or %q", s.Accel, AccelKVM, AccelTCG)
	}
	if !versioned(s.Machine) {
		bad("machine type %q has no version: its devices may change with QEMU; use one like %s", s.Machine, DefaultMachine)
	}
	if s.Kernel == "" && (s.Initrd != "" || s.Append != "") {
		bad("initrd or kernel command line without a kernel")
	}
	if s.MAC != "" {
		if hw, err := net.ParseMAC(s.MAC); err != nil || len(hw) != 6 {
			bad("%q is not an Ethernet address", s.MAC)
		} else if hw[0]&1 != 0 {
			bad("%q is a multicast address", s.MAC)
		}
	}
	if s.MTU != 0 && (s.MTU < 576 || s.MTU > 65535) {
		bad("MTU %d, want 576 to 65535", s.MTU)
	}
	for _, d := range s.Disks {
		if d.Path == "" || len(d.Serial) > 20 {
			bad("disk %q with serial %q: want a path and at most 20 bytes of serial", d.Path, d.Serial)
		}
	}
	for _, p := range []string{s.NetSocket, s.AgentSocket, s.QMPSocket, filepath.Join(s.Dir, sockSnap), filepath.Join(s.Dir, sockLoad)} {
		if len(p) > maxSocketPath {
			bad("socket path %s has %d bytes and the system allows %d: choose a shorter runtime directory", p, len(p), maxSocketPath)
			break
		}
	}
	return errors.Join(errs...)
}

// versioned tells whether a machine type ends in a version number.
func versioned(machine string) bool {
	i := strings.LastIndexByte(machine, '-')
	if i < 0 {
		return false
	}
	major, minor, ok := strings.Cut(machine[i+1:], ".")
	if !ok {
		return false
	}
	_, err1 := strconv.Atoi(major)
	_, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil
}

// optEscape makes s a value in a QEMU option list.
func optEscape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// Argv is the QEMU command line without the program's name. It is a pure
// function of the spec. QEMU expects its listening QMP socket as file
// descriptor 3.
func (s Spec) Argv() ([]string, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	accel := string(s.Accel)
	if s.Accel == AccelTCG {
		accel += ",thread=multi"
	}
	a := []string{
		"-name", "guest=" + optEscape(s.Name),
		"-nodefaults", "-no-user-config",
		"-display", "none",
		"-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", s.Machine + machineOptions(s.Machine) + s.memoryBackend(),
		"-accel", accel,
		"-cpu", s.CPUModel,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", s.CPUs, s.CPUs),
		"-m", fmt.Sprintf("size=%dM", s.MemoryMiB),
		"-rtc", "base=utc",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "file,id=serial,append=on,path=" + optEscape(filepath.Join(s.Dir, fileSerial)),
		"-serial", "chardev:serial",
		"-device", "virtio-serial-pci,id=vserial,max_ports=2",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + optEscape(s.AgentSocket),
		"-device", "virtserialport,id=agentport,bus=vserial.0,nr=1,chardev=agent,name=" + AgentPort,
	}
	if s.MAC != "" {
		nic := "virtio-net-pci,id=nic,netdev=net,romfile=,mac=" + s.MAC
		if s.MTU != 0 {
			nic += ",host_mtu=" + strconv.Itoa(s.MTU)
		}
		a = append(a,
			"-netdev", "stream,id=net,server=on,addr.type=unix,addr.path="+optEscape(s.NetSocket),
			"-device", nic)
	}
	for i, d := range s.Disks {
		id := "disk" + strconv.Itoa(i)
		ro := "off"
		if d.ReadOnly {
			ro = "on"
		}
		// A read-only image is shared by all guests of a node: no lock.
		a = append(a, "-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,file.driver=file,file.locking=%s,file.filename=%s",
			id, ro, map[bool]string{true: "off", false: "auto"}[d.ReadOnly], optEscape(d.Path)))
		dev := fmt.Sprintf("virtio-blk-pci,id=%sdev,drive=%s", id, id)
		if d.Serial != "" {
			dev += ",serial=" + optEscape(d.Serial)
		}
		a = append(a, "-device", dev)
	}
	if s.Kernel != "" {
		a = append(a, "-kernel", s.Kernel)
		if s.Initrd != "" {
			a = append(a, "-initrd", s.Initrd)
		}
		if args := kernelArgs(s.Accel, s.Append); args != "" {
			a = append(a, "-append", args)
		}
	}
	if s.memFile {
		a = append(a, "-object", fmt.Sprintf("memory-backend-file,id=%s,size=%dM,share=off,mem-path=/proc/self/fd/%d", ramBlock, s.MemoryMiB, memFD))
	}
	a = append(a, s.extra...)
	if s.Incoming {
		a = append(a, "-S", "-incoming", "defer")
	}
	return a, nil
}

func (s Spec) memoryBackend() string {
	if s.memFile {
		return ",memory-backend=" + ramBlock
	}
	return ""
}

// tcgKernelArgs let Linux boot dependably under TCG:
//
//   - no_timer_check: Linux tests at boot whether timer interrupts arrive
//     within a few milliseconds and panics if not; on a busy host they do not
//     now and then. Under KVM Linux knows not to test.
//   - maxcpus=1 noreplace-smp: while it boots Linux patches its own code. Before
//     QEMU 8.1 a processor that translates code while another one changes it
//     may keep the old translation and then runs into a stale breakpoint for
//     ever. With one processor there is no other. The init brings up the rest
//     (/sys/devices/system/cpu/cpuN/online).
const tcgKernelArgs = "no_timer_check maxcpus=1 noreplace-smp"

// kernelArgs completes the kernel's command line.
func kernelArgs(accel Accel, args string) string {
	if accel != AccelTCG {
		return args
	}
	return strings.TrimSpace(tcgKernelArgs + " " + args)
}

// machineOptions leaves out what a batch guest does not need and what only
// costs boot time. dump-guest-core keeps RAM out of core files.
func machineOptions(machine string) string {
	o := ",dump-guest-core=off"
	if strings.HasPrefix(machine, "pc-") {
		o += ",vmport=off,hpet=off,graphics=off"
	}
	if strings.HasPrefix(machine, "pc-q35-") {
		o += ",sata=off,smbus=off"
	}
	return o
}
