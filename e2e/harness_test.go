//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen on a busy machine.
const patience = 90 * time.Second

// bin is where `make build workloads` puts the programs.
var bin = func() string {
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
}()

// shared is the cluster that tests use unless they need one of their own.
var shared *cluster

func TestMain(m *testing.M) {
	for _, p := range []string{"vft", "mpirun-vft", "vft-guest", "heat.openmpi", "heat.mpich"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %s is missing: run `make image workloads` first\n", p)
			os.Exit(1)
		}
	}
	// Guests that a test leaves behind are its own bug: they are told apart
	// from others' by the lab's directories.
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "vft-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		endAllWhenKilled()
		rules := filepath.Join(dir, "rules.yaml")
		if err := os.WriteFile(rules, []byte(sharedRules), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if shared, err = newCluster(filepath.Join(dir, "lab"), "--nodes", "4", "--health-rules", rules); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if code != 0 && os.Getenv("VFT_E2E_KEEP") != "" {
			fmt.Fprintf(os.Stderr, "e2e: the cluster is kept: end it with `vft lab down --dir %s`\n", shared.dir)
			os.Exit(code)
		}
		if err := shared.down(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// endAllWhenKilled sees to it that nobody who interrupts the tests, and no
// time-out of go test, leaves labs and their guests running: they are
// processes of their own, which outlive this one.
func endAllWhenKilled() {
	killed := make(chan os.Signal, 1)
	signal.Notify(killed, syscall.SIGINT, syscall.SIGTERM)
	var late <-chan time.Time
	if f := flag.Lookup("test.timeout"); f != nil {
		if limit, err := time.ParseDuration(f.Value.String()); err == nil && limit > time.Minute {
			late = time.After(limit - 30*time.Second)
		}
	}
	go func() {
		why := "the tests' time is over"
		select {
		case s := <-killed:
			why = s.String()
		case <-late:
		}
		fmt.Fprintf(os.Stderr, "e2e: %s: ending what was started\n", why)
		for _, end := range running.all() {
			if err := end(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		os.Exit(1)
	}()
}

// running is what has been started and would outlive the tests: labs and
// mpirun-vft, each with what ends it.
var running = leftovers{end: map[any]func() error{}}

type leftovers struct {
	mu  sync.Mutex
	end map[any]func() error
}

func (l *leftovers) add(what any, end func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end[what] = end
}

func (l *leftovers) remove(what any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.end, what)
}

func (l *leftovers) all() []func() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.end))
}

// cluster is a lab.
type cluster struct {
	dir    string
	killed map[string]string // the sessions of nodes when they were killed
}

