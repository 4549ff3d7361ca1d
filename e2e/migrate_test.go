//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// free returns a node of the cluster that has no guest of the job.
func free(t *testing.T, c *cluster, job string, but ...string) string {
	t.Helper()
	taken := strings.Join(but, " ")
	for _, g := range c.job(t, job).Guests {
		taken += " " + g.Node
	}
	for n, state := range c.states(t) {
		if state == "NODE_STATE_ALIVE" && !strings.Contains(taken, n) {
			return n
		}
	}
	t.Fatalf("every node has a guest of job %s", job)
	return ""
}

// movedView is what the tests read of the event that ends a migration.
type movedView struct {
	Kind, Text string
	Figures    map[string]string
}

// migrate moves a guest and returns what the command says of it.
func migrate(t *testing.T, c *cluster, job string, guest int, to string, extra ...string) movedView {
	t.Helper()
	var ev movedView
	args := append([]string{"--json", "guest", "migrate", fmt.Sprintf("%s/%d", job, guest), "--to", to}, extra...)
	if err := json.Unmarshal(c.vft(t, args...), &ev); err != nil {
		t.Fatal(err)
	}
	return ev
}

// TestMigrate: guests of a running job, also the one that mpirun runs in, move
// to nodes that had none of the job and back, live and cold; a checkpoint is
// taken in between and the job is restarted from it at the end. The program
// notices nothing.
func TestMigrate(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "3500", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	home := shared.nodeOf(t, e.Job, 1)
	for i, move := range []struct {
		guest int
		to    string
		extra []string
	}{
		{guest: 1, to: free(t, shared, e.Job)},
		{guest: 1, to: home},
		{guest: 0, to: free(t, shared, e.Job)},
		{guest: 1, to: shared.nodeOf(t, e.Job, 0)}, // where guest 0 was, or beside it
		{guest: 1, to: free(t, shared, e.Job, home), extra: []string{"--cold"}},
	} {
		if shared.nodeOf(t, e.Job, move.guest) == move.to {
			move.to = free(t, shared, e.Job)
		}
		ev := migrate(t, shared, e.Job, move.guest, move.to, move.extra...)
		t.Logf("%s; %v", ev.Text, ev.Figures)
		if got := shared.nodeOf(t, e.Job, move.guest); got != move.to || ev.Kind != "migrated" {
			t.Fatalf("guest %d is on %s, want %s: %+v", move.guest, got, move.to, ev)
		}
		qemu(t, e.Job, move.guest) // there is one
		m.awaitOutput(fmt.Sprintf("iteration %d ", 500+250*i))
		if i%2 == 1 {
			shared.vft(t, "ckpt", "take", e.Job)
		}
	}
	if n := m.count("restarted"); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
	shared.vft(t, "job", "restart", e.Job)
	m.await("restarted")
	m.verified(3500, 250)
	noGuests(t, e.Job)
}

// TestMigrationFails: the new node's QEMU, or the new node itself, dies while
// the guest is on its way: it goes on where it is, and can be moved again.
func TestMigrationFails(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "4000", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	from, to := shared.nodeOf(t, e.Job, 1), free(t, shared, e.Job, shared.leader(t))
	here := qemu(t, e.Job, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := shared.try("guest", "migrate", e.Job+"/1", "--to", to)
		ended <- err
	}()
	m.await("migrating")
	hit := func(signal syscall.Signal) {
		t.Helper()
		eventually(t, "the new node's QEMU is there", func() bool {
			for _, pid := range pids(t, "qemu-system", fmt.Sprintf("vft-%s-1", e.Job)) {
				if pid != here {
					return syscall.Kill(pid, signal) == nil
				}
			}
			return false
		})
	}
	hit(syscall.SIGKILL)
	if err := <-ended; err == nil {
		t.Fatal("the guest moved although its QEMU was killed on the way")
	} else {
		t.Log(err)
	}
	if got := shared.nodeOf(t, e.Job, 1); got != from {
		t.Fatalf("the guest is on %s, was on %s", got, from)
	}
	m.awaitOutput("iteration 1000 ")
	qemu(t, e.Job, 1) // one is left

	go func() {
		_, err := shared.try("guest", "migrate", e.Job+"/1", "--to", to)
		ended <- err
	}()
	m.await("migrating")
	hit(syscall.SIGSTOP) // so that it cannot be there before the node dies
	shared.kill(t, to)
	if err := <-ended; err == nil {
		t.Error("the guest moved to a node that died")
	} else {
		t.Log(err)
	}
	shared.revive(t, to)
	migrate(t, shared, e.Job, 1, to)
	m.verified(4000, 250)
	if n := m.count("restarted"); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
}

// TestDrain: a node is emptied while its job runs, gets no guest, and takes
// guests again when it is told to.
func TestDrain(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "2500", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	node := shared.nodeOf(t, e.Job, 0)
	t.Logf("%s", shared.vft(t, "node", "drain", node, "--reason", "memory errors"))
	for _, g := range shared.job(t, e.Job).Guests {
		if g.Node == node {
			t.Errorf("guest %d is on the drained node", g.Index)
		}
	}
	if _, err := shared.try("guest", "migrate", e.Job+"/0", "--to", node); err == nil || !strings.Contains(err.Error(), "memory errors") {
		t.Errorf("a guest was moved to the drained node: %v", err)
	}
	shared.vft(t, "node", "undrain", node)
	migrate(t, shared, e.Job, 0, node)
	m.verified(2500, 250)
	if n := m.count("restarted"); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
}
