// Package images finds guest images in a node's cache: by id, or the current
// one, which is the image built last and used where a job names none.
package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mpirun-vft/vft/guest/image"
)

// current is the name of the link to the current image.
const current = "current"

// DefaultCache is the cache used where none is named: VFT_IMAGES, else a
// directory in the user's cache.
func DefaultCache() string {
	if dir := os.Getenv("VFT_IMAGES"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "vft", "images")
}

// Open opens image id of the cache, "" for the current one.
func Open(cache, id string) (image.Image, error) {
	if id == "" {
		target, err := os.Readlink(filepath.Join(cache, current))
		if errors.Is(err, os.ErrNotExist) {
			return image.Image{}, fmt.Errorf("%s: %w; build one with: vft image build", cache, image.ErrNotFound)
		}
		if err != nil {
			return image.Image{}, fmt.Errorf("finding the current image: %w", err)
		}
		id = target
	}
	if strings.ContainsAny(id, "/") || strings.HasPrefix(id, ".") {
		return image.Image{}, fmt.Errorf("%q is no image id; `vft image ls` lists them", id)
	}
	return image.Open(filepath.Join(cache, id))
}

// SetCurrent makes id the current image.
func SetCurrent(cache, id string) error {
	tmp := filepath.Join(cache, fmt.Sprintf(".%s.%d", current, os.Getpid()))
	if err := os.Symlink(id, tmp); err != nil {
		return fmt.Errorf("naming the current image: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(cache, current)); err != nil {
		return fmt.Errorf("naming the current image: %w", err)
	}
	return nil
}

// Entry is an image in a listing.
type Entry struct {
	ID       string `json:"id"`
	Kernel   string `json:"kernel"`
	Packages int    `json:"packages"`
	Bytes    int64  `json:"bytes"`
	Current  bool   `json:"current"`
}

// List returns the complete images of a cache.
func List(cache string) ([]Entry, error) {
	entries, err := os.ReadDir(cache)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	now, _ := os.Readlink(filepath.Join(cache, current))
	var list []Entry
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		img, err := image.Open(filepath.Join(cache, e.Name()))
		if err != nil {
			continue // half-built, or a shared base
		}
		entry := Entry{ID: e.Name(), Kernel: img.Info.Kernel, Packages: len(img.Info.Packages), Current: e.Name() == now}
		for _, f := range img.Info.Files {
			entry.Bytes += f.Size
		}
		list = append(list, entry)
	}
	return list, nil
}