func newCluster(dir string, args ...string) (*cluster, error) {
	c := &cluster{dir: dir, killed: map[string]string{}}
	running.add(c, c.down)
	out, err := exec.Command(filepath.Join(bin, "vft"), append([]string{"lab", "up", "--dir", dir}, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("vft lab up: %w\n%s", err, out)
	}
	return c, nil
}

func (c *cluster) down() error {
	out, err := exec.Command(filepath.Join(bin, "vft"), "lab", "down", "--dir", c.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("vft lab down: %w\n%s", err, out)
	}
	running.remove(c)
	return nil
}

// ownCluster starts a cluster for one test.
func ownCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	c, err := newCluster(filepath.Join(t.TempDir(), "lab"), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.showLogs(t)
		}
		if err := c.down(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// vft runs a command against the cluster and returns its output.
func (c *cluster) vft(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := c.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) try(args ...string) ([]byte, error) {
	cmd := exec.Command(filepath.Join(bin, "vft"), append([]string{"--cluster", c.dir}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("vft %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

func (c *cluster) lab(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "vft"), append([]string{"lab", "--dir", c.dir}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("vft lab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// show is what the tests read of a job.
type jobView struct {
	Phase       string
	Incarnation string
	Restarts    int
	Guests      []struct {
		Index int
		Node  string
	}
	Epochs []struct {
		Number, State, Hold string
		Parts               []struct {
			Engine, Pause string
			Nodes         []string
		}
	}
	Operation struct{ Kind, Phase string }
}

func (c *cluster) job(t *testing.T, id string) jobView {
	t.Helper()
	var v jobView
	if err := json.Unmarshal(c.vft(t, "--json", "job", "show", id), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (c *cluster) nodeOf(t *testing.T, id string, guest int) string {
	t.Helper()
	for _, g := range c.job(t, id).Guests {
		if g.Index == guest {
			return g.Node
		}
	}
	t.Fatalf("job %s has no guest %d", id, guest)
	return ""
}

func (c *cluster) leader(t *testing.T) string {
	t.Helper()
	var v struct{ Leader string }
	if err := json.Unmarshal(c.vft(t, "--json", "status"), &v); err != nil {
		t.Fatal(err)
	}
	return v.Leader
}

// states returns the state of every node.
func (c *cluster) states(t *testing.T) map[string]string {
	t.Helper()
	var nodes []struct{ ID, State string }
	if err := json.Unmarshal(c.vft(t, "--json", "node", "ls"), &nodes); err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, n := range nodes {
		m[n.ID] = n.State
	}
	return m
}

// session is what a node is taken for, and which of its lives that is.
func (c *cluster) session(t *testing.T, node string) (state, id string) {
	t.Helper()
	var n struct{ State, Session string }
	if err := json.Unmarshal(c.vft(t, "--json", "node", "show", node), &n); err != nil {
		t.Fatal(err)
	}
	return n.State, n.Session
}

// kill kills a node that revive will start again.
func (c *cluster) kill(t *testing.T, node string) {
	t.Helper()
	// Asked before: with two replicas of three gone nobody answers.
	_, c.killed[node] = c.session(t, node)
	c.lab(t, "kill", node)
}

// revive starts a killed node again and waits until it is alive, also for the
// tests that come after.
func (c *cluster) revive(t *testing.T, node string) {
	t.Helper()
	c.lab(t, "start", node)
	eventually(t, "node "+node+" is alive", func() bool { // its lease may not have run out since it was killed
		state, now := c.session(t, node)
		return state == "NODE_STATE_ALIVE" && now != c.killed[node]
	})
}

func (c *cluster) showLogs(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "n*", "log"))
	for _, l := range logs {
		data, _ := os.ReadFile(l)
		t.Logf("--- %s\n%s", l, data[max(0, len(data)-6000):])
	}
}

// eventually waits for a condition that no event announces to this process.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after %s still not: %s", patience, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// event is a line of --vft-events.
type event struct {
	Job     string
	Kind    string
	Text    string
	Figures map[string]int64
	Labels  map[string]string
}

// mpirun is a running mpirun-vft.
type mpirun struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string
	events chan event
	ended  chan struct{}

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	history        []event
	err            error
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// options of start.
type options struct {
	cluster *cluster // nil: embedded
	dir     string   // "": a new directory
	stdin   string
	env     []string
	args    []string
}

// start runs mpirun-vft; its events arrive at the channel in order.
func start(t *testing.T, o options) *mpirun {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m := &mpirun{t: t, dir: o.dir, events: make(chan event, 1000), ended: make(chan struct{})}
	args := append([]string{"--vft-events", "fd:3", "--vft-memory", "256M"}, o.args...)
	m.cmd = exec.Command(filepath.Join(bin, "mpirun-vft"), args...)
	m.cmd.Dir = o.dir
	m.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "VFT_CLUSTER=") }), o.env...)
	if o.cluster != nil {
		m.cmd.Env = append(m.cmd.Env, "VFT_CLUSTER="+o.cluster.dir)
	}
	m.cmd.Stdin = strings.NewReader(o.stdin)
	m.cmd.Stdout = lockedWriter{&m.mu, &m.stdout}
	m.cmd.Stderr = lockedWriter{&m.mu, &m.stderr}
	m.cmd.ExtraFiles = []*os.File{w}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running.add(m, func() error { return m.cmd.Process.Signal(syscall.SIGTERM) })
	_ = w.Close()
	go func() {
		defer close(m.events)
		defer r.Close() //nolint:errcheck // nothing is written to it
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			var e event
			if json.Unmarshal(line, &e) != nil {
				continue
			}
			m.mu.Lock()
			m.history = append(m.history, e)
			m.mu.Unlock()
			m.events <- e
		}
	}()
	go func() {
		m.err = m.cmd.Wait()
		running.remove(m)
		close(m.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-m.ended:
		default:
			_ = m.cmd.Process.Signal(syscall.SIGTERM)
			_ = m.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-m.ended:
			case <-time.After(30 * time.Second):
				_ = m.cmd.Process.Kill()
				<-m.ended
			}
		}
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", m.out(), m.errOut())
			if o.cluster != nil {
				o.cluster.showLogs(t)
			}
		}
	})
	return m
}

