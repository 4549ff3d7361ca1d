package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
)

// packageList is where the list of packages travels in the unfiltered tar.
const packageList = "vft-packages"

// rootInfo describes what is in a root.
type rootInfo struct {
	packages  map[string]string
	libraries map[string]string
	programs  map[string]string
}

// buildRoot makes the squashfs at dest.
func buildRoot(ctx context.Context, r Recipe, work, dest string) (rootInfo, error) {
	sources, err := aptSources("/etc/apt", r.Suite, work)
	if err != nil {
		return rootInfo{}, err
	}
	options, err := aptOptions(ctx)
	if err != nil {
		return rootInfo{}, err
	}
	raw := filepath.Join(work, "root.tar")
	// Packages are unpacked and not configured: their scripts serve an
	// installation that is administered. What they would have made and a guest
	// needs is in the recipe's links and in extraFiles.
	args := []string{
		"--mode=auto", "--variant=extract", "--format=tar", "--quiet",
		"--include=" + strings.Join(r.Packages, ","),
		`--setup-hook=mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib" "$1/usr/lib64"; ln -s usr/bin usr/sbin usr/lib usr/lib64 "$1/"`,
		// The list travels inside the tar: a hook may have no right to write
		// anywhere else.
		`--extract-hook=ls "$1/var/cache/apt/archives" > "$1/` + packageList + `"`,
		`--extract-hook=PATH="$PATH:/usr/sbin:/sbin" ldconfig -r "$1"`,
	}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, r.Suite, raw)
	args = append(args, sources...)
	if _, err := run(ctx, work, "mmdebstrap", args...); err != nil {
		return rootInfo{}, fmt.Errorf("fetch the packages of the root: %w", err)
	}
	var info rootInfo
	if err := pack(ctx, r, raw, dest, &info); err != nil {
		return rootInfo{}, fmt.Errorf("pack the root: %w", err)
	}
	return info, nil
}

// packagesOf reads file names of packages, NAME_VERSION_ARCH.deb.
func packagesOf(list string) map[string]string {
	packages := map[string]string{}
	for line := range strings.Lines(list) {
		part := strings.Split(strings.TrimSpace(line), "_")
		if len(part) == 3 && strings.HasSuffix(part[2], ".deb") {
			packages[part[0]] = strings.NewReplacer("%3a", ":", "%7e", "~").Replace(part[1])
		}
	}
	return packages
}

// pack filters the tar of the root into sqfstar.
func pack(ctx context.Context, r Recipe, raw, dest string, info *rootInfo) error {
	in, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	args := []string{
		"-quiet", "-no-progress", "-no-xattrs", "-mkfs-time", "0", "-all-time", "0",
		"-comp", r.Compression,
	}
	if r.Compression == "lz4" {
		args = append(args, "-Xhc")
	}
	cmd := exec.CommandContext(ctx, "sqfstar", append(args, dest)...)
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages
	// An environment that sets the epoch contradicts -mkfs-time.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "SOURCE_DATE_EPOCH=") })
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("sqfstar: %w", err)
	}
	ferr := filter(r, in, pipe, info)
	cerr := pipe.Close()
	if err := cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("sqfstar: %w", err), tail(messages.String()), ferr)
	}
	return errors.Join(ferr, cerr)
}

