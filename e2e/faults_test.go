//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// heat is a job that runs long enough to be hurt: its progress lines and its
// own verification show whether anything was lost or doubled.
func heat(mpi, n, iterations, report string) []string {
	return []string{"-np", "2", filepath.Join(bin, "heat."+mpi), n, iterations, report}
}

func faultJob(t *testing.T, c *cluster, mpi string, extra ...string) *mpirun {
	t.Helper()
	return start(t, options{cluster: c, args: append(append(extra, "--vft-interval", "4s"), heat(mpi, "200", "1800", "200")...)})
}

func faultJobVerified(m *mpirun) {
	m.t.Helper()
	m.verified(1800, 200)
}

// TestNodeLost: a node with a guest dies after a checkpoint; the job goes on
// from it (I2, I5, I8).
func TestNodeLost(t *testing.T) {
	for _, mpi := range []string{"openmpi", "mpich"} {
		t.Run(mpi, func(t *testing.T) {
			m := faultJob(t, shared, mpi)
			e := m.await("checkpoint")
			victim := otherThan(t, shared, m, e.Job, shared.leader(t))
			shared.kill(t, victim)
			m.await("node-lost")
			r := m.await("restarted")
			if r.Figures["epoch"] == 0 {
				t.Error("restarted from the beginning although a checkpoint was committed")
			}
			faultJobVerified(m)
			t.Logf("%s", r.Text)
			shared.revive(t, victim)
		})
	}
}

// otherThan returns a node with a guest of the job that is not the one named.
func otherThan(t *testing.T, c *cluster, m *mpirun, job, not string) string {
	t.Helper()
	for _, g := range c.job(t, job).Guests {
		if g.Node != not {
			return g.Node
		}
	}
	t.Fatalf("all guests are on %s", not)
	return ""
}

// TestLeaderLostInCheckpoint: the leader's node dies while an epoch is being
// gathered; another leader finishes or aborts it and the job goes on (I1, I5, I7).
func TestLeaderLostInCheckpoint(t *testing.T) {
	m := faultJob(t, shared, "openmpi")
	e := m.await("checkpoint")
	eventually(t, "a checkpoint is under way", func() bool {
		return shared.job(t, e.Job).Operation.Kind == "OPERATION_KIND_CHECKPOINT"
	})
	victim := shared.leader(t)
	shared.kill(t, victim)
	faultJobVerified(m)
	shared.revive(t, victim)
}

// TestLeaderLostInRestart: the leader dies while it restores the guests of a
// node that died before.
func TestLeaderLostInRestart(t *testing.T) {
	m := faultJob(t, shared, "openmpi")
	e := m.await("checkpoint")
	leader := shared.leader(t)
	victim := otherThan(t, shared, m, e.Job, leader)
	shared.kill(t, victim)
	m.await("restarting")
	shared.kill(t, leader)
	// Two of the three replicas may be gone now; one of them has to come back.
	shared.revive(t, victim)
	faultJobVerified(m)
	shared.revive(t, leader)
}

// TestPartition: a node is cut off; its guests stand still and must not come
// back when it is healed (I3).
func TestPartition(t *testing.T) {
	m := faultJob(t, shared, "openmpi")
	e := m.await("checkpoint")
	victim := otherThan(t, shared, m, e.Job, shared.leader(t))
	guest := 0
	for _, g := range shared.job(t, e.Job).Guests {
		if g.Node == victim {
			guest = g.Index
		}
	}
	stale := qemu(t, e.Job, guest)
	shared.lab(t, "partition", victim)
	m.await("restarted")
	if !alive(stale) {
		t.Error("the cut-off node's guest was expected to stand still, but it is gone already")
	}
	shared.lab(t, "heal", victim)
	eventually(t, "the stale guest is ended after the healing", func() bool { return !alive(stale) })
	faultJobVerified(m)
	if m.count("restarted") != 1 {
		t.Errorf("%d restarts, want one: the healed node must not disturb the job", m.count("restarted"))
	}
	eventually(t, "the healed node is alive", func() bool { return shared.states(t)[victim] == "NODE_STATE_ALIVE" })
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) }

func zombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(data), ") Z ")
}

// TestGuestHangs: a QEMU is stopped for good; it is taken for dead, killed and
// the job restarted.
func TestGuestHangs(t *testing.T) {
	m := faultJob(t, shared, "openmpi")
	e := m.await("checkpoint")
	pid := qemu(t, e.Job, 1)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.await("restarted")
	if alive(pid) {
		t.Error("the hung QEMU still exists")
	}
	faultJobVerified(m)
}

