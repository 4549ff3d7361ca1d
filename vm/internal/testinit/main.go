// Command testinit is the only program of the guests of the vm package's
// end-to-end tests. It dirties memory in rounds and answers on the agent port.
//
// In round n it writes n to the first word of every page of its buffer, the
// counter's page first. Asked "get" between two rounds it checks that all
// pages hold n and answers "n PHYS ok" or "n PHYS bad"; PHYS is the physical
// address of the counter, for a look at it from outside.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

func main() {
	fmt.Println("testinit:", run())
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// run serves until something fails.
func run() error {
	debug.SetGCPercent(-1)
	for dir, fs := range map[string]string{"/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs"} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs, err)
		}
	}
	mods, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, m := range mods { // sorted; the names begin with the order
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	if err := startProcessors(); err != nil {
		return err
	}
	dirty, pace, err := parameters()
	if err != nil {
		return err
	}
	buf, err := unix.Mmap(-1, 0, dirty<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	phys, err := physical(&buf[0])
	if err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	fmt.Println("testinit: ready")
	return serve(port, buf, phys, pace)
}

func serve(port *os.File, buf []byte, phys uint64, pace time.Duration) error {
	asked := make(chan string)
	go func() {
		r := bufio.NewReader(port)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				// Nobody is connected outside.
				time.Sleep(time.Millisecond)
				continue
			}
			asked <- strings.TrimSpace(line)
		}
	}()
	counter := (*uint64)(unsafe.Pointer(&buf[0])) //nolint:gosec // mapped pages are aligned
	for n := uint64(1); ; n++ {
		atomic.StoreUint64(counter, n)
		for i := page; i < len(buf); i += page {
			binary.LittleEndian.PutUint64(buf[i:], n)
		}
		select {
		case <-asked:
			verdict := "ok"
			for i := 0; i < len(buf); i += page {
				if binary.LittleEndian.Uint64(buf[i:]) != n {
					verdict = "bad"
				}
			}
			if _, err := fmt.Fprintf(port, "%d %d %s\n", n, phys, verdict); err != nil {
				fmt.Println("testinit: answer:", err)
			}
		default:
		}
		if pace > 0 {
			time.Sleep(pace)
		}
	}
}

// startProcessors brings up those that the kernel was told to leave out at boot.
func startProcessors() error {
	files, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			return fmt.Errorf("start a processor: %w", err)
		}
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// parameters are vft.dirty=MIB and vft.pace=MICROSECONDS of the kernel command line.
func parameters() (dirty int, pace time.Duration, err error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, 0, err
	}
	dirty = 8
	for _, f := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(f, "vft.dirty="); ok {
			if dirty, err = strconv.Atoi(v); err != nil {
				return 0, 0, err
			}
		}
		if v, ok := strings.CutPrefix(f, "vft.pace="); ok {
			us, err := strconv.Atoi(v)
			if err != nil {
				return 0, 0, err
			}
			pace = time.Duration(us) * time.Microsecond
		}
	}
	return dirty, pace, nil
}

func physical(p *byte) (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	var e [8]byte
	if _, err := f.ReadAt(e[:], int64(uintptr(unsafe.Pointer(p))/page*8)); err != nil { //nolint:gosec // only the number is used
		return 0, err
	}
	v := binary.LittleEndian.Uint64(e[:])
	if v>>63 == 0 {
		return 0, fmt.Errorf("page is not present")
	}
	return v & (1<<55 - 1) * page, nil
}

func openPort() (*os.File, error) {
	var last error
	for range 1000 {
		ports, err := filepath.Glob("/dev/vport*")
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err == nil {
				return f, nil
			}
			last = err
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("no agent port: %w", last)
}
