package lab

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/proc"
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

// program stands in for vft: it says how it was called, writes the number of
// a child that stays, and does nothing.
const program = `#!/bin/sh
echo "$@" "extra=$VFT_EXTRA"
sleep 60 &
echo $! >"$(dirname "$4")/child"
wait
`

// isolate gives the test a temporary directory of its own, where numbers are
// reserved, with a path short enough for sockets.
func isolate(t *testing.T) string {
	t.Helper()
	tmp, err := os.MkdirTemp("", "lab")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	return tmp
}

func options(t *testing.T, tmp, name string, nodes int) Options {
	t.Helper()
	binary := filepath.Join(tmp, "vft")
	require.NoError(t, os.WriteFile(binary, []byte(program), 0o700))
	return Options{Dir: filepath.Join(tmp, name), Nodes: nodes, Binary: binary, Images: "/images", Lease: 3 * time.Second, CPUs: 2}
}

func create(t *testing.T, o Options) *Lab {
	t.Helper()
	l, err := Create(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Remove(context.Background()) })
	return l
}

func TestCreateWritesWhatTheNodesNeed(t *testing.T) {
	tmp := isolate(t)
	for nodes, replicas := range map[int]int{1: 1, 2: 1, 3: 3, 5: 3} {
		o := options(t, tmp, "lab"+strconv.Itoa(nodes), nodes)
		l := create(t, o)
		assert.Len(t, l.Nodes(), nodes)
		cluster, err := nodeconf.LoadCluster(l.ClusterFile())
		require.NoError(t, err)
		assert.Len(t, cluster.Coordinators, replicas)
		_, err = cluster.Identity()
		require.NoError(t, err)
		addresses := map[string]bool{}
		coordinators := 0
		for _, id := range l.Nodes() {
			conf, err := nodeconf.LoadNode(filepath.Join(l.NodeDir(id), nodeconf.NodeFile))
			require.NoError(t, err)
			assert.Equal(t, id, conf.ID)
			assert.Equal(t, nodeconf.Duration(3*time.Second), conf.Lease)
			assert.Equal(t, uint32(2), conf.CPUs)
			assert.True(t, conf.LabControl)
			assert.Len(t, conf.Replicas, replicas)
			assert.DirExists(t, conf.Certificates)
			assert.Less(t, len(conf.Run), 80, "sockets in it would have names that are too long")
			for _, a := range []string{conf.Sidecar, conf.CoordHTTP, conf.SidecarHTTP} {
				assert.False(t, addresses[a], "%s twice", a)
				addresses[a] = true
			}
			if conf.Coordinator {
				assert.Equal(t, conf.ID, conf.Replicas[coordinators].ID)
				coordinators++
			}
			assert.False(t, l.Running(id))
		}
		assert.Equal(t, replicas, coordinators)
	}
}

func TestCreateRefuses(t *testing.T) {
	tmp := isolate(t)
	for _, n := range []int{0, -1, 201} {
		_, err := Create(t.Context(), options(t, tmp, "bad", n))
		assert.ErrorContains(t, err, "1 to 200 nodes")
	}
	o := options(t, tmp, "lab", 1)
	create(t, o)
	_, err := Create(t.Context(), o)
	assert.ErrorContains(t, err, "holds a lab already")
	_, err = Open(o.Dir)
	assert.NoError(t, err, "the refused one has hurt the first")
	runs, err := filepath.Glob(filepath.Join(tmp, "vft-lab-*"))
	require.NoError(t, err)
	assert.Len(t, runs, 1, "a refused lab keeps a number")
}

