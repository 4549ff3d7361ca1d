package bench

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestInterruptedCommandClearsUp: a command of vft that is under way when the
// measurement is interrupted is asked to end, not killed: `vft lab up` takes
// away the nodes that it has started.
func TestInterruptedCommandClearsUp(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\ntrap 'echo yes > cleared; exit 1' INT\ncd " + dir + "\n: > begun\nwhile :; do sleep 0.05; done\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vft"), []byte(script), 0o700)) //nolint:gosec // it is run
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&cluster{bin: dir, dir: dir}).up(ctx, 1) }()
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "begun"))
		return err == nil
	}, 10*time.Second, time.Millisecond)
	cancel()
	require.Error(t, <-ended)
	cleared, err := os.ReadFile(filepath.Join(dir, "cleared"))
	require.NoError(t, err)
	assert.Equal(t, "yes\n", string(cleared))
}
