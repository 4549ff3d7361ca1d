//go:build e2e

package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDaemonRefuses: a daemon that cannot run as configured says so in a clear
// line and ends with the documented code, changing nothing; and a cluster that
// does not answer is not waited for without end.
func TestDaemonRefuses(t *testing.T) {
	c := ownCluster(t, "--nodes", "1")
	c.lab(t, "kill", "n1")
	config := filepath.Join(c.dir, "n1", "node.json")
	var node struct{ Sidecar, Data string }
	data, err := os.ReadFile(config)
	if err == nil {
		err = json.Unmarshal(data, &node)
	}
	if err != nil {
		t.Fatal(err)
	}
	refuses := func(t *testing.T, says string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "vft"), "sidecar", "--config", config)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 78 {
			t.Errorf("exit code %d, want 78", code)
		}
		if !strings.Contains(string(out), says) {
			t.Errorf("%q does not say %q", out, says)
		}
	}
	t.Run("port taken", func(t *testing.T) {
		l, err := net.Listen("tcp", node.Sidecar)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // nothing is written
		refuses(t, "address already in use")
	})
	t.Run("state of another version", func(t *testing.T) {
		format := filepath.Join(c.dir, "n1", node.Data, "store", "format")
		good, err := os.ReadFile(format)
		if err != nil {
			t.Fatal(err)
		}
		const other = "vft checkpoint store 999\n"
		if err := os.WriteFile(format, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, "store 999")
		if now, err := os.ReadFile(format); err != nil || string(now) != other {
			t.Errorf("the refused store was changed: %q (%v)", now, err)
		}
		if err := os.WriteFile(format, good, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("cluster does not answer", func(t *testing.T) {
		m := start(t, options{cluster: c, args: heat("openmpi", "100", "100", "100")})
		if code := m.wait(); code != 69 {
			t.Errorf("exit code %d, want 69", code)
		}
		if !strings.Contains(m.errOut(), "coordinator") {
			t.Errorf("%q does not name the coordinator", m.errOut())
		}
	})
}

// TestNamespaces: nodes with network namespaces and addresses of their own: a
// job survives the partition of one, and nothing is left of them.
func TestNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	before := namespaces(t)
	c, err := newCluster(filepath.Join(t.TempDir(), "lab"), "--nodes", "3", "--netns")
	if err != nil {
		t.Fatal(err)
	}
	down := false
	t.Cleanup(func() {
		if !down {
			c.showLogs(t)
			_ = c.down()
		}
	})
	m := faultJob(t, c, "openmpi")
	e := m.await("checkpoint")
	victim := otherThan(t, c, m, e.Job, c.leader(t))
	c.lab(t, "partition", victim)
	m.await("restarted")
	c.lab(t, "heal", victim)
	faultJobVerified(m)
	eventually(t, "the healed node is alive", func() bool { return c.states(t)[victim] == "NODE_STATE_ALIVE" })
	if err := c.down(); err != nil {
		t.Fatal(err)
	}
	down = true
	if after := namespaces(t); after != before {
		t.Errorf("network namespaces are left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func namespaces(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
