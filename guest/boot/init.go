package boot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/guest"
)

// restartDelay keeps an agent that cannot start from spinning.
const restartDelay = 200 * time.Millisecond

// Init is process 1. It returns only when the guest cannot be used.
func Init() error {
	if err := mountEarly(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return step("read the kernel command line", err)
	}
	cfg, err := guest.ParseKernelArgs(string(cmdline))
	if err != nil {
		return err
	}
	logTo(cfg.Console)
	stamp("modules")
	if err := loadModules(ModuleList); err != nil {
		return err
	}
	stamp("root")
	if err := mountRoot(); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	stamp("system")
	if err := mountLate(); err != nil {
		return err
	}
	if err := setNames(cfg); err != nil {
		return err
	}
	if err := startProcessors("/sys"); err != nil {
		fmt.Fprintf(os.Stderr, "vft-guest: %v\n", err)
	}
	// Before the agent, which may ask at once.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR2, unix.SIGTERM)
	go func() {
		<-signals
		powerOff()
	}()
	// The agent's program starts while the network comes up.
	var sup supervisor
	if err := sup.start(); err != nil {
		return err
	}
	stamp("network")
	if err := setNetwork(cfg); err != nil {
		// The agent can still tell the host about it.
		fmt.Fprintf(os.Stderr, "vft-guest: %v\n", err)
	}
	stamp("up")
	return sup.run()
}

// Poweroff asks process 1 to end the guest.
func Poweroff() {
	if err := unix.Kill(1, unix.SIGUSR2); err != nil {
		powerOff()
	}
}

// supervisor keeps one agent running and reaps what loses its parent.
type supervisor struct {
	agent *exec.Cmd
}

func (s *supervisor) start() error {
	cmd := exec.Command("/usr/lib/vft/vft-guest", "agent") //nolint:noctx // lives as long as the guest
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	if err := cmd.Start(); err != nil {
		return step("start the agent", err)
	}
	s.agent = cmd
	return nil
}

func (s *supervisor) run() error {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			time.Sleep(restartDelay)
		case err != nil:
			return step("wait for processes", err)
		}
		if pid != s.agent.Process.Pid {
			continue
		}
		fmt.Fprintf(os.Stderr, "vft-guest: the agent ended (%s), starting it again\n", describe(ws))
		// What it had started has lost its streams and its owner.
		_ = unix.Kill(-1, unix.SIGKILL)
		time.Sleep(restartDelay)
		if err := s.start(); err != nil {
			return err
		}
	}
}

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return "signal " + ws.Signal().String()
	}
	return "exit code " + strconv.Itoa(ws.ExitStatus())
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Fail says why the guest cannot be used and ends it.
func Fail(err error) {
	msg := fmt.Sprintf("vft-guest: %v\n", err)
	for _, dev := range []string{"/dev/kmsg", "/dev/ttyS0"} {
		if f, e := os.OpenFile(dev, os.O_WRONLY|syscall.O_NOCTTY, 0); e == nil {
			_, _ = f.WriteString(msg)
			_ = f.Close()
		}
	}
	powerOff()
}

func logTo(console bool) {
	dev := os.DevNull
	if console {
		dev = "/dev/ttyS0"
	}
	f, err := os.OpenFile(dev, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return
	}
	os.Stdin, os.Stdout, os.Stderr = f, f, f
	tracing = console
}

// tracing makes stamp write. It is set once, before anything runs beside.
var tracing bool

func stamp(what string) {
	if !tracing {
		return
	}
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	fmt.Fprintf(os.Stderr, "vft-guest: %.3f %s\n", float64(ts.Nano())/1e9, what)
}

// setNames sets the host name and writes the name tables.
func setNames(cfg guest.KernelConfig) error {
	name := cfg.HostPrefix + strconv.Itoa(cfg.Index)
	if err := unix.Sethostname([]byte(name)); err != nil {
		return step("set the host name", err)
	}
	hosts, err := guest.Hosts(cfg)
	if err != nil {
		return err
	}
	files := map[string]string{"hosts": hosts, "hostname": name + "\n"}
	if cfg.DNS != "" {
		files["resolv.conf"] = "nameserver " + cfg.DNS + "\n"
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join("/etc", file), []byte(text), 0o644); err != nil { //nolint:gosec // world-readable by nature
			return step("write the name tables", err)
		}
	}
	return nil
}