func TestRemoveLeavesNothingOfOurs(t *testing.T) {
	tmp := isolate(t)
	o := options(t, tmp, "lab", 2)
	l := create(t, o)
	mine := filepath.Join(o.Dir, "notes.txt")
	require.NoError(t, os.WriteFile(mine, []byte("mine"), 0o600))
	require.NoError(t, l.Remove(t.Context()))
	entries, err := os.ReadDir(o.Dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
	assert.FileExists(t, mine, "a file of the user's was removed")
	runs, err := filepath.Glob(filepath.Join(tmp, "vft-lab-*"))
	require.NoError(t, err)
	assert.Empty(t, runs)
	_, err = Open(o.Dir)
	require.ErrorIs(t, err, ErrNoLab)
	assert.ErrorContains(t, err, "vft lab up", "the message says what to do")

	require.NoError(t, os.Remove(mine))
	l = create(t, o) // the directory can be used again
	require.NoError(t, l.Remove(t.Context()))
	assert.NoDirExists(t, o.Dir)
}

func TestOpenRefusesAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stateFile)
	require.NoError(t, os.WriteFile(path, []byte(`{"version": 9}`), 0o600))
	_, err := Open(dir)
	assert.ErrorContains(t, err, "is of version 9 and this vft knows version 1")
	require.NoError(t, os.WriteFile(path, []byte(`{`), 0o600))
	_, err = Open(dir)
	assert.ErrorContains(t, err, path)
}

func TestNumbers(t *testing.T) {
	tmp := isolate(t)
	one, two := create(t, options(t, tmp, "one", 1)), create(t, options(t, tmp, "two", 1))
	assert.Equal(t, []int{1, 2}, []int{one.state.Number, two.state.Number})
	assert.NotEqual(t, one.state.Nodes[0].Address, two.state.Nodes[0].Address)

	// A number is free again after Remove.
	require.NoError(t, one.Remove(t.Context()))
	three := create(t, options(t, tmp, "three", 1))
	assert.Equal(t, 1, three.state.Number)

	// One whose lab was deleted by hand is taken over, with nothing stale in it.
	stale := filepath.Join(three.state.Run, "n1", "old.sock")
	require.NoError(t, os.MkdirAll(filepath.Dir(stale), 0o700))
	require.NoError(t, os.WriteFile(stale, nil, 0o600))
	require.NoError(t, os.RemoveAll(three.dir))
	four := create(t, options(t, tmp, "four", 1))
	assert.Equal(t, 1, four.state.Number)
	assert.NoFileExists(t, stale)

	// One that somebody is reserving this moment is left alone.
	require.NoError(t, os.Mkdir(filepath.Join(tmp, "vft-lab-"+strconv.Itoa(os.Getuid())+"-3"), 0o700))
	five := create(t, options(t, tmp, "five", 1))
	assert.Equal(t, 4, five.state.Number)
}

func childOf(t *testing.T, l *Lab, id string) proc.Identity {
	t.Helper()
	var ident proc.Identity
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(l.NodeDir(id), "child"))
		if err != nil {
			return false
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return false
		}
		ident, err = proc.Identify(pid)
		return err == nil
	}, 5*time.Second, 2*time.Millisecond)
	t.Cleanup(func() {
		if ident.Alive() {
			_ = unix.Kill(ident.PID, unix.SIGKILL)
		}
		reap(ident.PID)
	})
	return ident
}

func TestStartAndKill(t *testing.T) {
	tmp := isolate(t)
	o := options(t, tmp, "lab", 2)
	l := create(t, o)
	require.NoError(t, l.Start(t.Context(), "n1", "VFT_EXTRA=yes"))
	require.NoError(t, l.Start(t.Context(), "n2"))
	assert.True(t, l.Running("n1"))
	child, other := childOf(t, l, "n1"), childOf(t, l, "n2")
	log, err := os.ReadFile(l.LogFile("n1"))
	require.NoError(t, err)
	assert.Equal(t, "node run --config "+filepath.Join(l.NodeDir("n1"), nodeconf.NodeFile)+" extra=yes\n", string(log))
	assert.ErrorContains(t, l.Start(t.Context(), "n1"), "node n1 is running")

	// Another command sees the same lab.
	again, err := Open(o.Dir)
	require.NoError(t, err)
	assert.Equal(t, l.Nodes(), again.Nodes())
	assert.True(t, again.Running("n1"))
	require.NoError(t, again.Kill("n1"))
	assert.False(t, again.Running("n1"))
	assert.False(t, child.Alive(), "a process of the node outlived the kill")
	assert.True(t, again.Running("n2"))
	assert.True(t, other.Alive(), "another node was hit")
	assert.ErrorContains(t, again.Kill("n1"), "is not running")

	require.NoError(t, os.Remove(filepath.Join(l.NodeDir("n1"), "child")))
	require.NoError(t, again.Start(t.Context(), "n1"))
	child = childOf(t, again, "n1")
	require.NoError(t, again.Remove(t.Context()))
	assert.False(t, child.Alive(), "Remove leaves processes")
	assert.False(t, other.Alive(), "Remove leaves processes")
}

