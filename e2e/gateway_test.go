//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// netserver builds the program of testdata into a new directory, which it returns.
func netserver(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "netserver"), "./testdata/netserver")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, out)
	}
	return dir
}

// freePort is a port of the loopback address that nobody had a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // nobody connected
	return ln.Addr().String()
}

// get asks a guest through a published port, each time on a new connection.
func get(address, path string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// TestGateway: a program in guest 0 is reached through a published port, also
// after the loss of its node, with what it knew at the checkpoint. It finds
// another guest by name and does not reach what is the node's own.
func TestGateway(t *testing.T) {
	local, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close() //nolint:errcheck // connections wait in its queue
	_, own, _ := net.SplitHostPort(local.Addr().String())
	port, second := freePort(t), freePort(t)
	m := start(t, options{cluster: shared, dir: netserver(t), args: []string{
		"--vft-interval", "0", "--vft-nodes", "2", "--vft-publish", port + ":guest0:80", "-np", "2", "./netserver",
	}})
	e := m.await("started")
	want := func(path, text string) {
		t.Helper()
		if got, err := get(port, path); err != nil || !strings.Contains(got, text) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, text)
		}
	}
	eventually(t, "the program is reached", func() bool {
		n, err := get(port, "/hits")
		return err == nil && n == "1"
	})
	want("/lookup?name=guest1.vft", "10.77.1.2")
	want("/lookup?name=world.example.", "no such host")
	want("/dial?to=10.77.0.2:"+own, "refused")
	shared.vft(t, "ckpt", "take", e.Job)
	want("/hits", "2")

	node := shared.nodeOf(t, e.Job, 0)
	shared.kill(t, node)
	m.await("restarted")
	eventually(t, "the program is reached on another node", func() bool {
		n, err := get(port, "/hits")
		if err == nil && n != "2" {
			t.Fatalf("it counts %s, want 2: it was 1 at the checkpoint", n)
		}
		return err == nil
	})
	want("/lookup?name=guest1.vft", "10.77.1.2")
	shared.revive(t, node)

	shared.vft(t, "net", "publish", e.Job, second+":guest1:80")
	if n, err := get(second, "/hits"); err != nil || n != "1" {
		t.Errorf("guest 1: %q, %v; want 1", n, err)
	}
	var shown []struct {
		Node    string
		Gateway struct {
			Ports []struct{ Error string }
		}
	}
	if err := json.Unmarshal(shared.vft(t, "--json", "net", "show", e.Job), &shown); err != nil {
		t.Fatal(err)
	}
	home, carriers := shared.nodeOf(t, e.Job, 0), 0
	for _, n := range shown {
		if len(n.Gateway.Ports) > 0 {
			carriers++
			if n.Node != home || len(n.Gateway.Ports) != 2 {
				t.Errorf("the gateway on %s has %d ports; want 2 on %s", n.Node, len(n.Gateway.Ports), home)
			}
		}
	}
	if carriers != 1 {
		t.Errorf("%d gateways, want one", carriers)
	}
	shared.vft(t, "net", "unpublish", e.Job, second)
	eventually(t, "the second port is closed", func() bool {
		_, err := get(second, "/hits")
		return err != nil
	})
	if _, err := get(port, "/quit"); err != nil {
		t.Log(err) // the program may be gone before it has answered
	}
	if code := m.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	noGuests(t, e.Job)
}

// TestGatewayAsked: with --vft-net-host, and only by that name, a guest
// reaches a service of the node, in the embedded cluster too.
func TestGatewayAsked(t *testing.T) {
	local, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close() //nolint:errcheck // connections wait in its queue
	_, port, _ := net.SplitHostPort(local.Addr().String())
	dir := netserver(t)
	args := []string{"--vft-interval", "0", "--vft-net-out", "--vft-net-host", "-np", "1", "./netserver", "host.vft:" + port}
	want := []string{"host.vft:" + port + " reached"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			at := fmt.Sprintf("%s:%s", n.IP, port)
			args, want = append(args, at), append(want, at+" dial tcp "+at+": connect: connection refused")
		}
	}
	m := start(t, options{dir: dir, args: args})
	if code := m.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, line := range want {
		if !strings.Contains(m.out(), line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
}
