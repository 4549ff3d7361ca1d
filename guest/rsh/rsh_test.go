package rsh

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server runs commands as the test's own user.
func server(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Serve(ctx, l, func(req Request, stdin, stdout, stderr *os.File) (*exec.Cmd, error) {
			cmd := exec.Command("/bin/sh", "-c", req.Command)
			cmd.Dir, cmd.Env = req.Dir, req.Env
			cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			return cmd, nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return l.Addr().String()
}

func TestRun(t *testing.T) {
	address := server(t)
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 20000)
	for name, tt := range map[string]struct {
		command, stdin string
		code           int
		stdout, stderr string
	}{
		"streams":      {command: "echo out; echo err >&2; exit 7", code: 7, stdout: "out\n", stderr: "err\n"},
		"surroundings": {command: `echo $FOO; pwd`, stdout: "bar\n" + dir + "\n"},
		"stdin":        {command: "cat", stdin: big, stdout: big},
		"signal":       {command: "kill -9 $$", code: 137},
		"no reader":    {command: "true", stdin: big},
		"not found":    {command: "/no/such/program 2>/dev/null", code: 127},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			req := Request{Command: tt.command, Dir: dir, Env: []string{"FOO=bar", "PATH=/usr/bin:/bin"}}
			code, err := Run(t.Context(), address, req, strings.NewReader(tt.stdin), &stdout, &stderr)
			if err != nil {
				t.Fatal(err)
			}
			if code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("code %d, %d bytes of stdout, stderr %q", code, stdout.Len(), stderr.String())
			}
		})
	}
}

// TestReturnsWhenTheCommandDetaches checks what MPI's daemons need: they go to
// the background with their output still open.
func TestReturnsWhenTheCommandDetaches(t *testing.T) {
	address := server(t)
	var stdout, stderr bytes.Buffer
	begin := time.Now()
	code, err := Run(t.Context(), address, Request{Command: "sleep 2 & echo started", Dir: "/"}, nil, &stdout, &stderr)
	if err != nil || code != 0 || stdout.String() != "started\n" {
		t.Fatalf("code %d, %v, %q", code, err, stdout.String())
	}
	if d := time.Since(begin); d > 1500*time.Millisecond {
		t.Errorf("returned after %s", d)
	}
}

// TestCallerThatGoesAway checks that the command does not outlive its caller.
func TestCallerThatGoesAway(t *testing.T) {
	address := server(t)
	mark := filepath.Join(t.TempDir(), "mark")
	ctx, cancel := context.WithCancel(t.Context())
	out := &firstWrite{f: cancel}
	_, err := Run(ctx, address, Request{
		Command: "trap 'echo ended > " + mark + "; exit' TERM; echo up; while :; do sleep 0.05; done", Dir: "/", Env: os.Environ(),
	}, nil, out, out)
	if err == nil {
		t.Fatal("the call did not fail")
	}
	for range 100 {
		if b, _ := os.ReadFile(mark); string(b) == "ended\n" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the command runs on")
}

type firstWrite struct{ f func() }

func (w *firstWrite) Write(b []byte) (int, error) {
	w.f()
	return len(b), nil
}

func TestParseArgs(t *testing.T) {
	for _, tt := range []struct {
		args          string
		host, command string
		bad           bool
	}{
		{args: "guest1 ls -l", host: "guest1", command: "ls -l"},
		{args: "-x guest1 ls", host: "guest1", command: "ls"},
		{args: "-l bob -p 22 -x bob@guest1 orted --daemonize", host: "guest1", command: "orted --daemonize"},
		{args: "-o Opt=1 -- guest1 true", host: "guest1", command: "true"},
		{args: "guest1 -x true", host: "guest1", command: "true"},
		{args: "guest1", bad: true},
		{args: "-x", bad: true},
	} {
		host, command, err := parseArgs(strings.Fields(tt.args))
		if host != tt.host || command != tt.command || (err != nil) != tt.bad {
			t.Errorf("%q: %q, %q, %v", tt.args, host, command, err)
		}
	}
}

func FuzzReadRequest(f *testing.F) {
	var b bytes.Buffer
	_ = writeRequest(&b, Request{Command: "x"})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := readRequest(bytes.NewReader(in))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeRequest(&again, req); err != nil {
			t.Fatal(err)
		}
		if _, err := readRequest(&again); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x01x"))
	f.Add([]byte("o\xff\xff\xff\xffx"))
	f.Fuzz(func(_ *testing.T, in []byte) {
		buf := make([]byte, 64)
		for r := bytes.NewReader(in); ; {
			if _, _, err := readFrame(r, buf); err != nil {
				return
			}
		}
	})
}
