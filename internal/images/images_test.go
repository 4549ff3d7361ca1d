package images

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/guest/image"
)

// add puts an image of a few bytes into the cache.
func add(t *testing.T, cache, id string) {
	t.Helper()
	dir := filepath.Join(cache, id)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	info := image.Info{
		FormatVersion: image.FormatVersion, Kernel: "6.1-" + id, Files: map[string]image.FileInfo{},
		Packages: map[string]string{"libc6": "2", "openmpi-bin": "4"},
	}
	for i, name := range []string{image.KernelName, image.InitrdName, image.RootName} {
		data := make([]byte, 10*(i+1))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		info.Files[name] = image.FileInfo{Size: int64(len(data))}
	}
	raw, err := json.Marshal(info)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "image.json"), raw, 0o600))
}

func TestCurrentAndNamed(t *testing.T) {
	cache := t.TempDir()
	_, err := Open(cache, "")
	require.ErrorIs(t, err, image.ErrNotFound)
	assert.ErrorContains(t, err, "vft image build", "the message says what to do")

	add(t, cache, "aa11")
	add(t, cache, "bb22")
	_, err = Open(cache, "")
	require.ErrorIs(t, err, image.ErrNotFound, "none is current yet")
	for _, id := range []string{"aa11", "bb22", "aa11"} { // it can be replaced
		require.NoError(t, SetCurrent(cache, id))
		img, err := Open(cache, "")
		require.NoError(t, err)
		assert.Equal(t, filepath.Join(cache, id), img.Dir)
	}
	img, err := Open(cache, "bb22")
	require.NoError(t, err)
	assert.Equal(t, "6.1-bb22", img.Info.Kernel)

	require.NoError(t, os.RemoveAll(filepath.Join(cache, "aa11")))
	_, err = Open(cache, "")
	assert.ErrorIs(t, err, image.ErrNotFound, "the link leads nowhere")
}

func TestIDsThatAreNone(t *testing.T) {
	outside := t.TempDir()
	cache := filepath.Join(outside, "cache")
	add(t, outside, "secret")
	add(t, cache, "aa11")
	for _, id := range []string{"..", ".", "../secret", "aa11/../../secret", "/etc", ".hidden"} {
		_, err := Open(cache, id)
		assert.ErrorContains(t, err, "is no image id", id)
	}
	// Not even the link leads out of the cache.
	require.NoError(t, SetCurrent(cache, "../secret"))
	_, err := Open(cache, "")
	assert.ErrorContains(t, err, "is no image id")
	_, err = Open(cache, "ffff")
	assert.ErrorIs(t, err, image.ErrNotFound)
}

func TestList(t *testing.T) {
	cache := t.TempDir()
	list, err := List(filepath.Join(cache, "nowhere"))
	require.NoError(t, err)
	assert.Empty(t, list)

	add(t, cache, "aa11")
	add(t, cache, "bb22")
	add(t, cache, "half")
	require.NoError(t, os.Remove(filepath.Join(cache, "half", image.RootName)))
	require.NoError(t, os.MkdirAll(filepath.Join(cache, "base"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(cache, "file"), nil, 0o600))
	require.NoError(t, SetCurrent(cache, "bb22"))
	list, err = List(cache)
	require.NoError(t, err)
	assert.Equal(t, []Entry{
		{ID: "aa11", Kernel: "6.1-aa11", Packages: 2, Bytes: 60},
		{ID: "bb22", Kernel: "6.1-bb22", Packages: 2, Bytes: 60, Current: true},
	}, list)
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Len(t, entries, 6, "SetCurrent left something behind")
}

func TestDefaultCache(t *testing.T) {
	t.Setenv("VFT_IMAGES", "/srv/images")
	assert.Equal(t, "/srv/images", DefaultCache())
	t.Setenv("VFT_IMAGES", "")
	t.Setenv("XDG_CACHE_HOME", "/home/a/.cache")
	assert.Equal(t, "/home/a/.cache/vft/images", DefaultCache())
}
