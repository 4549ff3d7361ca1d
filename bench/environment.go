package bench

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/bench/campaign"
)

// Environment finds out where runs take place.
func Environment(ctx context.Context, bin string) (campaign.Environment, error) {
	e := campaign.Environment{At: time.Now(), Versions: map[string]string{}}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return e, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	e.Kernel = unix.ByteSliceToString(un.Sysname[:]) + " " + unix.ByteSliceToString(un.Release[:])
	e.Machine = fmt.Sprintf("%d × %s", runtime.NumCPU(), valueIn("/proc/cpuinfo", "model name"))
	var kib float64
	if _, err := fmt.Sscan(valueIn("/proc/meminfo", "MemTotal"), &kib); err == nil {
		e.Machine += fmt.Sprintf(", %.0f GiB", kib/(1<<20))
	}
	for name, argv := range map[string][]string{
		"vft":      {filepath.Join(bin, "vft"), "--version"},
		"QEMU":     {"qemu-system-x86_64", "--version"},
		"Open MPI": {"mpirun.openmpi", "--version"},
		"MPICH":    {"mpirun.mpich", "--version"},
		"compiler": {"gcc", "--version"},
	} {
		// What is not there is not used either, or the run will say so.
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output(); err == nil {
			e.Versions[name] = versionLine(string(out))
		}
	}
	// Builds of the same number differ; runs of different ones are not compared.
	for _, name := range []string{"vft", "mpirun-vft"} {
		sum, err := digest(filepath.Join(bin, name))
		if err != nil {
			return e, fmt.Errorf("reading %s: %w", name, err)
		}
		e.Versions[name] = strings.TrimSpace(e.Versions[name] + " sha256:" + sum[:12])
	}
	return e, ctx.Err()
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// versionLine is the line of a program's --version that says it.
func versionLine(out string) string {
	for line := range strings.Lines(out) {
		line = strings.Join(strings.Fields(line), " ")
		if strings.ContainsAny(line, "0123456789") {
			return line
		}
	}
	return strings.TrimSpace(out)
}

// valueIn finds the value of a key in a file of lines "key: value".
func valueIn(path, key string) string {
	f, err := os.Open(path) //nolint:gosec // of /proc
	if err != nil {
		return "unknown"
	}
	defer f.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
