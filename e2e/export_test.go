//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/daemon"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/transport"
)

// TestExport: a checkpoint is tried in guests that are thrown away, leaves its
// cluster through a file, and the job goes on from it in another cluster, of one
// node, to its verified end. A file that is cut off or turned is not taken.
func TestExport(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-interval", "0"}, heat("openmpi", "200", "1500", "250")...)})
	job := m.await("started").Job
	m.awaitOutput("iteration 250 ")
	shared.vft(t, "ckpt", "take", job)
	shared.vft(t, "ckpt", "pin", job, "last", "--name", "move")
	shared.vft(t, "job", "stop", "--now", job)
	m.wait()
	noGuests(t, job)

	var verdicts []struct{ Level, Node, Took, Bytes string }
	if err := json.Unmarshal(shared.vft(t, "--json", "ckpt", "verify", "--boot", job, "move"), &verdicts); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, v := range verdicts {
		if v.Level == "boot" {
			tried++
			t.Logf("restored on %s in %s ns, %s bytes", v.Node, v.Took, v.Bytes)
			if v.Took == "0" || v.Bytes == "0" {
				t.Errorf("%+v", v)
			}
		}
	}
	if tried != 2 {
		t.Errorf("%d guests were tried, want 2: %+v", tried, verdicts)
	}
	if left := pids(t, "qemu-system", "trial-"+job); len(left) > 0 {
		t.Errorf("guests that were tried are left: %v", left)
	}

	dir := t.TempDir()
	file := filepath.Join(dir, "heat.vft")
	begun := time.Now()
	shared.vft(t, "ckpt", "export", job, "move", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %s", len(whole), time.Since(begun))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}

	to := ownCluster(t, "--nodes", "1")
	cut, turned := filepath.Join(dir, "cut"), filepath.Join(dir, "turned")
	bad := slices.Clone(whole)
	bad[len(bad)/2] ^= 16
	for path, content := range map[string][]byte{cut: whole[:len(whole)-1], turned: bad} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := to.try("ckpt", "import", path)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 65 || !strings.Contains(err.Error(), "damaged at byte") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := to.try("job", "show", job); err == nil {
		t.Error("a damaged file made its job known")
	}
	begun = time.Now()
	to.vft(t, "ckpt", "import", file, "--resume", "--nodes", "n1")
	t.Logf("imported and running after %s", time.Since(begun))
	out := follow(t, to, job)
	if !strings.Contains(out, "Verification SUCCESSFUL\n") || !strings.Contains(out, "iteration 1500 ") {
		t.Errorf("the job printed:\n%s", out)
	}
	to.vft(t, "job", "stop", job)
	noGuests(t, job)
	var jobs []struct{ Spec struct{ Owner string } }
	if err := json.Unmarshal(to.vft(t, "--json", "job", "ls", "--all"), &jobs); err != nil || len(jobs) != 1 || jobs[0].Spec.Owner != "admin:lab" {
		t.Errorf("%+v %v", jobs, err)
	}
}

// follow returns what the program of a job prints, from what the guest has kept
// on, when it has ended well.
func follow(t *testing.T, c *cluster, job string) string {
	t.Helper()
	conf, err := nodeconf.LoadCluster(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := conf.Identity()
	if err != nil {
		t.Fatal(err)
	}
	tls, err := id.TLS()
	if err != nil {
		t.Fatal(err)
	}
	ep := transport.New(tls, nil)
	defer ep.Close()
	var node struct{ Address string }
	if err := json.Unmarshal(c.vft(t, "--json", "node", "show", c.nodeOf(t, job, 0)), &node); err != nil {
		t.Fatal(err)
	}
	var incarnation uint64
	if _, err := fmt.Sscan(c.job(t, job).Incarnation, &incarnation); err != nil {
		t.Fatal(err)
	}
	stream := daemon.SidecarClient(ep)(node.Address).Attach(t.Context())
	defer func() { _, _ = stream.CloseRequest(), stream.CloseResponse() }()
	if err := stream.Send(&vftv1.AttachRequest{Job: job, Incarnation: incarnation}); err != nil {
		t.Fatal(err)
	}
	watch := time.AfterFunc(patience, func() { _ = stream.CloseResponse() })
	defer watch.Stop()
	var out strings.Builder
	for {
		m, err := stream.Receive()
		if err != nil {
			t.Fatalf("following the job: %v; so far it printed:\n%s", err, out.String())
		}
		if o := m.GetOutput(); o.GetStream() == vftv1.StreamKind_STREAM_KIND_STDOUT {
			out.Write(o.GetData())
		}
		if e := m.GetExit(); e != nil {
			if e.GetCode() != 0 || e.GetSignal() != 0 {
				t.Errorf("the program ended with code %d, signal %d", e.GetCode(), e.GetSignal())
			}
			return out.String()
		}
	}
}