// TestSidecarKilled: only the sidecar process dies; its guests are adopted by
// the next one and the job goes on without a restart.
func TestSidecarKilled(t *testing.T) {
	m := faultJob(t, shared, "openmpi", "--vft-engine", "pre-copy")
	e := m.await("checkpoint")
	node := shared.nodeOf(t, e.Job, 1)
	before := qemu(t, e.Job, 1)
	sidecars := pids(t, "vft sidecar", filepath.Join(shared.dir, node)+"/")
	if len(sidecars) != 1 {
		t.Fatalf("node %s has sidecars %v", node, sidecars)
	}
	if err := syscall.Kill(sidecars[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.await("checkpoint") // checkpoints go on with the next sidecar
	if got := qemu(t, e.Job, 1); got != before {
		t.Errorf("the guest's QEMU is process %d now, it was %d", got, before)
	}
	faultJobVerified(m)
	if n := m.count("restarted"); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
}

// TestEngines: a job can be restarted from a checkpoint of every engine, again
// and again: memory that was saved wrongly crashes the program sooner or later.
func TestEngines(t *testing.T) {
	for _, engine := range []string{"background", "pre-copy", "stop-copy"} {
		t.Run(engine, func(t *testing.T) {
			m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0", "--vft-engine", engine}, heat("openmpi", "200", "1750", "250")...)})
			e := m.await("started")
			for cycle := range 2 {
				m.awaitOutput(fmt.Sprintf("iteration %d ", 250+cycle*500))
				shared.vft(t, "ckpt", "take", e.Job)
				epochs := shared.job(t, e.Job).Epochs
				last := epochs[len(epochs)-1]
				for _, p := range last.Parts {
					if want := "ENGINE_" + strings.ToUpper(strings.ReplaceAll(engine, "-", "_")); p.Engine != want {
						t.Errorf("engine %s, want %s", p.Engine, want)
					}
					if len(p.Nodes) != 2 {
						t.Errorf("part on nodes %v, want two", p.Nodes)
					}
					t.Logf("pause %s ns, hold %s ns", p.Pause, last.Hold)
				}
				shared.vft(t, "job", "restart", e.Job)
				t.Log(m.await("restarted").Text)
			}
			m.verified(1750, 250)
		})
	}
}

// TestDiskFull: the disk of one node has no room for a part; the job goes on
// with its previous epoch (I7).
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("mounting a small file system needs root: run as root, or leave this test out with -skip TestDiskFull")
	}
	// The second node's checkpoints are on a file system of their own.
	dir := filepath.Join(t.TempDir(), "lab")
	data := filepath.Join(dir, "n2", "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	c, err := newCluster(dir, "--nodes", "2", "--replicas", "1")
	if err != nil {
		_ = syscall.Unmount(data, syscall.MNT_DETACH)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := c.down(); err != nil {
			t.Error(err)
		}
	})
	m := start(t, options{cluster: c, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "2500", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	c.vft(t, "ckpt", "take", e.Job)
	filler := filepath.Join(data, "filler")
	fill(t, filler)
	if out, err := c.try("ckpt", "take", e.Job); err == nil {
		t.Errorf("a checkpoint was committed on a full disk: %s", out)
	} else if !strings.Contains(err.Error(), "no space") {
		t.Errorf("the error does not name the reason: %v", err)
	}
	v := c.job(t, e.Job)
	if v.Epochs[0].State != "EPOCH_STATE_COMMITTED" {
		t.Errorf("the previous epoch is %s", v.Epochs[0].State)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.vft(t, "job", "restart", e.Job)
	m.await("restarted")
	m.verified(2500, 250)
}

// fill writes a file until its file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // the file is full or the test over
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestartWithoutCheckpoint: before the first epoch a job begins anew and
// says so.
func TestRestartWithoutCheckpoint(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "1500", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	if err := syscall.Kill(qemu(t, e.Job, 1), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := m.await("restarting")
	if !strings.Contains(r.Text, "beginning") {
		t.Errorf("the event does not say that the job begins anew: %q", r.Text)
	}
	m.verified(1500, 250)
}

// TestAllNodesLost: every node loses power and comes back; the job goes on
// from its last epoch.
func TestAllNodesLost(t *testing.T) {
	c := ownCluster(t, "--nodes", "3")
	m := faultJob(t, c, "openmpi")
	m.await("checkpoint")
	for _, n := range []string{"n1", "n2", "n3"} {
		c.lab(t, "kill", n)
	}
	time.Sleep(100 * time.Millisecond) // the power is off for a moment
	for _, n := range []string{"n1", "n2", "n3"} {
		c.lab(t, "start", n)
	}
	m.await("restarted")
	faultJobVerified(m)
}

// TestNodeLostOutside: a node dies and with it the only copy on nodes of its
// guest's memory; the job goes on from what lies in a directory (I2, I5, I8).
func TestNodeLostOutside(t *testing.T) {
	dir := t.TempDir()
	m := start(t, options{cluster: shared, args: append(
		[]string{"--vft-levels", "local,dir:" + dir, "--vft-commit", "dir:" + dir, "--vft-interval", "3s"},
		heat("openmpi", "200", "2000", "250")...,
	)})
	e := m.await("checkpoint")
	victim := otherThan(t, shared, m, e.Job, shared.leader(t))
	shared.kill(t, victim)
	m.await("node-lost")
	r := m.await("restarted")
	if r.Figures["epoch"] == 0 {
		t.Error("restarted from the beginning although a checkpoint was committed")
	}
	m.verified(2000, 250)
	t.Logf("%s", r.Text)
	shared.revive(t, victim)
	eventually(t, "the job's parts are removed from the directory", func() bool {
		parts, err := filepath.Glob(filepath.Join(dir, "parts", e.Job, "*"))
		return err == nil && len(parts) == 0
	})
}
