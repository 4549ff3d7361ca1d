//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sharedRules has the shared cluster's nodes look at their memory each second.
const sharedRules = `
version: 1
probes:
  edac: {every: 1s, limit: 1s}
`

// memoryErrors sets the count of uncorrected errors of a DIMM of a node's machine.
func (c *cluster) memoryErrors(t *testing.T, node, count string) {
	t.Helper()
	dir := filepath.Join(c.dir, node, "machine/sys/devices/system/edac/mc/mc0/dimm1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"dimm_ue_count": count, "dimm_ce_count": "0", "dimm_label": "A1"} {
		if err := os.WriteFile(filepath.Join(dir, file+".new"), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, file+".new"), filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
}

// health is a node's verdict about itself.
func (c *cluster) health(t *testing.T, node string) string {
	t.Helper()
	var v struct{ Health struct{ State string } }
	if err := json.Unmarshal(c.vft(t, "--json", "node", "show", node), &v); err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(strings.TrimPrefix(v.Health.State, "HEALTH_STATE_"))
}

// TestSickNode: the memory of a node that has two guests of a job shows
// uncorrected errors. Both leave it while the job runs, and the program notices
// nothing.
func TestSickNode(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "3000", "250")...)})
	e := m.await("started")
	m.awaitOutput("iteration 250 ")
	node := shared.nodeOf(t, e.Job, 1)
	migrate(t, shared, e.Job, 0, node)
	t.Cleanup(func() {
		shared.memoryErrors(t, node, "0")
		eventually(t, "node "+node+" is healthy again", func() bool { return shared.health(t, node) == "healthy" })
	})
	begun := time.Now()
	shared.memoryErrors(t, node, "1")
	eventually(t, "node "+node+" is empty", func() bool {
		for _, g := range shared.job(t, e.Job).Guests {
			if g.Node == node {
				return false
			}
		}
		return true
	})
	t.Logf("from the count to the empty node: %s", time.Since(begun).Round(10*time.Millisecond))
	if h := shared.health(t, node); h != "failing" {
		t.Errorf("node %s is %s", node, h)
	}
	why := string(shared.vft(t, "job", "why", e.Job))
	t.Logf("%s", why)
	for _, want := range []string{"DIMM mc0/dimm1 A1: 1 uncorrected errors since boot", "decided to migrate the guests there", "chosen", "guest 0 migrated from " + node, "guest 1 migrated from " + node} {
		if !strings.Contains(why, want) {
			t.Errorf("vft job why does not say %q", want)
		}
	}
	if scores := string(shared.vft(t, "health", "scores")); !strings.Contains(scores, "memory-uncorrected") {
		t.Errorf("vft health scores does not know the rule:\n%s", scores)
	}
	m.verified(3000, 250)
	if n := m.count("restarted"); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
}
