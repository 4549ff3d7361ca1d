package image

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// BuildOptions say where and how to build.
type BuildOptions struct {
	// CacheDir holds images and what they share. It is created when missing.
	CacheDir string
	// Recipe of the root and the kernel.
	Recipe Recipe
	// Agent is the path of the vft-guest program, statically linked.
	Agent string
	// Libraries are paths of shared libraries that are preloaded into programs.
	// The guest has them in /usr/lib/vft.
	Libraries []string
	// Force rebuilds even what is in the cache.
	Force bool
	// Log gets the steps; nil means none.
	Log *slog.Logger
}

// baseInfo describes the part of an image that does not depend on the agent.
type baseInfo struct {
	FormatVersion int                 `json:"format_version"`
	Kernel        string              `json:"kernel"`
	Files         map[string]FileInfo `json:"files"`
	Modules       []string            `json:"modules"`
	Packages      map[string]string   `json:"packages"`
	Libraries     map[string]string   `json:"libraries"`
	Programs      map[string]string   `json:"programs"`
}

const (
	baseInfoName = "base.json"
	modulesDir   = "modules"
)

// Build returns the image for the recipe and the agent, from the cache or
// newly built. Builds of several processes in one cache wait for each other.
func Build(ctx context.Context, o BuildOptions) (Image, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if runtime.GOARCH != "amd64" {
		return Image{}, fmt.Errorf("build a guest image: architecture %s is not supported, only amd64", runtime.GOARCH)
	}
	recipe, err := o.Recipe.resolve()
	if err != nil {
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	o.Recipe = recipe
	hash, err := recipe.Hash()
	if err != nil {
		return Image{}, err
	}
	additions, err := hashAdditions(o)
	if err != nil {
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	if err := checkStatic(o.Agent); err != nil {
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil { //nolint:gosec // an image holds no secret
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(o.CacheDir, "lock"))
	if err != nil {
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	defer unlock()

	dir := filepath.Join(o.CacheDir, "image-"+hash[:16]+"-"+additions[:16])
	if !o.Force {
		if img, err := Open(dir); err == nil {
			return img, nil
		} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
			return Image{}, err
		}
	}
	base := filepath.Join(o.CacheDir, "base-"+hash[:16])
	info, err := readBase(base)
	if err != nil || o.Force {
		if err := buildBase(ctx, o, base); err != nil {
			return Image{}, fmt.Errorf("build a guest image: %w", err)
		}
		if info, err = readBase(base); err != nil {
			return Image{}, fmt.Errorf("build a guest image: %w", err)
		}
	}
	err = atomically(dir, func(tmp string) error { return assemble(o, hash, base, info, tmp) })
	if err != nil {
		return Image{}, fmt.Errorf("build a guest image: %w", err)
	}
	return Open(dir)
}

// hashAdditions names the agent and the libraries by their content.
func hashAdditions(o BuildOptions) (string, error) {
	h := blake3.New()
	for i, path := range append([]string{o.Agent}, o.Libraries...) {
		f, err := hashFile(path)
		if err != nil {
			what := "the agent's program vft-guest"
			if i > 0 {
				what = "a library for its programs"
			}
			return "", fmt.Errorf("%s: %w: run `make build`", what, err)
		}
		_, _ = fmt.Fprintf(h, "%s %s\n", filepath.Base(path), f.BLAKE3) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// assemble makes the image's directory from the base, the agent and the libraries.
func assemble(o BuildOptions, hash, base string, info baseInfo, dir string) error {
	img := Info{
		FormatVersion: FormatVersion, RecipeHash: hash, Architecture: runtime.GOARCH, Kernel: info.Kernel,
		Packages: info.Packages, Libraries: info.Libraries, Programs: info.Programs,
		Files: map[string]FileInfo{},
	}
	for _, name := range []string{KernelName, RootName} {
		if err := linkOrCopy(filepath.Join(base, name), filepath.Join(dir, name)); err != nil {
			return err
		}
		img.Files[name] = info.Files[name]
	}
	initrd := filepath.Join(dir, InitrdName)
	if err := writeInitrd(initrd, o.Agent, o.Libraries, filepath.Join(base, modulesDir), info.Modules); err != nil {
		return fmt.Errorf("write the initial file system: %w", err)
	}
	fi, err := hashFile(initrd)
	if err != nil {
		return err
	}
	img.Files[InitrdName] = fi
	return writeJSON(filepath.Join(dir, infoName), img)
}

// buildBase makes kernel, modules and root.
func buildBase(ctx context.Context, o BuildOptions, dir string) error {
	if err := checkTools(exec.LookPath); err != nil {
		return err
	}
	return atomically(dir, func(tmp string) error {
		info := baseInfo{FormatVersion: FormatVersion, Files: map[string]FileInfo{}}
		work, err := os.MkdirTemp(filepath.Dir(dir), ".work-*")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
		o.Log.Info("fetching the kernel", "package", o.Recipe.Kernel)
		k, err := fetchKernel(ctx, o.Recipe, work)
		if err != nil {
			return err
		}
		info.Kernel = k.release
		if err := linkOrCopy(k.image, filepath.Join(tmp, KernelName)); err != nil {
			return err
		}
		if info.Modules, err = copyModules(k.modules, o.Recipe.Modules, filepath.Join(tmp, modulesDir)); err != nil {
			return err
		}
		o.Log.Info("fetching and packing the root", "suite", o.Recipe.Suite, "packages", len(o.Recipe.Packages))
		root, err := buildRoot(ctx, o.Recipe, work, filepath.Join(tmp, RootName))
		if err != nil {
			return err
		}
		info.Packages, info.Libraries, info.Programs = root.packages, root.libraries, root.programs
		info.Packages[k.pkg] = k.version
		for _, name := range []string{KernelName, RootName} {
			if info.Files[name], err = hashFile(filepath.Join(tmp, name)); err != nil {
				return err
			}
		}
		return writeJSON(filepath.Join(tmp, baseInfoName), info)
	})
}

// readBase reads and verifies a cached base.
func readBase(dir string) (baseInfo, error) {
	var info baseInfo
	b, err := os.ReadFile(filepath.Join(dir, baseInfoName))
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, corrupt(dir, err)
	}
	for name, want := range info.Files {
		if got, err := hashFile(filepath.Join(dir, name)); err != nil || got != want {
			return info, corrupt(dir, errors.Join(fmt.Errorf("%s differs", name), err))
		}
	}
	return info, nil
}

// neededTools maps commands to the Debian packages that have them.
var neededTools = map[string]string{ //nolint:gochecknoglobals // a constant table
	"apt-cache": "apt", "apt-get": "apt", "apt-config": "apt", "dpkg-deb": "dpkg",
	"mmdebstrap": "mmdebstrap", "sqfstar": "squashfs-tools",
}

// ErrMissingTools says that the host lacks programs that the build runs.
var ErrMissingTools = errors.New("programs are missing on this host")

func checkTools(look func(string) (string, error)) error {
	var missing, packages []string
	for tool, pkg := range neededTools {
		if _, err := look(tool); err != nil {
			missing = append(missing, tool)
			packages = append(packages, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	slices.Sort(packages)
	return fmt.Errorf("%w: %s; install them with: apt-get install %s", ErrMissingTools,
		strings.Join(missing, ", "), strings.Join(slices.Compact(packages), " "))
}

// lock takes an exclusive lock on a file, waiting as long as ctx allows.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // holds nothing
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() {
			_ = errors.Join(<-got, f.Close())
		}()
		return nil, fmt.Errorf("wait for another build: %w", ctx.Err())
	}
}
