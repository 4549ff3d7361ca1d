package wrapper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestMain(m *testing.M) {
	code := m.Run()
	for try := 0; code == 0; try++ { // a busy machine needs longer than goleak allows
		err := goleak.Find()
		if err == nil {
			break
		}
		if try == 50 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		time.Sleep(100 * time.Millisecond)
	}
	os.Exit(code)
}

// syncBuffer is a buffer that a test may read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) Close() error { return nil }

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// running is a call of Run against a fake cluster.
type running struct {
	*fakeCluster
	cmd            *Command
	deps           Deps
	stdout, stderr syncBuffer
	signals        chan os.Signal
	done           chan struct{}
	code           int
	err            error
}

func prepare(t *testing.T, line string) *running {
	t.Helper()
	p := parserIn(t)
	cmd, err := p.Parse(strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Cluster = "fake"
	r := &running{fakeCluster: newFakeCluster(t), cmd: cmd, signals: make(chan os.Signal, 4), done: make(chan struct{})}
	r.deps = Deps{
		Cluster: func(context.Context, *Command, *Plan) (*Connection, func(), error) {
			return r.connection(), func() {}, nil
		},
		Stage: func(_ context.Context, req StageRequest, w io.Writer) ([]string, error) {
			_, err := io.WriteString(w, strings.Join(req.Programs, ",")+strings.Repeat("x", 600<<10))
			return nil, err
		},
		Stdout: &r.stdout, Stderr: &r.stderr, Signals: r.signals, Hostname: "login", TempDir: t.TempDir(),
		Timing: Timing{
			Renew: 20 * time.Millisecond, Retry: 50 * time.Millisecond, Contact: 5 * time.Second, Patience: 5 * time.Second, Collect: 3 * time.Second,
			StopGrace: 5 * time.Second, Abandon: 200 * time.Millisecond, End: 2 * time.Second,
		},
	}
	return r
}

func (r *running) start() {
	go func() {
		defer close(r.done)
		r.code, r.err = Run(r.t.Context(), r.cmd, r.deps)
	}()
}

// result waits for the end and checks the exit code and stdout.
func (r *running) result(code int, stdout string) {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		r.t.Fatal("Run does not return")
	}
	if r.code != code {
		r.t.Errorf("exit code %d (%v), want %d", r.code, r.err, code)
	}
	if got := r.stdout.String(); got != stdout {
		r.t.Errorf("stdout %q, want %q", got, stdout)
	}
}

func (r *running) says(text string) {
	r.t.Helper()
	if got := r.stderr.String(); strings.Count(got, text) != 1 {
		r.t.Errorf("stderr has not once %q:\n%s", text, got)
	}
}

func (r *running) file(name, text string) {
	r.t.Helper()
	got, err := os.ReadFile(filepath.Join(r.cmd.Dir, name))
	if err != nil || string(got) != text {
		r.t.Errorf("file %s: %q, %v; want %q", name, got, err, text)
	}
}

