//go:build e2e

package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const limit = 90 * time.Second

// guestFiles is the kernel and initramfs of the tests, made once.
var guestFiles = sync.OnceValues(makeGuest) //nolint:gochecknoglobals // test fixture

type bootFiles struct{ kernel, initrd string }

func TestMain(m *testing.M) {
	if dir := os.Getenv("VFT_TEST_OWNER"); dir != "" {
		os.Exit(ownGuest(dir))
	}
	if dir := os.Getenv("VFT_TEST_RESTORER"); dir != "" {
		os.Exit(restoreHalf(dir))
	}
	code := m.Run()
	if fixtureDir != "" {
		_ = os.RemoveAll(fixtureDir)
	}
	os.Exit(code)
}

var fixtureDir string //nolint:gochecknoglobals // test fixture

// ownGuest is the life of a process that owns a guest until it is killed.
func ownGuest(dir string) int {
	spec := Spec{Name: "owned", Dir: dir, MemoryMiB: 16, CPUs: 1, KillWithParent: os.Getenv("VFT_TEST_DIE") != ""}
	m, err := Start(context.Background(), spec, Options{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("pid", m.PID())
	<-m.Done()
	return 0
}

const installHint = "apt-get install qemu-system-x86 linux-image-cloud-amd64, or set VFT_TEST_KERNEL_DIR to a directory with boot/vmlinuz-* and lib/modules"

// kernelRoot finds a directory with boot/ and lib/modules of Debian's cloud
// kernel: named by the environment, installed, or unpacked from the package.
func kernelRoot() (string, error) {
	for _, dir := range []string{os.Getenv("VFT_TEST_KERNEL_DIR"), "/"} {
		if dir == "" {
			continue
		}
		if found, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*-cloud-amd64")); len(found) > 0 {
			return dir, nil
		}
	}
	dir := filepath.Join(fixtureDir, "kernel")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	script := `set -e
p=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *//p' | head -1)
apt-get -qq download "$p"
dpkg-deb -x "$p"_*.deb .`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("no guest kernel (%s): %w: %s", installHint, err, out)
	}
	return dir, nil
}

func makeGuest() (bootFiles, error) {
	var err error
	if fixtureDir, err = os.MkdirTemp("", "vftg"); err != nil {
		return bootFiles{}, err
	}
	root, err := kernelRoot()
	if err != nil {
		return bootFiles{}, err
	}
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*-cloud-amd64"))
	if len(kernels) == 0 {
		return bootFiles{}, errors.New("no guest kernel: " + installHint)
	}
	kernel := kernels[len(kernels)-1]
	release := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	prog := filepath.Join(fixtureDir, "init")
	cmd := exec.Command("go", "build", "-o", prog, "./internal/testinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return bootFiles{}, fmt.Errorf("build testinit: %w: %s", err, out)
	}
	b, err := os.ReadFile(prog)
	if err != nil {
		return bootFiles{}, err
	}
	files := []cpioFile{
		{name: "dev", mode: 0o040755},
		{name: "dev/console", mode: 0o020600, major: 5, minor: 1},
		{name: "init", mode: 0o100755, data: b},
		{name: "modules", mode: 0o040755},
	}
	for i, mod := range []string{
		"virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev",
		"virtio/virtio_pci_modern_dev", "virtio/virtio_pci", "char/virtio_console",
	} {
		b, err := os.ReadFile(filepath.Join(root, "lib/modules", release, "kernel/drivers", mod+".ko"))
		if err != nil {
			return bootFiles{}, fmt.Errorf("%w (%s)", err, installHint)
		}
		files = append(files, cpioFile{name: fmt.Sprintf("modules/%02d-%s.ko", i, filepath.Base(mod)), mode: 0o100644, data: b})
	}
	f := bootFiles{kernel: kernel, initrd: filepath.Join(fixtureDir, "initrd")}
	return f, os.WriteFile(f.initrd, cpioArchive(files), 0o600)
}

