package vm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// probeVersion changes when the probe finds out more or other things.
const probeVersion = 2

type probeCache struct {
	Version int          `json:"version"`
	Key     string       `json:"key"`
	Result  Capabilities `json:"result"`
}

// probeKey is a hash of all that a result depends on: QEMU, the kernel, the
// user, and the boot, since a reboot may change the host kernel, its settings
// and the hypervisor below it.
func probeKey(binary, kernel string) (string, error) {
	h := sha256.New()
	st, err := os.Stat(binary)
	if err != nil {
		return "", fmt.Errorf("probe: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprintf(h, "%s\x00%d\x00%d\x00%d\x00%s\x00", binary, st.Size(), st.ModTime().UnixNano(), os.Getuid(), boot)
	if kernel != "" {
		f, err := os.Open(kernel) //nolint:gosec // the configured kernel
		if err != nil {
			return "", fmt.Errorf("probe: guest kernel: %w", err)
		}
		defer func() { _ = f.Close() }()
		if _, err := io.Copy(h, f); err != nil {
			return "", fmt.Errorf("probe: guest kernel: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// loadProbe finds a cached result; a cache that cannot be read is no cache.
func loadProbe(path, key string) (Capabilities, bool) {
	if path == "" {
		return Capabilities{}, false
	}
	b, err := os.ReadFile(path) //nolint:gosec // the configured cache
	if err != nil {
		return Capabilities{}, false
	}
	var c probeCache
	if json.Unmarshal(b, &c) != nil || c.Version != probeVersion || c.Key != key {
		return Capabilities{}, false
	}
	return c.Result, true
}

func saveProbe(path, key string, r Capabilities) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(probeCache{Version: probeVersion, Key: key, Result: r}, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(path, append(b, '\n'), 0o600)
}