func TestRunToTheEnd(t *testing.T) {
	r := prepare(t, "-np 4 --host node0:2,node1:2 --vft-interval 5s --vft-events x ./ompi a")
	var events syncBuffer
	r.deps.Events = func(string) (io.WriteCloser, error) { return &events, nil }
	r.files[0] = []fakeFile{{name: "out/zero", text: strings.Repeat("0", 5000)}, {name: "both", text: "from 0"}}
	r.files[1] = []fakeFile{{name: "one", text: "1"}, {name: "both", text: "from 1"}, {name: "ln", text: "one", link: true}}
	r.start()
	r.begin(0)
	r.print("hello\n")
	r.printErr("oops\n")
	r.print("bye\n")
	r.exit(3)
	r.end()
	r.result(3, "hello\nbye\n")
	if r.err != nil {
		t.Errorf("a program that fails is no error of ours: %v", r.err)
	}
	r.says("oops\n")
	r.says("vft: booted 2 guests in 3.1 s\n")
	r.file("out/zero", strings.Repeat("0", 5000))
	r.file("both", "from 0")
	r.file("one", "1")
	if to, err := os.Readlink(filepath.Join(r.cmd.Dir, "ln")); to != "one" {
		t.Errorf("symbolic link leads to %q, %v", to, err)
	}
	spec := r.job.GetSpec()
	if want := "/usr/bin/mpirun.openmpi --host guest0:2,guest1:2 -np 4 ./ompi a"; strings.Join(spec.GetArgv(), " ") != want {
		t.Errorf("argv %q, want %q", spec.GetArgv(), want)
	}
	if spec.GetGuests()[0].GetNode() != "node0" || spec.GetGuests()[1].GetNode() != "node1" || !spec.GetClientBound() ||
		spec.GetInterval() != int64(5*time.Second) || spec.GetCommit() != "partner" || spec.GetKeep() != 2 || spec.GetCpus() != 2 || spec.GetMemoryMib() != 512 || spec.GetImage() != "img" {
		t.Errorf("spec %v", spec)
	}
	if r.blobs[spec.GetStage().GetDigest()] != 2 {
		t.Errorf("uploads %v of %v, want 2", r.blobs, spec.GetStage())
	}
	if r.finished.GetCode() != 3 {
		t.Errorf("reported exit %v", r.finished)
	}
	var kinds []string
	for line := range strings.Lines(events.String()) {
		var e EventLine
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
	}
	if got := strings.Join(kinds, " "); got != "submitted booted ended" {
		t.Errorf("events %q", got)
	}
}

func TestReplayedOutputIsShownOnce(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.print("step 1\n")
	r.checkpoint()
	r.print("step 2\n")
	r.shown()
	r.restart(1)
	r.print("step 2\nstep 3\n")
	r.exit(0)
	r.end()
	r.result(0, "step 1\nstep 2\nstep 3\n")
	r.says("vft: restarted from checkpoint\n")
	r.says("vft: checkpoint 1 committed in 40 ms\n")
	if strings.Contains(r.stderr.String(), "differs") {
		t.Errorf("identical output is said to differ: %s", r.stderr.String())
	}
}

func TestDifferingOutputIsTold(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.print("at 10:00\n")
	r.shown()
	r.restart(1)
	r.print("at 10:05\nend\n")
	r.exit(0)
	r.end()
	r.result(0, "at 10:00\n5\nend\n")
	r.says("vft: output after the restart differs from what was shown at byte 7 of stdout\n")
}

func TestOutputThatEndsEarlierIsTold(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.print("a long account\n")
	r.shown()
	r.restart(1)
	r.print("a long")
	r.exit(0)
	r.end()
	r.result(0, "a long account\n")
	r.says("differs from what was shown at byte 6 of stdout")
}

func TestQuiet(t *testing.T) {
	r := prepare(t, "-np 2 --vft-quiet ./ompi")
	r.start()
	r.begin(0)
	r.print("x")
	r.printErr("only this")
	r.shown()
	r.checkpoint()
	r.restart(1)
	r.print("y")
	r.exit(0)
	r.end()
	r.result(0, "xy")
	if got := r.stderr.String(); got != "only this" {
		t.Errorf("stderr %q", got)
	}
}

func TestInputIsGivenAgain(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	input := strings.Repeat("0123456789", 60000)
	r.deps.Stdin = strings.NewReader(input)
	r.start()
	r.begin(0)
	r.locked(func() { r.program.takes = 100000 })
	r.until("the first input", func() bool { return len(r.program.in) == 100000 })
	r.checkpoint()
	r.locked(func() { r.program.takes = 400000 })
	r.until("more input", func() bool { return len(r.program.in) == 400000 })
	r.restart(1)
	r.locked(func() { r.program.takes = 1 << 30 })
	r.until("the end of the input", func() bool { return r.program.inEnd })
	r.locked(func() {
		if string(r.program.in) != input {
			t.Errorf("got %d bytes of input, want the %d given", len(r.program.in), len(input))
		}
	})
	r.exit(0)
	r.end()
	r.result(0, "")
}

// countingReader counts what is read of it.
type countingReader struct {
	mu sync.Mutex
	n  int
}

func (c *countingReader) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(p)
	return len(p), nil
}

func TestInputIsNotReadUnlessWanted(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	in := &countingReader{}
	r.deps.Stdin = in
	r.start()
	r.begin(0)
	r.print("x")
	r.shown()
	r.exit(0)
	r.end()
	r.result(0, "x")
	if in.n != 0 {
		t.Errorf("%d bytes of stdin were read and nobody wanted any", in.n)
	}
}