func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func needGuest(t *testing.T) bootFiles {
	t.Helper()
	if _, err := exec.LookPath(DefaultBinary); err != nil {
		t.Fatalf("%v: %s", err, installHint)
	}
	f, err := guestFiles()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// testSpec is a guest that dirties dirty MiB again and again.
func testSpec(t *testing.T, mib, dirty int, pace time.Duration) Spec {
	t.Helper()
	f := needGuest(t)
	dir, err := os.MkdirTemp("", "vft") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Spec{
		Name: "t," + filepath.Base(dir), Dir: dir, MemoryMiB: mib, CPUs: 2, Kernel: f.kernel, Initrd: f.initrd,
		Machine: os.Getenv("VFT_TEST_MACHINE"), Append: fmt.Sprintf("console=ttyS0 quiet panic=-1 reboot=t vft.dirty=%d vft.pace=%d", dirty, pace.Microseconds()),
		MAC: "02:76:66:74:00:01", MTU: 9000,
		Disks: []Disk{{Path: f.initrd, ReadOnly: true, Serial: "root"}},
	}
}

func startGuest(t *testing.T, spec Spec) (*Machine, *agent) {
	t.Helper()
	ctx := testContext(t)
	spec.KillWithParent = true
	m, err := Start(ctx, spec, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	a := dialAgent(t, m)
	t.Cleanup(func() {
		if t.Failed() {
			var regs string
			_ = m.QMP().Execute(context.WithoutCancel(ctx), "human-monitor-command", map[string]any{"command-line": "info registers -a"}, &regs)
			t.Logf("registers:\n%s", regs)
			t.Logf("serial console:\n%s", tail(filepath.Join(spec.Dir, fileSerial), 8<<10))
		}
	})
	a.get(t)
	return m, a
}

// agent asks the guest for its counter.
type agent struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialAgent(t *testing.T, m *Machine) *agent {
	t.Helper()
	conn, err := net.Dial("unix", m.Spec().AgentSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &agent{conn: conn, r: bufio.NewReader(conn)}
}

// get returns the counter and its physical address after the guest found its
// memory consistent.
func (a *agent) get(t *testing.T) (n, phys uint64) {
	t.Helper()
	_ = a.conn.SetDeadline(time.Now().Add(limit))
	if _, err := a.conn.Write([]byte("get\n")); err != nil {
		t.Fatal(err)
	}
	line, err := a.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var verdict string
	if _, err := fmt.Sscan(line, &n, &phys, &verdict); err != nil || verdict != "ok" {
		t.Fatalf("guest answers %q (%v)", line, err)
	}
	return n, phys
}

// peek reads a word of guest memory from outside.
func peek(ctx context.Context, m *Machine, phys uint64) (uint64, error) {
	var out string
	err := m.QMP().Execute(ctx, "human-monitor-command",
		map[string]any{"command-line": fmt.Sprintf("xp /1gx %#x", phys)}, &out)
	if err != nil {
		return 0, err
	}
	_, val, _ := strings.Cut(out, ":")
	var n uint64
	_, err = fmt.Sscanf(strings.TrimSpace(val), "0x%x", &n)
	return n, err
}

// memory is a hash of all guest RAM below 2 GiB.
func memory(ctx context.Context, m *Machine) ([32]byte, error) {
	path := filepath.Join(m.Spec().Dir, "ram")
	defer func() { _ = os.Remove(path) }()
	err := m.QMP().Execute(ctx, "pmemsave", map[string]any{"val": 0, "size": m.Spec().MemoryMiB << 20, "filename": path}, nil)
	if err != nil {
		return [32]byte{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return [32]byte{}, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h.Sum(nil)), nil
}

// memSink keeps a snapshot in memory.
type memSink struct {
	bytes.Buffer
	closed int
	cause  error
}

func (s *memSink) Close() error                     { s.closed++; return nil }
func (s *memSink) CloseWithError(cause error) error { s.closed++; s.cause = cause; return nil }