// What outlived a supervisor that was killed alone must not meet its successor.
func TestStartEndsWhatIsLeft(t *testing.T) {
	l := create(t, options(t, isolate(t), "lab", 1))
	require.NoError(t, l.Start(t.Context(), "n1"))
	child := childOf(t, l, "n1")
	leader, err := os.FindProcess(l.state.Nodes[0].Process.PID)
	require.NoError(t, err)
	require.NoError(t, leader.Kill())
	require.Eventually(t, func() bool { return !l.Running("n1") }, 5*time.Second, time.Millisecond)
	require.True(t, child.Alive())
	require.NoError(t, l.Start(t.Context(), "n1"))
	assert.False(t, child.Alive())
	assert.True(t, l.Running("n1"))
	require.NoError(t, l.Remove(t.Context()))
}

func TestUnknownNode(t *testing.T) {
	l := create(t, options(t, isolate(t), "lab", 2))
	for name, err := range map[string]error{
		"start": l.Start(t.Context(), "n3"), "kill": l.Kill("n3"),
		"partition": l.Partition(t.Context(), "n3"), "heal": l.Heal(t.Context(), "n3"),
	} {
		require.ErrorContains(t, err, `no node "n3"`, name)
		assert.ErrorContains(t, err, "[n1 n2]", "%s: the message says which there are", name)
	}
	assert.False(t, l.Running("n3"))
}

func TestProgramThatCannotBeStarted(t *testing.T) {
	o := options(t, isolate(t), "lab", 1)
	o.Binary = filepath.Join(o.Dir, "no-such-program")
	l := create(t, o)
	assert.ErrorContains(t, l.Start(t.Context(), "n1"), "starting node n1")
	assert.False(t, l.Running("n1"))
}

// gate is the control socket of a daemon.
func gate(t *testing.T, l *Lab, id, socket string, status int) *[]string {
	t.Helper()
	dir := filepath.Join(l.state.Run, id)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	ln, err := net.Listen("unix", filepath.Join(dir, socket))
	require.NoError(t, err)
	asked := &[]string{}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.Method+" "+r.URL.String())
		w.WriteHeader(status)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return asked
}

func TestPartitionAndHeal(t *testing.T) {
	o := options(t, isolate(t), "lab", 2)
	l := create(t, o)
	assert.Error(t, l.Partition(t.Context(), "n1"), "nobody listens")
	side, coord := gate(t, l, "n1", SidecarControl, http.StatusNoContent), gate(t, l, "n1", CoordinatorControl, http.StatusNoContent)
	require.NoError(t, l.Partition(t.Context(), "n1"))
	again, err := Open(o.Dir)
	require.NoError(t, err)
	assert.True(t, again.state.Nodes[0].Cut)
	require.NoError(t, again.Heal(t.Context(), "n1"))
	want := []string{"POST /lab/gate?shut=true", "POST /lab/gate?shut=false"}
	assert.Equal(t, want, *side)
	assert.Equal(t, want, *coord)

	alone := gate(t, l, "n2", SidecarControl, http.StatusInternalServerError) // a node without a coordinator
	assert.ErrorContains(t, l.Partition(t.Context(), "n2"), "answered 500")
	assert.Len(t, *alone, 1)
	assert.False(t, l.state.Nodes[1].Cut)
}