func TestBrokenStreamAndNewLeader(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.leader = 1 // the first asked is a follower
	r.start()
	r.begin(0)
	for i := range 6 {
		r.print("line\n")
		r.shown()
		r.locked(func() { r.drops = 1; r.leader = i % 2 })
	}
	r.checkpoint()
	r.exit(0)
	r.end()
	r.result(0, strings.Repeat("line\n", 6))
	r.says("checkpoint 1 committed")
}

func TestFinishRefused(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.refuse = 1
	r.start()
	r.begin(0)
	r.print("a\n")
	r.shown()
	r.checkpoint()
	r.exit(1) // a node was lost, which mpirun noticed first
	r.until("the refusal", func() bool { return r.refuse == 0 })
	r.restart(1)
	r.print("b\n")
	r.exit(0)
	r.end()
	r.result(0, "a\nb\n")
}

func TestFilesComeBackAtCheckpoints(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.files[0] = []fakeFile{{name: "result", text: "half"}}
	r.start()
	r.begin(0)
	r.checkpoint()
	r.until("a collection", func() bool {
		got, _ := os.ReadFile(filepath.Join(r.cmd.Dir, "result"))
		return string(got) == "half"
	})
	r.locked(func() { r.files[0] = []fakeFile{{name: "result", text: "whole"}} })
	r.exit(0)
	r.end()
	r.result(0, "")
	r.file("result", "whole")
}

// TestFilesOfGuestsThatMoved: a guest changed its node after the streams were
// attached to. Its files are where it is now.
func TestFilesOfGuestsThatMoved(t *testing.T) {
	r := prepare(t, "-np 4 ./ompi")
	r.files[1] = []fakeFile{{name: "result", text: "whole"}}
	r.start()
	r.begin(0)
	r.print("a\n")
	r.shown()
	move := func(node string) {
		r.locked(func() {
			r.job.Guests = []*vftv1.Guest{r.job.GetGuests()[0], {Index: 1, Node: node}}
			r.event("migrated", "guest 1 migrated to "+node)
		})
	}
	move("node0")
	r.exit(0)
	r.end()
	r.result(0, "a\n")
	r.file("result", "whole")
}

func TestFilesThatCannotBeWritten(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(r.cmd.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	r.files[0] = []fakeFile{{name: "link/evil", text: "x"}, {name: "../evil", text: "x"}, {name: "good", text: "y"}}
	r.start()
	r.begin(0)
	r.exit(0)
	r.end()
	r.result(ExitFiles, "")
	r.file("good", "y")
	if r.err == nil || !strings.Contains(r.err.Error(), "symbolic link") {
		t.Errorf("error %v", r.err)
	}
	if _, err := os.Stat(filepath.Join(outside, "evil")); err == nil {
		t.Error("a file was written through a symbolic link")
	}
	if _, err := os.Stat(filepath.Join(r.cmd.Dir, "../evil")); err == nil {
		t.Error("a file was written outside the working directory")
	}
}

func TestFirstSignalLetsTheProgramEnd(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		r := prepare(t, "-np 2 ./ompi")
		r.start()
		r.begin(0)
		r.print("working\n")
		r.shown()
		r.signals <- sig
		r.until("a request to stop", func() bool { return len(r.stops) == 1 && !r.stops[0] })
		r.locked(func() {
			r.job.Phase = vftv1.JobPhase_JOB_PHASE_STOPPING
			r.program.out = append(r.program.out, "cleaning up\n"...)
			r.exitLocked(0, 15)
		})
		r.end()
		r.result(code, "working\ncleaning up\n")
	}
}

func TestSecondSignalLeavesAtOnce(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	stuck, hold := io.Pipe() // nobody reads stdout
	r.deps.Stdout = hold
	t.Cleanup(func() { _ = stuck.Close() })
	r.start()
	r.begin(0)
	r.print("lost\n")
	r.signals <- syscall.SIGINT
	r.until("a request to stop", func() bool { return len(r.stops) == 1 })
	r.signals <- syscall.SIGINT
	began := time.Now()
	r.result(130, "")
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %s", d)
	}
	r.until("a request to stop now", func() bool { return len(r.stops) == 2 && r.stops[1] })
	_ = stuck.Close() // lets the write end before leaks are looked for
}

