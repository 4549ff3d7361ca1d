package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/vm/qmp"
)

// fakeQEMU behaves as a QEMU's monitor does during snapshots, with the
// differences between versions as switches.
type fakeQEMU struct {
	autoResume  bool   // 7.2: a background snapshot runs the guest itself
	refuseCap   string // capability that is refused
	failMigrate string // error of the migration
	earlyStop   bool   // pre-copy stops by itself
	secondPass  bool   // pre-copy begins another pass while the guest runs
	stream      int    // bytes of the stream
	finishLag   int    // status queries in finish-migrate after completion

	mu       sync.Mutex
	conn     net.Conn
	state    RunState
	mig      string
	caps     map[string]bool
	desc     string
	passes   int
	conts    int
	cancels  int
	contTo   chan struct{}
	cancel   chan struct{}
	wg       sync.WaitGroup
	commands []string
}

// fakeMachine is a Machine whose monitor is q; its process is our own.
func fakeMachine(t *testing.T, q *fakeQEMU) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "vft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ours, theirs := net.Pipe()
	q.conn, q.state, q.mig, q.caps = ours, StateRunning, migNone, map[string]bool{}
	q.wg.Go(q.serve)
	mon, err := qmp.New(t.Context(), theirs, nil)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := openPidfd(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "fake", Dir: dir, MemoryMiB: 64, CPUs: 1}.withDefaults()
	m := newMachine(spec, "qemu", slog.New(slog.DiscardHandler), &process{pid: os.Getpid(), pidfd: pidfd, gone: make(chan struct{})})
	m.mon = mon
	t.Cleanup(func() {
		_ = m.Close()
		_ = ours.Close()
		q.wg.Wait()
	})
	return m
}

func (q *fakeQEMU) send(format string, a ...any) {
	_, _ = io.WriteString(q.conn, fmt.Sprintf(format, a...)+"\n")
}

// event must be called with q.mu held.
func (q *fakeQEMU) event(name, data string) {
	now := time.Now()
	q.send(`{"event": %q, "data": %s, "timestamp": {"seconds": %d, "microseconds": %d}}`, name, data, now.Unix(), now.Nanosecond()/1000)
}

func (q *fakeQEMU) setState(s RunState) {
	was := q.state
	q.state = s
	if was == StateRunning && s != StateRunning {
		q.event("STOP", "{}")
	}
	if was != StateRunning && s == StateRunning {
		q.event("RESUME", "{}")
	}
}

func (q *fakeQEMU) setMig(s string) {
	q.mig = s
	q.event("MIGRATION", fmt.Sprintf(`{"status": %q}`, s))
}

func (q *fakeQEMU) serve() {
	q.send(`{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}}}`)
	r := bufio.NewReader(q.conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var c struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
			ID        uint64          `json:"id"`
		}
		if err := json.Unmarshal(line, &c); err != nil {
			return
		}
		q.mu.Lock()
		q.commands = append(q.commands, c.Execute)
		ret, fail := q.command(c.Execute, c.Arguments)
		if fail != "" {
			q.send(`{"error": {"class": "GenericError", "desc": %q}, "id": %d}`, fail, c.ID)
		} else {
			q.send(`{"return": %s, "id": %d}`, ret, c.ID)
		}
		q.mu.Unlock()
	}
}

func (q *fakeQEMU) command(name string, args json.RawMessage) (ret, fail string) {
	switch name {
	case "query-status":
		if q.state == StateFinish && q.mig == migCompleted {
			if q.finishLag--; q.finishLag < 0 {
				q.state = StatePostmig
			}
		}
		return fmt.Sprintf(`{"status": %q}`, q.state), ""
	case "stop":
		if q.state == StateRunning {
			q.setState(StatePaused)
		}
	case "cont":
		if q.state == StateFinish {
			return "", "Migration is not finalized yet"
		}
		q.conts++
		if q.secondPass && q.mig == migActive {
			q.passes++
		}
		q.setState(StateRunning)
	case "migrate-set-capabilities":
		var a struct {
			Capabilities []struct {
				Capability string
				State      bool
			}
		}
		_ = json.Unmarshal(args, &a)
		for _, c := range a.Capabilities {
			if c.State && c.Capability == q.refuseCap {
				return "", "Background-snapshot is not supported by host kernel"
			}
			q.caps[c.Capability] = c.State
		}
	case "query-migrate":
		return fmt.Sprintf(`{"status": %q, "error-desc": %q, "ram": {"dirty-sync-count": %d, "page-size": 4096}}`, q.mig, q.desc, q.passes), ""
	case "migrate":
		var a struct{ URI string }
		_ = json.Unmarshal(args, &a)
		q.contTo, q.cancel = make(chan struct{}), make(chan struct{})
		q.passes = 0
		q.setMig("setup")
		q.wg.Go(func() { q.migrate(strings.TrimPrefix(a.URI, "unix:")) })
	case "migrate_cancel":
		q.cancels++
		if q.mig == "active" || q.mig == migPreSwitch {
			q.mig = "cancelling"
			close(q.cancel)
		}
	case "migrate-continue":
		close(q.contTo)
	}
	return "{}", ""
}

func (q *fakeQEMU) with(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

func (q *fakeQEMU) cancelled(conn net.Conn) {
	_ = conn.Close()
	q.with(func() {
		if q.state == StateFinish {
			q.setState(StateRunning)
		}
		q.setMig(migCancelled)
	})
}

// migrate plays the migration thread.
func (q *fakeQEMU) migrate(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		q.with(func() { q.desc = err.Error(); q.setMig(migFailed) })
		return
	}
	defer func() { _ = conn.Close() }()
	conts := 0
	q.with(func() { conts = q.conts; q.passes = 1; q.setMig("active") })
	if q.failMigrate != "" {
		_ = conn.Close()
		q.with(func() { q.desc = q.failMigrate; q.setMig(migFailed) })
		return
	}
	if q.caps["background-snapshot"] && q.autoResume {
		q.with(func() { q.setState(StateRunning) })
	}
	_, _ = conn.Write(make([]byte, q.stream/2))
	if q.caps["pause-before-switchover"] {
		// The held stream keeps QEMU busy while the guest stands still at first.
		for stopped := false; !stopped; {
			q.with(func() {
				ran := q.conts > conts
				stopped = ran && (q.earlyStop || q.state != StateRunning)
			})
			select {
			case <-q.cancel:
				q.cancelled(conn)
				return
			case <-time.After(time.Millisecond):
			}
		}
		q.with(func() { q.setState(StateFinish); q.setMig(migPreSwitch) })
		select {
		case <-q.contTo:
		case <-q.cancel:
			q.cancelled(conn)
			return
		}
	}
	_, _ = conn.Write(make([]byte, q.stream-q.stream/2))
	select {
	case <-q.cancel:
		q.cancelled(conn)
		return
	default:
	}
	_ = conn.Close()
	q.with(func() {
		if !q.caps["background-snapshot"] {
			q.state = StateFinish
		}
		q.setMig(migCompleted)
	})
}

// path is the snapshot socket of a machine.
func snapPath(m *Machine) string { return filepath.Join(m.spec.Dir, sockSnap) }

// noLeaks checks at the end of the test, after its other clean-up.
func noLeaks(t *testing.T) {
	t.Helper()
	now := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, now) })
}
