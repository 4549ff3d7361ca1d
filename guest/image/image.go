// Package image builds and opens the image that guests boot from: a kernel, an
// initial file system holding the agent, and a read-only root file system with
// the MPI run-times. docs/GUEST.md specifies the format.
package image

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"
)

// FormatVersion is the version of the directory's layout and of image.json.
const FormatVersion = 1

// Names of the files in an image's directory.
const (
	KernelName = "vmlinuz"
	InitrdName = "initrd.img"
	RootName   = "root.squashfs"
	infoName   = "image.json"
)

// ErrNotFound says that a directory holds no image.
var ErrNotFound = errors.New("no guest image here")

// ErrCorrupt says that an image differs from what was built.
var ErrCorrupt = errors.New("the guest image is corrupt")

// Info is the content of image.json.
type Info struct {
	FormatVersion int    `json:"format_version"`
	RecipeHash    string `json:"recipe_hash"`
	Architecture  string `json:"architecture"`
	// Kernel is the release name of the kernel.
	Kernel string `json:"kernel"`
	// Files holds size and BLAKE3 of each file of the image.
	Files map[string]FileInfo `json:"files"`
	// Packages maps the packages in the root to their versions.
	Packages map[string]string `json:"packages"`
	// Libraries maps the path of each shared library of the root to its BLAKE3.
	// A symbolic link has the hash of what it leads to.
	Libraries map[string]string `json:"libraries"`
	// Programs maps the path of each executable of the root to its BLAKE3.
	Programs map[string]string `json:"programs"`
}

// FileInfo identifies a file's content.
type FileInfo struct {
	Size   int64  `json:"size"`
	BLAKE3 string `json:"blake3"`
}

// Image is a complete image in a directory.
type Image struct {
	// Dir holds the files.
	Dir  string
	Info Info
}

// Kernel returns the path of the kernel, for QEMU's -kernel.
func (i Image) Kernel() string { return filepath.Join(i.Dir, KernelName) }

// Initrd returns the path of the initial file system, for QEMU's -initrd.
func (i Image) Initrd() string { return filepath.Join(i.Dir, InitrdName) }

// Root returns the path of the root file system: a raw disk that must be the
// guest's first virtio-blk device and is never written.
func (i Image) Root() string { return filepath.Join(i.Dir, RootName) }

// Open reads an image's description and checks that its files are there with
// the right sizes. Verify checks their contents.
func Open(dir string) (Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, infoName))
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("%s: %w; build one with: vft image build", dir, ErrNotFound)
	}
	if err != nil {
		return Image{}, fmt.Errorf("open the guest image: %w", err)
	}
	img := Image{Dir: dir}
	if err := json.Unmarshal(b, &img.Info); err != nil {
		return Image{}, corrupt(dir, fmt.Errorf("%s: %w", infoName, err))
	}
	if img.Info.FormatVersion != FormatVersion {
		return Image{}, fmt.Errorf("guest image %s has format %d, this program reads %d; rebuild it with: vft image build --force",
			dir, img.Info.FormatVersion, FormatVersion)
	}
	for _, name := range []string{KernelName, InitrdName, RootName} {
		want, ok := img.Info.Files[name]
		if !ok {
			return Image{}, corrupt(dir, fmt.Errorf("%s does not list %s", infoName, name))
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return Image{}, corrupt(dir, err)
		}
		if fi.Size() != want.Size {
			return Image{}, corrupt(dir, fmt.Errorf("%s has %d bytes, want %d", name, fi.Size(), want.Size))
		}
	}
	return img, nil
}

// Verify reads every file of the image and compares it with its hash. The
// error wraps [ErrCorrupt] when one differs.
func Verify(img Image) error {
	for name, want := range img.Info.Files {
		got, err := hashFile(filepath.Join(img.Dir, name))
		if err != nil {
			return corrupt(img.Dir, err)
		}
		if got != want {
			return corrupt(img.Dir, fmt.Errorf("%s has BLAKE3 %s, want %s", name, got.BLAKE3, want.BLAKE3))
		}
	}
	return nil
}

func corrupt(dir string, err error) error {
	return fmt.Errorf("%w (%s): %w; rebuild it with: vft image build --force", ErrCorrupt, dir, err)
}

func hashFile(path string) (FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return FileInfo{}, err
	}
	defer func() { _ = f.Close() }()
	h := blake3.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return FileInfo{}, fmt.Errorf("hash %s: %w", path, err)
	}
	return FileInfo{Size: n, BLAKE3: hex.EncodeToString(h.Sum(nil))}, nil
}