func TestSignalBeforeTheJobExists(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	staging := make(chan struct{})
	r.deps.Stage = func(ctx context.Context, _ StageRequest, _ io.Writer) ([]string, error) {
		close(staging)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r.start()
	<-staging
	r.signals <- syscall.SIGTERM
	r.result(143, "")
	if r.job != nil {
		t.Error("a job was submitted")
	}
}

func TestOtherSignalsArePassedOn(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.print("x")
	r.shown()
	r.signals <- syscall.SIGUSR1
	r.until("the signal", func() bool {
		return len(r.fakeCluster.signals) == 1 && r.fakeCluster.signals[0] == int32(syscall.SIGUSR1)
	})
	r.exit(0)
	r.end()
	r.result(0, "x")
}

func TestProgramKilledBySignal(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.locked(func() { r.exitLocked(0, 9) })
	r.end()
	r.result(137, "")
}

func TestEndsFromElsewhere(t *testing.T) {
	for _, tt := range []struct {
		exit *vftv1.Exit
		code int
		says string
	}{
		{&vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_FAILED, Message: "node1 lost and no node left"}, ExitFailed, "no node left"},
		{&vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_STOPPED, Message: "operator"}, ExitStopped, "operator"},
		{&vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE}, ExitClientGone, "heard nothing"},
		{&vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM, Code: 4}, 4, ""},
	} {
		r := prepare(t, "-np 2 ./ompi")
		r.start()
		r.begin(0)
		r.locked(func() { r.job.Phase, r.job.Exit = vftv1.JobPhase_JOB_PHASE_ENDED, tt.exit })
		r.result(tt.code, "")
		if (r.err != nil) != (tt.says != "") || r.err != nil && !strings.Contains(r.err.Error(), tt.says) {
			t.Errorf("error %v, want one with %q", r.err, tt.says)
		}
	}
}

func TestStoppedElsewhereWhileItEnds(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.start()
	r.begin(0)
	r.exit(143)
	r.until("the program's end to be reported", func() bool { return r.finished != nil })
	r.locked(func() {
		r.job.Phase = vftv1.JobPhase_JOB_PHASE_ENDED
		r.job.Exit = &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_STOPPED, Code: 143, Message: "vft stop"}
	})
	r.result(ExitStopped, "")
}

// brokenPipe fails like a closed pipe.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Err: syscall.EPIPE}
}

func TestClosedStdoutEndsTheJob(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.deps.Stdout = brokenPipe{}
	r.start()
	r.begin(0)
	r.print("y\n")
	r.result(141, "")
	if len(r.stops) != 1 {
		t.Errorf("requests to stop: %v", r.stops)
	}
}

func TestNobodyAnswers(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.leader = -1
	r.deps.Timing.Contact = 200 * time.Millisecond
	r.start()
	r.result(ExitUnavailable, "")
	if r.err == nil || !strings.Contains(r.err.Error(), "no coordinator answers") {
		t.Errorf("error %v", r.err)
	}
}

func TestEmbeddedTellsBadCommandsFirst(t *testing.T) {
	r := prepare(t, "-np 99 ./ompi")
	r.cmd.Cluster = ""
	r.deps.CPUs = 2
	r.deps.Cluster = func(context.Context, *Command, *Plan) (*Connection, func(), error) {
		t.Error("a cluster was started")
		return nil, nil, errors.New("no")
	}
	r.start()
	r.result(ExitSlots, "")
}

func TestStreamsThatNoRestartNeedsAreLetGo(t *testing.T) {
	r := prepare(t, "-np 2 ./ompi")
	r.deps.Timing.SpoolLimit = 1
	r.start()
	r.begin(0)
	r.print("before\n")
	r.shown()
	seen := r.renewals
	r.until("a look at the streams", func() bool { return r.renewals > seen+3 })
	r.checkpoint() // began after the look
	r.print("after\n")
	r.shown()
	r.restart(1)
	r.print("after\nend\n")
	r.exit(0)
	r.end()
	r.result(0, "before\nafter\nend\n")
}
