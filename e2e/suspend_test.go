//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// suspend suspends a job that has printed something and requires that nothing
// of it is left on any node while its mpirun-vft waits.
func suspend(t *testing.T, c *cluster, m *mpirun, job string) {
	t.Helper()
	begun := time.Now()
	c.vft(t, "job", "suspend", job, "--reason", "others need the nodes")
	t.Logf("suspended within %s", time.Since(begun).Round(10*time.Millisecond))
	noGuests(t, job)
	v := c.job(t, job)
	if v.Phase != "JOB_PHASE_SUSPENDED" || len(v.Guests) != 0 {
		t.Errorf("suspended: phase %s, guests %v", v.Phase, v.Guests)
	}
	select {
	case <-m.ended:
		t.Fatalf("mpirun-vft did not wait: exit code %d", m.wait())
	default:
	}
}

// resume has a suspended job go on and returns what the event says.
func resume(t *testing.T, c *cluster, m *mpirun, job string, extra ...string) event {
	t.Helper()
	begun := time.Now()
	c.vft(t, append([]string{"job", "resume", job}, extra...)...)
	r := m.await("restarted")
	t.Logf("went on within %s: %s", time.Since(begun).Round(10*time.Millisecond), r.Text)
	if r.Figures["epoch"] == 0 {
		t.Error("it began anew")
	}
	return r
}

// TestSuspend: a job gives its nodes back after a checkpoint and goes on later,
// on others. The program notices nothing, and no restart is counted.
func TestSuspend(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "1500", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	shared.vft(t, "ckpt", "take", e.Job)
	var left []string
	for _, g := range shared.job(t, e.Job).Guests {
		left = append(left, g.Node)
	}
	suspend(t, shared, m, e.Job)

	var others []string
	for n, state := range shared.states(t) {
		if state == "NODE_STATE_ALIVE" && !slices.Contains(left, n) {
			others = append(others, n)
		}
	}
	resume(t, shared, m, e.Job, "--nodes", strings.Join(others, ","))
	for _, g := range shared.job(t, e.Job).Guests {
		if !slices.Contains(others, g.Node) {
			t.Errorf("guest %d is on %s, want one of %v", g.Index, g.Node, others)
		}
	}
	m.verified(1500, 250)
	if v := shared.job(t, e.Job); v.Restarts != 0 {
		t.Errorf("%d restarts are counted, want none", v.Restarts)
	}
}

// TestSuspendedThroughPowerOff: every node loses power while a job is
// suspended. It waits for them as long as it takes and goes on when it is asked
// to, not before.
func TestSuspendedThroughPowerOff(t *testing.T) {
	c := ownCluster(t, "--nodes", "2", "--replicas", "1")
	m := start(t, options{cluster: c, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "1000", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	suspend(t, c, m, e.Job)
	for _, n := range []string{"n2", "n1"} { // n1 is the coordinator
		c.kill(t, n)
	}
	for _, n := range []string{"n1", "n2"} {
		c.revive(t, n)
	}
	if v := c.job(t, e.Job); v.Phase != "JOB_PHASE_SUSPENDED" {
		t.Errorf("after the nodes came back the job is %s", v.Phase)
	}
	resume(t, c, m, e.Job)
	m.verified(1000, 250)
}
