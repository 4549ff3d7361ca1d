package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	pkg, version string
	release      string
	image        string
	modules      string
}

// fetchKernel downloads and unpacks the kernel package below dir.
func fetchKernel(ctx context.Context, r Recipe, dir string) (kernel, error) {
	dir = filepath.Join(dir, "kernel")
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // holds no secret
		return kernel{}, err
	}
	pkg, err := resolveKernel(ctx, r.Kernel)
	if err != nil {
		return kernel{}, err
	}
	if _, err := run(ctx, dir, "apt-get", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return kernel{}, fmt.Errorf("download the kernel (apt-get update may help): %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("download the kernel %s: got %d files, want 1", pkg, len(debs))
	}
	if _, err := run(ctx, dir, "dpkg-deb", "-x", debs[0], "x"); err != nil {
		return kernel{}, err
	}
	version, err := run(ctx, dir, "dpkg-deb", "-f", debs[0], "Version")
	if err != nil {
		return kernel{}, err
	}
	images, _ := filepath.Glob(filepath.Join(dir, "x/boot/vmlinuz-*"))
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("package %s has %d kernels, want 1", pkg, len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	modules := filepath.Join(dir, "x/lib/modules", release)
	if _, err := os.Stat(modules); err != nil {
		modules = filepath.Join(dir, "x/usr/lib/modules", release)
	}
	return kernel{
		pkg: pkg, version: strings.TrimSpace(version), release: release, image: images[0], modules: modules,
	}, nil
}

// resolveKernel follows a meta package to the package with the kernel.
func resolveKernel(ctx context.Context, pkg string) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances", pkg)
	if err != nil {
		return "", fmt.Errorf("find the kernel package: %w", err)
	}
	return kernelOf(pkg, out), nil
}

// kernelOf reads apt-cache's answer.
func kernelOf(pkg, depends string) string {
	for line := range strings.Lines(depends) {
		if d, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(d, "linux-image-") {
			return d
		}
	}
	return pkg
}

// copyModules copies the wanted modules and what they depend on to dir and
// returns their file names in the order of loading.
func copyModules(tree string, wanted []string, dir string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(strings.TrimSuffix(d.Name(), ".ko"))] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("list the kernel's built-in modules: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		name := moduleName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))
		if _, ok := files[name]; !ok {
			files[name] = ""
		}
	}
	order, err := loadOrder(wanted, files, moduleDepends)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // holds no secret
		return nil, err
	}
	var names []string
	for _, file := range order {
		names = append(names, filepath.Base(file))
		if err := linkOrCopy(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// moduleName returns the kernel's spelling of a module's name.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// loadOrder returns the files of the wanted modules, dependencies first. An
// empty file name stands for what is built in.
func loadOrder(wanted []string, files map[string]string, depends func(string) ([]string, error)) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var add func(name, by string) error
	add = func(name, by string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s, which %s needs", name, by)
		}
		if file == "" {
			return nil
		}
		deps, err := depends(file)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := add(d, name); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, w := range wanted {
		if err := add(w, "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads the depends field of a module's .modinfo section.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", filepath.Base(file), err)
	}
	defer func() { _ = f.Close() }()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("kernel module %s has no .modinfo", filepath.Base(file))
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", filepath.Base(file), err)
	}
	for field := range bytes.SplitSeq(b, []byte{0}) {
		if v, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(v) > 0 {
			return strings.Split(string(v), ","), nil
		}
	}
	return nil, nil
}

// run runs a tool and returns what it printed; its messages become part of the
// error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.Clone(os.Environ()), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("%s: %w", name, err), tail(stderr.String()))
	}
	return stdout.String(), nil
}

// tail returns the last lines of a tool's messages as an error.
func tail(s string) error {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return errors.New(strings.Join(lines[max(0, len(lines)-8):], "\n"))
}