func (m *mpirun) out() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stdout.String()
}

func (m *mpirun) errOut() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stderr.String()
}

// await returns the next event of the kind.
func (m *mpirun) await(kind string) event {
	m.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e, ok := <-m.events:
			if !ok {
				m.t.Fatalf("mpirun-vft ended before the event %q", kind)
			}
			if e.Kind == kind {
				return e
			}
		case <-timeout:
			m.t.Fatalf("no event %q within %s", kind, patience)
		}
	}
}

// awaitOutput waits until stdout holds the text.
func (m *mpirun) awaitOutput(text string) {
	m.t.Helper()
	eventually(m.t, "stdout has "+text, func() bool {
		select {
		case <-m.ended:
			if !strings.Contains(m.out(), text) {
				m.t.Fatalf("mpirun-vft ended without printing %q", text)
			}
		default:
		}
		return strings.Contains(m.out(), text)
	})
}

// wait returns the exit code.
func (m *mpirun) wait() int {
	m.t.Helper()
	select {
	case <-m.ended:
	case <-time.After(3 * patience):
		m.t.Fatalf("mpirun-vft did not end within %s", 3*patience)
	}
	var exit *exec.ExitError
	if m.err != nil && !errors.As(m.err, &exit) {
		m.t.Fatal(m.err)
	}
	return m.cmd.ProcessState.ExitCode()
}

// count returns how many events of a kind there were.
func (m *mpirun) count(kind string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, e := range m.history {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// verified requires that heat ended well and that its progress lines came
// once each and in order: nothing doubled, nothing lost (I8).
func (m *mpirun) verified(iterations, report int) {
	m.t.Helper()
	if code := m.wait(); code != 0 {
		m.t.Fatalf("exit code %d", code)
	}
	var want []string
	for i := report; i <= iterations; i += report {
		want = append(want, fmt.Sprint(i))
	}
	var got []string
	for line := range strings.Lines(m.out()) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "iteration" {
			got = append(got, f[1])
		}
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("progress lines %v, want %v", got, want)
	}
	if !strings.Contains(m.out(), "Verification SUCCESSFUL\n") {
		m.t.Error("heat did not verify")
	}
	if _, err := os.Stat(filepath.Join(m.dir, "heat.out")); err != nil {
		m.t.Errorf("the file that heat wrote did not come back: %v", err)
	}
}

// pids returns the processes whose command line contains all words.
func pids(t *testing.T, words ...string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, d := range dirs {
		data, err := os.ReadFile(d)
		if err != nil {
			continue
		}
		line := strings.ReplaceAll(string(data), "\x00", " ")
		ok := true
		for _, w := range words {
			ok = ok && strings.Contains(line, w)
		}
		var pid int
		if _, err := fmt.Sscanf(d, "/proc/%d/", &pid); ok && err == nil && pid != os.Getpid() {
			found = append(found, pid)
		}
	}
	return found
}

// qemu returns the process of a job's guest.
func qemu(t *testing.T, job string, guest int) int {
	t.Helper()
	found := pids(t, "qemu-system", fmt.Sprintf("vft-%s-%d", job, guest))
	if len(found) != 1 {
		t.Fatalf("job %s guest %d has QEMU processes %v, want one", job, guest, found)
	}
	return found[0]
}

// noGuests requires that nothing of the job runs any more.
func noGuests(t *testing.T, job string) {
	t.Helper()
	eventually(t, "no guest of job "+job+" is left", func() bool { return len(pids(t, "qemu-system", "vft-"+job)) == 0 })
}