// filter copies the root's tar without what the recipe removes and with what
// it adds, and notes libraries and programs.
func filter(r Recipe, in io.Reader, out io.Writer, info *rootInfo) error {
	tr, tw := tar.NewReader(in), tar.NewWriter(out)
	info.packages, info.libraries, info.programs = map[string]string{}, map[string]string{}, map[string]string{}
	links := map[string]string{}
	have := map[string]bool{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := strings.Trim(filepath.Clean("/"+h.Name), "/")
		if name == "" || removed(name, r.Remove) || r.Links[name] != "" {
			continue
		}
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			continue
		}
		if name == packageList {
			b, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			info.packages = packagesOf(string(b))
			continue
		}
		if _, ok := extraFiles(nil)[name]; ok {
			continue
		}
		have[name] = true
		h.Name = name
		h.PAXRecords, h.Xattrs = nil, nil //nolint:staticcheck // Xattrs would be written again
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.Trim(filepath.Clean("/"+h.Linkname), "/")
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		path := "/" + name
		switch h.Typeflag {
		case tar.TypeSymlink:
			links[path] = resolveLink(path, h.Linkname)
		case tar.TypeLink:
			links[path] = "/" + h.Linkname
		case tar.TypeReg:
			sum := blake3.New()
			if _, err := io.Copy(io.MultiWriter(tw, sum), tr); err != nil { //nolint:gosec // packages of a signed archive
				return err
			}
			hash := hex.EncodeToString(sum.Sum(nil))
			if isLibrary(name) {
				info.libraries[path] = hash
			}
			if h.Mode&0o111 != 0 && strings.Contains(name, "bin/") {
				info.programs[path] = hash
			}
		}
	}
	added := maps.Clone(r.Links)
	for _, a := range r.Applets {
		if !have["usr/bin/"+a] && !have["usr/sbin/"+a] {
			added["usr/bin/"+a] = "busybox"
		}
	}
	for _, name := range sortedKeys(added) {
		h := &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: added[name], Mode: 0o777}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		links["/"+name] = resolveLink("/"+name, added[name])
	}
	if err := addFiles(tw, extraFiles(info.packages), have); err != nil {
		return err
	}
	for _, link := range sortedKeys(links) {
		target := link
		for range 8 {
			next, ok := links[target]
			if !ok {
				break
			}
			target = next
		}
		if sum, ok := info.libraries[target]; ok {
			info.libraries[link] = sum
		}
		if sum, ok := info.programs[target]; ok {
			info.programs[link] = sum
		}
	}
	return tw.Close()
}

// removed reports whether name is one of the prefixes or below one; a prefix
// that is the beginning of a library's name counts too.
func removed(name string, prefixes []string) bool {
	for _, p := range prefixes {
		rest, ok := strings.CutPrefix(name, p)
		if ok && (rest == "" || rest[0] == '/' || strings.Contains(filepath.Base(p), "lib") || strings.HasPrefix(p, "etc/cron")) {
			return true
		}
	}
	return false
}

func isLibrary(name string) bool {
	base := filepath.Base(name)
	return strings.HasPrefix(name, "usr/lib") && (strings.HasSuffix(base, ".so") || strings.Contains(base, ".so."))
}

// resolveLink returns the absolute path that a link leads to, with the merged
// directories spelled as they are stored.
func resolveLink(link, target string) string {
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(link), target)
	}
	target = filepath.Clean(target)
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(target, d) {
			return "/usr" + target
		}
	}
	return target
}

// extraFiles are the files that a configured system has and a guest needs.
func extraFiles(packages map[string]string) map[string]string {
	files := map[string]string{ //nolint:gosec // an account table without passwords
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
		"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"etc/fstab":         "",
		"etc/resolv.conf":   "",
		"etc/hostname":      "guest\n",
		"etc/profile":       "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
	}
	var mpi strings.Builder
	for _, m := range [][2]string{{"openmpi", "openmpi-bin"}, {"mpich", "mpich"}} {
		if v, ok := packages[m[1]]; ok {
			v, _, _ = strings.Cut(v, "-")
			mpi.WriteString(m[0] + " " + v + "\n")
		}
	}
	files["usr/lib/vft/mpi"] = mpi.String()
	return files
}

func addFiles(tw *tar.Writer, files map[string]string, have map[string]bool) error {
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "usr/lib/vft", "var/tmp", "var/log", "root", "home"} {
		if have[dir] {
			continue
		}
		mode := int64(0o755)
		if strings.HasSuffix(dir, "tmp") {
			mode = 0o1777
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(files) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, files[name]); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
