package proc

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
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
)

func TestMain(m *testing.M) {
	// What outlives its parent comes to us, so that the test can reap it
	// also where nobody else does.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func reap(pid int) { _, _ = unix.Wait4(pid, nil, 0, nil) }

// group starts a shell script as the leader of a process group of its own and
// returns what it prints first. Its end is waited for.
func group(t *testing.T, script string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	line = strings.TrimSpace(line)
	if child, err := strconv.Atoi(line); err == nil {
		t.Cleanup(func() {
			_ = syscall.Kill(child, syscall.SIGKILL)
			reap(child)
		})
	}
	return cmd, line
}

func TestIdentity(t *testing.T) {
	me, err := Identify(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, os.Getpid(), me.PID)
	assert.NotZero(t, me.Start)
	assert.True(t, me.Alive())
	again, err := Identify(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, me, again)

	assert.False(t, Identity{}.Alive())
	assert.False(t, Identity{PID: me.PID, Start: me.Start + 1}.Alive(), "another process had this number")

	cmd, _ := group(t, "echo ready; exec sleep 60")
	id, err := Identify(cmd.Process.Pid)
	require.NoError(t, err)
	require.True(t, id.Alive())
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return !id.Alive() }, 5*time.Second, time.Millisecond, "a zombie is alive")
	_ = cmd.Wait()
	_, err = Identify(cmd.Process.Pid)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// A name may hold anything, so the fields are counted from its end.
func TestIdentityOfAProcessWithAStrangeName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a) R 1 2 (b")
	require.NoError(t, os.Symlink("/bin/sleep", path))
	cmd := exec.Command(path, "60")
	require.NoError(t, cmd.Start())
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	id, err := Identify(cmd.Process.Pid)
	require.NoError(t, err)
	plain, err := Identify(os.Getpid())
	require.NoError(t, err)
	assert.GreaterOrEqual(t, id.Start, plain.Start)
	assert.True(t, id.Alive())
}

func alive(pid string) bool {
	n, _ := strconv.Atoi(pid)
	id, err := Identify(n)
	return err == nil && id.Alive()
}

func TestKillGroup(t *testing.T) {
	// The child ignores what can be ignored.
	cmd, child := group(t, `(trap "" TERM INT HUP; exec sleep 60) & echo $!; wait`)
	other, _ := group(t, "echo ready; exec sleep 60")
	id, err := Identify(cmd.Process.Pid)
	require.NoError(t, err)
	require.True(t, alive(child))
	require.NoError(t, id.KillGroup())
	assert.False(t, id.Alive(), "the leader lives when KillGroup has returned")
	assert.False(t, alive(child), "a child lives when KillGroup has returned")
	assert.True(t, alive(strconv.Itoa(other.Process.Pid)), "another group was hit")
	require.NoError(t, id.KillGroup(), "may be repeated")
}

func TestKillGroupWithoutItsLeader(t *testing.T) {
	cmd, child := group(t, `sleep 60 >/dev/null & echo $!`)
	id, err := Identify(cmd.Process.Pid)
	if err != nil { // it was quick; the start does not matter then
		id = Identity{PID: cmd.Process.Pid, Start: 1}
	}
	_ = cmd.Wait()
	require.True(t, alive(child))
	require.NoError(t, id.KillGroup())
	assert.False(t, alive(child), "what the leader left behind lives")
}

func TestKillGroupSparesWhoeverGotTheNumber(t *testing.T) {
	cmd, child := group(t, `sleep 60 & echo $!; wait`)
	id, err := Identify(cmd.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, Identity{PID: id.PID, Start: id.Start - 1}.KillGroup())
	time.Sleep(20 * time.Millisecond)
	assert.True(t, id.Alive(), "a process that inherited the number was killed")
	assert.True(t, alive(child))
	for _, none := range []int{0, 1, -1} { // would mean: my group, init, everybody
		require.NoError(t, Identity{PID: none}.KillGroup())
	}
	assert.True(t, id.Alive())
}

func lines(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return strings.Count(string(data), "\n")
}

func supervised(ctx context.Context, children ...Child) <-chan error {
	done := make(chan error, 1)
	go func() { done <- Supervise(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), children, nil) }()
	return done
}

func ended(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Supervise goes on")
		return nil
	}
}

func shell(name, script string, args ...string) Child {
	return Child{Name: name, Argv: append([]string{"/bin/sh", "-c", script, name}, args...)}
}

func TestSuperviseStartsAgain(t *testing.T) {
	dir := t.TempDir()
	starts, steady, stopped := filepath.Join(dir, "starts"), filepath.Join(dir, "steady"), filepath.Join(dir, "stopped")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := supervised(ctx,
		shell("flaky", `echo x >>"$1"; exit 3`, starts),
		shell("steady", `trap 'echo x >>"$2"; exit 0' TERM; echo x >>"$1"; while :; do sleep 0.01; done`, steady, stopped),
		Child{Name: "missing", Argv: []string{filepath.Join(dir, "no-such-program")}},
	)
	require.Eventually(t, func() bool { return lines(t, starts) >= 3 && lines(t, steady) == 1 }, 10*time.Second, 5*time.Millisecond)
	cancel()
	require.NoError(t, ended(t, done))
	assert.Equal(t, 1, lines(t, steady), "a child that runs was started twice")
	assert.Equal(t, 1, lines(t, stopped), "SIGTERM did not reach the child, or Supervise did not wait for it")
}

func TestSuperviseGivesUpOnConfiguration(t *testing.T) {
	stopped := filepath.Join(t.TempDir(), "stopped")
	ready := filepath.Join(t.TempDir(), "ready")
	done := supervised(t.Context(),
		shell("other", `trap 'echo x >>"$1"; exit 0' TERM; echo x >"$2"; while :; do sleep 0.01; done`, stopped, ready),
		shell("wrong", `while [ ! -e "$1" ]; do sleep 0.01; done; exit 78`, ready),
	)
	err := ended(t, done)
	require.ErrorIs(t, err, ErrChildConfig)
	assert.ErrorContains(t, err, "wrong")
	assert.Equal(t, 1, lines(t, stopped), "the other child was not ended")
}
