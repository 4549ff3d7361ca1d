package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/agent"
	"github.com/mpirun-vft/vft/guest/serial"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs an agent below root at the end of an in-memory serial line and
// returns a client of it.
func serve(t *testing.T, root string) *guest.Client {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	line := newFakePort()
	l := serial.NewListener(line)
	ctx, cancel := context.WithCancel(context.Background())
	a := agent.New(agent.Config{Root: root, Version: "test", Index: 3, Size: 4})
	done := make(chan struct{}, 2)
	go func() { _ = l.Run(ctx); done <- struct{}{} }()
	go func() { _ = a.ServeSerial(l); done <- struct{}{} }()
	c := guest.NewClient(func(context.Context) (net.Conn, error) { return line.connect(), nil })
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		line.close()
		<-done
		<-done
	})
	return c
}

func start(t *testing.T, c *guest.Client, id string, argv ...string) {
	t.Helper()
	_, err := c.StartProcess(t.Context(), connect.NewRequest(&agentv1.StartProcessRequest{
		Id: id, Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", Home: "/",
	}))
	if err != nil {
		t.Fatal(err)
	}
}

// output reads a process's output to its exit.
func output(t *testing.T, c *guest.Client, req *agentv1.OutputRequest) (stdout, stderr []byte, exit *agentv1.ExitStatus, first uint64) {
	t.Helper()
	stream, err := c.Output(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	first = ^uint64(0)
	for stream.Receive() {
		if ch := stream.Msg().GetChunk(); ch.GetStream() == agentv1.Stream_STREAM_STDOUT {
			first = min(first, ch.GetOffset())
			stdout = append(stdout, ch.GetData()...)
		} else if ch != nil {
			stderr = append(stderr, ch.GetData()...)
		}
		if e := stream.Msg().GetExit(); e != nil {
			return stdout, stderr, e, first
		}
	}
	t.Fatalf("no exit status: %v", stream.Err())
	return nil, nil, nil, 0
}

func code(err error) connect.Code {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Code()
	}
	return 0
}

func TestHello(t *testing.T) {
	c := serve(t, t.TempDir())
	h, err := c.WaitReady(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.GetIndex() != 3 || h.GetSize() != 4 || h.GetAgentVersion() != "test" || h.GetBootId() == "" || h.GetUptimeNs() == 0 {
		t.Errorf("got %s", h)
	}
}

func TestOutputFromOffsets(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "/bin/sh", "-c", "printf 0123456789; printf abc >&2; exit 5")
	for _, from := range []uint64{0, 4, 10} {
		stdout, stderr, exit, _ := output(t, c, &agentv1.OutputRequest{Id: "p", StdoutOffset: from})
		if string(stdout) != "0123456789"[from:] || string(stderr) != "abc" {
			t.Errorf("from %d: %q, %q", from, stdout, stderr)
		}
		if exit.GetCode() != 5 || exit.GetSignal() != 0 || exit.GetStdoutTotal() != 10 || exit.GetStderrTotal() != 3 {
			t.Errorf("exit %s", exit)
		}
	}
	_, err := c.AckOutput(t.Context(), connect.NewRequest(&agentv1.AckOutputRequest{Id: "p", StdoutOffset: 6}))
	if err != nil {
		t.Fatal(err)
	}
	stdout, _, exit, first := output(t, c, &agentv1.OutputRequest{Id: "p", StdoutOffset: 2})
	if string(stdout) != "6789" || first != 6 || exit.GetStdoutTotal() != 10 {
		t.Errorf("after the acknowledgement: %q from %d, %s", stdout, first, exit)
	}
}

func TestStartIsIdempotent(t *testing.T) {
	c := serve(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "count")
	for i := range 3 {
		res, err := c.StartProcess(t.Context(), connect.NewRequest(&agentv1.StartProcessRequest{
			Id: "once", Argv: []string{"/bin/sh", "-c", "echo x >> " + file}, Dir: "/", Home: "/",
		}))
		if err != nil {
			t.Fatal(err)
		}
		if res.Msg.GetAlreadyStarted() != (i > 0) {
			t.Errorf("call %d: %s", i, res.Msg)
		}
	}
	output(t, c, &agentv1.OutputRequest{Id: "once"})
	if b, _ := os.ReadFile(file); string(b) != "x\n" {
		t.Errorf("the program ran %d times", strings.Count(string(b), "x"))
	}
}

func TestStartErrors(t *testing.T) {
	c := serve(t, t.TempDir())
	for argv0, want := range map[string]connect.Code{
		"/no/such/program": connect.CodeNotFound,
		"no-such-program":  connect.CodeNotFound,
		"/etc/passwd":      connect.CodePermissionDenied,
		"/etc":             connect.CodePermissionDenied,
	} {
		_, err := c.StartProcess(t.Context(), connect.NewRequest(&agentv1.StartProcessRequest{
			Id: argv0, Argv: []string{argv0}, Dir: "/", Home: "/",
		}))
		if code(err) != want {
			t.Errorf("%s: %v", argv0, err)
		}
	}
	if _, err := c.Wait(t.Context(), connect.NewRequest(&agentv1.WaitRequest{Id: "nobody"})); code(err) != connect.CodeNotFound {
		t.Errorf("an unknown id: %v", err)
	}
}

