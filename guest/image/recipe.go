package image

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/zeebo/blake3"
)

// Recipe says what an image is made of. Equal recipes have equal hashes and
// share what is cached.
type Recipe struct {
	// Suite is the Debian release by code name; empty means the host's.
	Suite string `json:"suite"`
	// Kernel is the Debian package of the kernel; a meta package is resolved.
	Kernel string `json:"kernel"`
	// Modules are the kernel modules that the initial file system loads, besides
	// those that they depend on. What is built into the kernel is left out.
	Modules []string `json:"modules"`
	// Packages are put into the root with what they depend on.
	Packages []string `json:"packages"`
	// Remove lists path prefixes that are left out of the root.
	Remove []string `json:"remove"`
	// Links maps paths to the targets of symbolic links that packages would make
	// when they are configured.
	Links map[string]string `json:"links"`
	// Applets become links to busybox where no package has such a program.
	Applets []string `json:"applets"`
	// Compression of the root: a compressor of squashfs-tools.
	Compression string `json:"compression"`
}

// DefaultRecipe has both MPI implementations, their benchmarks, the compilers'
// run-time libraries, and enough tools for scripts.
func DefaultRecipe() Recipe {
	const lib = "usr/lib/x86_64-linux-gnu/"
	return Recipe{
		Kernel:  "linux-image-cloud-amd64",
		Modules: []string{"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "squashfs", "overlay"},
		Packages: []string{
			"base-files", "bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "hostname", "hpcc", "libc-bin",
			"libgfortran5", "libgomp1", "libquadmath0", "libstdc++6", "mpich", "netpipe-mpich2",
			"netpipe-openmpi", "openmpi-bin", "procps", "sed",
		},
		Remove: []string{
			"boot", "dev", "proc", "sys", "run",
			"usr/share/bug", "usr/share/doc", "usr/share/i18n", "usr/share/info", "usr/share/lintian",
			"usr/share/locale", "usr/share/man", "usr/share/X11", "usr/share/zoneinfo",
			"usr/include", "usr/src", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/log",
			// Topology plugins for displays and accelerators: every MPI process would
			// load them and find nothing.
			lib + "hwloc", lib + "libicu", lib + "libX", lib + "libxcb", lib + "libOpenCL", lib + "libxml2",
			lib + "gconv", "etc/systemd", "etc/cron", "usr/lib/systemd",
		},
		Links: map[string]string{
			lib + "libblas.so.3": "blas/libblas.so.3",
			"usr/bin/mpirun":     "mpirun.openmpi",
			"usr/bin/mpiexec":    "mpiexec.openmpi",
			"usr/bin/sh":         "dash",
			"usr/bin/awk":        "mawk",
		},
		Applets: []string{
			"ash", "clear", "gunzip", "gzip", "ifconfig", "ip", "less", "nc", "netstat", "ping", "tar", "time",
			"traceroute", "vi", "wget", "which", "xxd",
		},
		Compression: "lz4",
	}
}

// Hash identifies the recipe for this architecture and format.
func (r Recipe) Hash() (string, error) {
	r, err := r.resolve()
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(struct {
		Format       int
		Architecture string
		Recipe       Recipe
	}{FormatVersion, runtime.GOARCH, r})
	if err != nil {
		return "", fmt.Errorf("hash the image recipe: %w", err)
	}
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

// resolve fills in what depends on the host.
func (r Recipe) resolve() (Recipe, error) {
	if r.Suite != "" {
		return r, nil
	}
	suite, err := osRelease("/etc/os-release", "VERSION_CODENAME")
	if err != nil {
		return r, fmt.Errorf("find the host's Debian release: %w", err)
	}
	r.Suite = suite
	return r, nil
}

func osRelease(file, key string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), key+"="); ok && v != "" {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", fmt.Errorf("%s has no %s: the guest image is built from Debian packages", file, key)
}
