// Package boot is the first process of a guest: it loads the modules that the
// disk, the network and the agent's port need, puts a writable layer over the
// read-only root, sets up the network, and then keeps the agent running.
package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Paths inside the initramfs.
const (
	// ModuleList names one module file per line, dependencies first.
	ModuleList = "/modules/list"
	// Program is this program.
	Program = "/vft-guest"
)

const (
	newRoot     = "/newroot"
	diskTimeout = 20 * time.Second
	// rootDisk is the first virtio block device.
	rootDisk = "/dev/vda"
)

// step gives an error the name of what was being done.
func step(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// mountEarly mounts what everything else looks into.
func mountEarly() error {
	for _, m := range []struct{ what, where, data string }{
		{"devtmpfs", "/dev", "mode=0755"},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
		err := unix.Mount(m.what, m.where, m.what, unix.MS_NOSUID, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return step("mount "+m.what, err)
		}
	}
	return nil
}

// loadModules loads the files that list names, in its order.
func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if err != nil {
		return step("read the module list", err)
	}
	for name := range bytes.FieldsSeq(b) {
		if err := loadModule(filepath.Join(filepath.Dir(list), string(name))); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return step("load a kernel module", err)
	}
	defer func() { _ = f.Close() }()
	err = unix.FinitModule(int(f.Fd()), "", 0) //nolint:gosec // descriptors are small
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return step("load kernel module "+filepath.Base(file), err)
	}
	return nil
}

// startProcessors brings up the processors that the kernel left out at boot
// (vm's kernel arguments under TCG say why). One that does not come up is not
// worth losing the guest for.
func startProcessors(sys string) error {
	files, err := filepath.Glob(filepath.Join(sys, "devices/system/cpu/cpu[0-9]*/online"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && string(bytes.TrimSpace(b)) == "0" {
			err = os.WriteFile(f, []byte("1"), 0)
		}
		if err != nil {
			errs = append(errs, step("start a processor", err))
		}
	}
	return errors.Join(errs...)
}

// mountRoot mounts the squashfs read-only with a memory-backed layer over it
// and makes it the root directory.
func mountRoot() error {
	if err := waitFor(rootDisk, diskTimeout); err != nil {
		return fmt.Errorf("the root disk did not appear (is root.squashfs the first virtio-blk device?): %w", err)
	}
	for _, d := range []string{"/lower", "/rw", newRoot} {
		if err := os.MkdirAll(d, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
	}
	if err := unix.Mount(rootDisk, "/lower", "squashfs", unix.MS_RDONLY, ""); err != nil {
		return step("mount the root image (corrupt? rebuild with vft image build --force)", err)
	}
	// The layer holds staged files and results: most of the memory may be used.
	if err := unix.Mount("tmpfs", "/rw", "tmpfs", 0, "size=75%,mode=0755"); err != nil {
		return step("mount the writable layer", err)
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
	}
	if err := unix.Mount("overlay", newRoot, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work"); err != nil {
		return step("mount the overlay", err)
	}
	return nil
}

// switchRoot moves the mounts over, makes this program known as the remote
// start command, and enters the new root.
func switchRoot() error {
	lib := newRoot + "/usr/lib/vft"
	if err := os.MkdirAll(lib, 0o755); err != nil { //nolint:gosec // directories of a system are for all
		return err
	}
	// Program and libraries stay in the initramfs, which is memory already: a
	// bind mount costs nothing, a copy would be held twice.
	libraries, err := filepath.Glob("/lib/*")
	if err != nil {
		return err
	}
	for _, path := range append(libraries, Program) {
		target := filepath.Join(lib, filepath.Base(path))
		if err := os.WriteFile(target, nil, 0o755); err != nil { //nolint:gosec // programs and libraries are for all
			return err
		}
		if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
			return step("bind "+path, err)
		}
	}
	if err := os.Symlink("vft-guest", filepath.Join(lib, "rsh")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := os.MkdirAll(newRoot+d, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
		if err := unix.Mount(d, newRoot+d, "", unix.MS_MOVE, ""); err != nil {
			return step("move "+d, err)
		}
	}
	if err := os.RemoveAll("/modules"); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return step("enter the root", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return step("move the root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return step("enter the root", err)
	}
	return step("enter the root", unix.Chdir("/"))
}

// mountLate mounts what programs expect.
func mountLate() error {
	for _, m := range []struct{ what, where, data string }{
		{"devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "mode=1777,size=75%"},
		{"tmpfs", "/run", "mode=0755,size=20%"},
		{"tmpfs", "/tmp", "mode=1777,size=75%"},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil { //nolint:gosec // directories of a system are for all
			return err
		}
		if err := unix.Mount(m.what, m.where, m.what, unix.MS_NOSUID, m.data); err != nil {
			return step("mount "+m.where, err)
		}
	}
	for link, to := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// The agent comes before any program when memory runs out.
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0o600)
}

func waitFor(path string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// FindPort returns the device of the virtio-serial port with the given name,
// waiting for it up to limit.
func FindPort(name string, limit time.Duration) (string, error) {
	deadline := time.Now().Add(limit)
	for {
		ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, p := range ports {
			b, err := os.ReadFile(p)
			if err == nil && strings.TrimSpace(string(b)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(p)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no virtio-serial port %q appeared within %s", name, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
