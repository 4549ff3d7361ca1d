package host

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadFile(t *testing.T) {
	root := t.TempDir()
	h := New(root)
	treetest.Write(t, root, "-- small --\n 42 \n-- word --\nmany\n-- dir/ --\n-- big --\n"+strings.Repeat("x", 100_000)+"\n-- huge --\n"+strings.Repeat("x", maxFile+1))
	require.NoError(t, unix.Mkfifo(h.Path("pipe"), 0o600))

	v, ok, err := h.Number("small")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.InDelta(t, 42, v, 0)
	_, ok, err = h.Number("none")
	require.NoError(t, err)
	assert.False(t, ok)
	_, _, err = h.Number("word")
	assert.ErrorContains(t, err, `"many" is no number`)
	data, err := h.ReadFile("big")
	require.NoError(t, err)
	assert.Len(t, data, 100_001)
	_, err = h.ReadFile("huge")
	assert.ErrorIs(t, err, unix.EFBIG)
	_, err = h.ReadFile("dir")
	assert.Error(t, err)
	data, err = h.ReadFile("pipe") // would wait for a writer
	require.NoError(t, err)
	assert.Empty(t, data)
	for _, strange := range []string{"NaN", "Inf", "1e999", "0x10", ""} {
		treetest.Write(t, root, "-- strange --\n"+strange+"\n")
		_, _, err := h.Number("strange")
		assert.Error(t, err, strange)
	}
}

func TestPaths(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a[b]*c")
	require.NoError(t, os.MkdirAll(root, 0o750))
	treetest.Write(t, root, "-- d/x10 --\n-- d/x2 --\n-- d/y --\n")
	h := New(root)
	assert.Equal(t, []string{"x10", "x2"}, h.List("d", "x[0-9]*"))
	assert.Empty(t, h.List("none", "*"))
	assert.True(t, h.Exists("d"))
	assert.False(t, h.Exists("e"))
	assert.False(t, h.Live())
	assert.True(t, New("").Live())
	assert.True(t, New("//").Live())
}

func TestUptime(t *testing.T) {
	root := t.TempDir()
	h := New(root)
	assert.Zero(t, h.Uptime())
	for text, want := range map[string]time.Duration{
		"350735.47 234388.90\n": 350735470 * time.Millisecond, "x": 0, "-5 1": 0, "NaN": 0, "1e300": 0, "": 0,
	} {
		treetest.Write(t, root, "-- proc/uptime --\n"+text)
		assert.Equal(t, want, h.Uptime(), text)
	}
	assert.Positive(t, New("/").Uptime())
}

// program writes a shell script and returns a live host and its path.
func program(t *testing.T, script string, options ...Option) (*Host, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700)) //nolint:gosec // a program
	return New("/", options...), path
}

func TestRun(t *testing.T) {
	h, path := program(t, `echo "$1 $LC_ALL"; echo oops >&2; exit 64`)
	out, err := h.Run(t.Context(), time.Minute, path, "hello")
	require.NoError(t, err, "an exit status is no error")
	assert.Equal(t, Output{Stdout: []byte("hello C\n"), Stderr: []byte("oops\n"), Exit: 64}, out)

	_, err = h.Run(t.Context(), time.Minute, path+".not")
	assert.ErrorIs(t, err, ErrNoProgram)
	_, err = h.Run(t.Context(), time.Minute, "no-such-program-anywhere")
	assert.ErrorIs(t, err, ErrNoProgram)
	assert.True(t, h.Has(path))
	assert.False(t, h.Has("no-such-program-anywhere"))

	h, path = program(t, `kill -9 $$`)
	_, err = h.Run(t.Context(), time.Minute, path)
	assert.ErrorIs(t, err, ErrSignal)

	h, path = program(t, `head -c 5000000 /dev/zero`)
	_, err = h.Run(t.Context(), time.Minute, path)
	assert.ErrorContains(t, err, "printed more than")
}

func TestProgramsForAdministratorsAreFound(t *testing.T) {
	t.Setenv("PATH", "/nowhere:.:relative")
	assert.True(t, New("/").Has("ldconfig"), "/sbin is not searched")
}

// gone says that no process of a group runs; nobody may have reaped them.
func gone(t *testing.T, group int) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, f := range files {
		data, _ := os.ReadFile(f)
		_, rest, _ := strings.Cut(string(data), ") ")
		if fields := strings.Fields(rest); len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" {
			return false
		}
	}
	return true
}

// assertGone waits for killed processes to have died.
func assertGone(t *testing.T, group int) {
	t.Helper()
	assert.Eventually(t, func() bool { return gone(t, group) }, 10*time.Second, time.Millisecond, "the process group lives")
}

func readPID(t *testing.T, path string) int {
	t.Helper()
	var pid int
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(path)
		return err == nil && json.Unmarshal(data, &pid) == nil
	}, 10*time.Second, time.Millisecond)
	return pid
}

func TestAProgramThatHangsIsCutOff(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	h, path := program(t, `trap "" TERM; echo $$ > `+pidFile+`; sleep 1000 & sleep 1000`)
	began := time.Now()
	_, err := h.Run(t.Context(), 2*time.Second, path)
	var cut *TimeoutError
	require.ErrorAs(t, err, &cut)
	assert.False(t, cut.Stuck)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(began), 2*time.Second+killGrace)
	assertGone(t, readPID(t, pidFile))
}

func TestTheEndOfTheContextEndsAProgram(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	h, path := program(t, `echo $$ > `+pidFile+`; sleep 1000`)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		readPID(t, pidFile)
		cancel()
	}()
	_, err := h.Run(ctx, time.Minute, path)
	require.ErrorIs(t, err, context.Canceled)
	assertGone(t, readPID(t, pidFile))
}

// What a program leaves behind goes with it, and cannot hold us up.
func TestAProgramThatLeavesAChild(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	h, path := program(t, `sleep 1000 & echo $$ > `+pidFile+`; echo done`)
	out, err := h.Run(t.Context(), time.Minute, path)
	require.NoError(t, err)
	assert.Equal(t, "done\n", string(out.Stdout))
	assertGone(t, readPID(t, pidFile))

	// One in another session keeps the output open.
	h, path = program(t, `setsid sh -c 'echo $$ > `+pidFile+`; exec sleep 1000' & while [ ! -s `+pidFile+` ]; do :; done; echo done`)
	require.NoError(t, os.Remove(pidFile))
	out, err = h.Run(t.Context(), time.Minute, path)
	require.NoError(t, err)
	assert.Equal(t, "done\n", string(out.Stdout))
	require.NoError(t, syscall.Kill(readPID(t, pidFile), syscall.SIGKILL))
}
