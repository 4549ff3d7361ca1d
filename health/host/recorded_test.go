package host

import (
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestARecordedMachine(t *testing.T) {
	root := t.TempDir()
	treetest.Write(t, root, `
-- recorded/smartctl/--json=c_-d_sat_5__dev_sda.out --
output
-- recorded/smartctl/--json=c_-d_sat_5__dev_sda.exit --
64
-- recorded/smartctl/bad.out --
-- recorded/smartctl/bad.exit --
x
-- recorded/usage.json --
{"/": {"total": 100, "free": 25, "used_percent": 75, "inodes_percent": 3}}
-- recorded/clock.json --
{"synchronized": true, "max_error": 0.01, "offset": -0.002}
-- proc/sys/kernel/random/boot_id --
4a2e9d1c-77aa-4f7b-9a55-0f6a3c2d1b00
`)
	h := New(root)
	out, err := h.Run(t.Context(), time.Second, "/usr/sbin/smartctl", "--json=c", "-d", "sat+5", "/dev/sda")
	require.NoError(t, err)
	assert.Equal(t, Output{Stdout: []byte("output\n"), Exit: 64}, out)
	_, err = h.Run(t.Context(), time.Second, "smartctl", "other")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = h.Run(t.Context(), time.Second, "smartctl", "bad")
	assert.ErrorContains(t, err, "recorded exit status")
	_, err = h.Run(t.Context(), time.Second, "true")
	assert.ErrorIs(t, err, ErrNoProgram, "a program of this machine was run for a recorded one")
	assert.True(t, h.Has("smartctl"))
	assert.False(t, h.Has("sh"))

	u, _, err := h.Usage(t.Context(), "/")
	require.NoError(t, err)
	assert.InDelta(t, 75, u.UsedPercent, 0)
	_, _, err = h.Usage(t.Context(), "/other")
	require.ErrorIs(t, err, fs.ErrNotExist)
	c, err := h.Clock()
	require.NoError(t, err)
	assert.Equal(t, Clock{true, 0.01, -0.002}, c)
	assert.Equal(t, "4a2e9d1c-77aa-4f7b-9a55-0f6a3c2d1b00", h.Boot())

	treetest.Write(t, root, "-- recorded/clock.json --\n{\n")
	_, err = h.Clock()
	assert.ErrorContains(t, err, "clock.json")
	_, err = New(t.TempDir()).Clock()
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestThisMachine(t *testing.T) {
	h := New("/")
	u, _, err := h.Usage(t.Context(), "/")
	require.NoError(t, err)
	assert.Positive(t, u.Total)
	_, err = h.Clock()
	require.NoError(t, err)
}