// TestBackPressure checks that a program that writes more than the agent keeps
// waits for acknowledgements and loses nothing.
func TestBackPressure(t *testing.T) {
	c := serve(t, t.TempDir())
	const total = 9 << 20
	start(t, c, "p", "/bin/sh", "-c", "head -c 9437184 /dev/zero; echo end >&2")
	stream, err := c.Output(t.Context(), connect.NewRequest(&agentv1.OutputRequest{Id: "p"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	var got, acked uint64
	for stream.Receive() {
		if e := stream.Msg().GetExit(); e != nil {
			if got != total || e.GetStdoutTotal() != total {
				t.Errorf("got %d bytes, total %d, want %d", got, e.GetStdoutTotal(), total)
			}
			return
		}
		ch := stream.Msg().GetChunk()
		if ch.GetStream() != agentv1.Stream_STREAM_STDOUT {
			if got <= 4<<20 {
				t.Error("the program ended before its output was acknowledged")
			}
			continue
		}
		if ch.GetOffset() != got {
			t.Fatalf("chunk at %d, want %d", ch.GetOffset(), got)
		}
		got += uint64(len(ch.GetData()))
		if got-acked > 4<<20 {
			t.Fatalf("%d bytes came unacknowledged", got-acked)
		}
		if got-acked == 4<<20 {
			acked = got
			if _, err := c.AckOutput(t.Context(), connect.NewRequest(&agentv1.AckOutputRequest{Id: "p", StdoutOffset: got})); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("no exit status: %v", stream.Err())
}

// TestExitWithOpenPipes checks that a program's end counts although a child
// keeps its output open.
func TestExitWithOpenPipes(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "/bin/sh", "-c", "sleep 30 & echo $!")
	begin := time.Now()
	stdout, _, _, _ := output(t, c, &agentv1.OutputRequest{Id: "p"})
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the exit took %s", d)
	}
	_, err := c.Exec(t.Context(), connect.NewRequest(&agentv1.ExecRequest{Argv: []string{"kill", strings.TrimSpace(string(stdout))}}))
	if err != nil {
		t.Error(err)
	}
}

func TestStdin(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "cat")
	send := func(offset uint64, data string, eof bool) (*agentv1.WriteStdinResponse, error) {
		res, err := c.WriteStdin(t.Context(), connect.NewRequest(&agentv1.WriteStdinRequest{Id: "p", Offset: offset, Data: []byte(data), Eof: eof}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	if _, err := send(5, "gap", false); code(err) != connect.CodeOutOfRange {
		t.Errorf("a gap: %v", err)
	}
	for _, step := range []struct {
		offset uint64
		data   string
		eof    bool
		next   uint64
		closed bool
	}{
		{0, "hello ", false, 6, false},
		{0, "hello ", false, 6, false},
		{3, "lo world", false, 11, false},
		{11, "!", true, 12, true},
		{11, "!", true, 12, true},
	} {
		res, err := send(step.offset, step.data, step.eof)
		if err != nil {
			t.Fatal(err)
		}
		if res.GetOffset() != step.next || res.GetClosed() != step.closed {
			t.Errorf("%+v: got %s", step, res)
		}
	}
	stdout, _, _, _ := output(t, c, &agentv1.OutputRequest{Id: "p"})
	if string(stdout) != "hello world!" {
		t.Errorf("the program read %q", stdout)
	}
}

func TestStdinThatNobodyReads(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "sleep", "0.3")
	_, err := c.WriteStdin(t.Context(), connect.NewRequest(&agentv1.WriteStdinRequest{Id: "p", Data: make([]byte, 3<<20)}))
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.StdinState(t.Context(), connect.NewRequest(&agentv1.StdinStateRequest{Id: "p"}))
	if err != nil || !st.Msg.GetClosed() {
		t.Errorf("got %v, %v", st, err)
	}
}

func TestSignalReachesTheGroup(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "/bin/sh", "-c", "sleep 60; true")
	_, err := c.Signal(t.Context(), connect.NewRequest(&agentv1.SignalRequest{Id: "p", Signal: int32(syscall.SIGTERM), Group: true}))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Wait(t.Context(), connect.NewRequest(&agentv1.WaitRequest{Id: "p"}))
	if err != nil || res.Msg.GetExit().GetSignal() != int32(syscall.SIGTERM) {
		t.Fatalf("got %v, %v", res, err)
	}
	again, err := c.Signal(t.Context(), connect.NewRequest(&agentv1.SignalRequest{Id: "p", Signal: int32(syscall.SIGTERM), Group: true}))
	if err != nil || !again.Msg.GetEnded() {
		t.Errorf("a signal after the end: %v, %v", again, err)
	}
}

// TestReset checks that a new session finds everything as the old one left it.
func TestReset(t *testing.T) {
	c := serve(t, t.TempDir())
	start(t, c, "p", "/bin/sh", "-c", "echo one; read x; echo two $x")
	stream, err := c.Output(t.Context(), connect.NewRequest(&agentv1.OutputRequest{Id: "p"}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || string(stream.Msg().GetChunk().GetData()) != "one\n" {
		t.Fatalf("got %s, %v", stream.Msg(), stream.Err())
	}
	c.Reset()
	if stream.Receive() {
		t.Error("the old stream goes on")
	}
	_ = stream.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteStdin(ctx, connect.NewRequest(&agentv1.WriteStdinRequest{Id: "p", Data: []byte("in\n"), Eof: true})); err != nil {
		t.Fatal(err)
	}
	stdout, _, _, _ := output(t, c, &agentv1.OutputRequest{Id: "p", StdoutOffset: 4})
	if string(stdout) != "two in\n" {
		t.Errorf("got %q", stdout)
	}
}

func tarOf(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		data := h.PAXRecords["VFT.data"]
		h.PAXRecords = nil
		h.Size = int64(len(data))
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func file(name, data string, mode int64, at time.Time) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, ModTime: at, PAXRecords: map[string]string{"VFT.data": data}}
}

func TestStageAndCollect(t *testing.T) {
	root := t.TempDir()
	c := serve(t, root)
	at := time.Unix(1_700_000_000, 0)
	in := tarOf(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "work/", Mode: 0o750, ModTime: at},
		file("work/in.dat", "input", 0o640, at),
		file("work/prog", "#!/bin/sh\n", 0o755, at),
		file("../../outside", "x", 0o644, at),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "work/link", Linkname: "in.dat", ModTime: at},
	)
	staged, err := c.StageTar(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if staged.GetFiles() != 5 {
		t.Errorf("staged %s", staged)
	}
	fi, err := os.Stat(filepath.Join(root, "work/in.dat"))
	if err != nil || fi.Mode() != 0o640 || !fi.ModTime().Equal(at) {
		t.Errorf("in.dat: %v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Join(root, "work")); err != nil || fi.Mode().Perm() != 0o750 || !fi.ModTime().Equal(at) {
		t.Errorf("work: %v, %v", fi, err)
	}
	if l, err := os.Readlink(filepath.Join(root, "work/link")); err != nil || l != "in.dat" {
		t.Errorf("link: %q, %v", l, err)
	}
	if _, err := os.Stat(filepath.Join(root, "outside")); err != nil {
		t.Errorf("a path with dots left the root: %v", err)
	}

	collect := func(token string) ([]string, string) {
		var b bytes.Buffer
		done, err := c.CollectTar(t.Context(), "/work", token, &b)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				return list, done.GetToken()
			}
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, h.Name)
		}
	}
	if list, _ := collect(""); len(list) != 0 {
		t.Errorf("nothing has changed, but %q came back", list)
	}
	for name, text := range map[string]string{"out.dat": "result", "in.dat": "changed", "sub/deep": "x"} {
		path := filepath.Join(root, "work", name)
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "work/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)
	list, token := collect("")
	if got := strings.Join(list, " "); got != "work/in.dat work/out.dat work/sub/ work/sub/deep" {
		t.Errorf("changed: %s", got)
	}
	if list, _ := collect(token); len(list) != 0 {
		t.Errorf("nothing has changed since, but %q came back", list)
	}
	if err := os.WriteFile(filepath.Join(root, "work/out.dat"), []byte("RESULT"), 0o644); err != nil {
		t.Fatal(err)
	}
	if list, _ := collect(token); strings.Join(list, " ") != "work/out.dat" {
		t.Errorf("changed since the token: %q", list)
	}
	if list, _ := collect("of another life"); len(list) != 4 {
		t.Errorf("an unknown token must mean everything since staging, got %q", list)
	}
}

func TestStageErrors(t *testing.T) {
	c := serve(t, t.TempDir())
	if _, err := c.StageTar(t.Context(), strings.NewReader("this is not a tar file, whatever its length may be"+strings.Repeat("x", 2048))); err == nil {
		t.Error("garbage was staged")
	}
	if _, err := c.WaitReady(t.Context()); err != nil {
		t.Errorf("after a failed staging: %v", err)
	}
}

func TestExec(t *testing.T) {
	c := serve(t, t.TempDir())
	res, err := c.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil || res.GetCode() != 3 || string(res.GetStdout()) != "out\n" || string(res.GetStderr()) != "err\n" {
		t.Errorf("got %s, %v", res, err)
	}
	_, err = c.Exec(t.Context(), connect.NewRequest(&agentv1.ExecRequest{Argv: []string{"sleep", "60"}, TimeoutMs: 100}))
	if code(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a command over its time: %v", err)
	}
}
