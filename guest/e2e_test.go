//go:build e2e

package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/image"
	"github.com/mpirun-vft/vft/guest/launch"
)

// cacheDir is shared by runs so that the root is fetched once.
func cacheDir() string {
	if dir := os.Getenv("VFT_IMAGE_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(os.TempDir(), "vft-e2e-image")
}

// testImage builds the agent and the image.
func testImage(t testing.TB) image.Image {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "vft-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X main.version=e2e", "-o", agent, "github.com/mpirun-vft/vft/cmd/vft-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	img, err := image.Build(t.Context(), image.BuildOptions{
		CacheDir: cacheDir(), Recipe: image.DefaultRecipe(), Agent: agent,
		Libraries: []string{filepath.Join("..", "bin", guest.MPICHPreload)},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// vm is a QEMU process with a client of its agent.
type vm struct {
	*guest.Client
	socket  string
	monitor string
	console string
	exited  chan struct{}
	pid     int
}

// cpuTime is what QEMU has used so far; unlike the time that has passed it
// does not depend on what else the host does.
func (v *vm) cpuTime() time.Duration {
	const perTick = 10 * time.Millisecond
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * perTick
}

// argv is what a guest is booted with; net is the value of -netdev without the
// id, or empty for none.
func argv(img image.Image, cfg guest.KernelConfig, memory, net, socket, console string) []string {
	args := []string{
		"-machine", "pc-q35-7.2,usb=off,vmport=off,smbus=off,sata=off", "-cpu", "qemu64",
		"-accel", "tcg,thread=multi", "-smp", "1", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:" + console,
		"-kernel", img.Kernel(), "-initrd", img.Initrd(), "-append", guest.KernelArgs(cfg),
		"-drive", "if=none,id=root,format=raw,readonly=on,file=" + img.Root(),
		"-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=" + guest.AgentPort,
	}
	if net != "" {
		args = append(args, "-netdev", net+",id=net0",
			"-device", "virtio-net-pci,netdev=net0,mac="+guest.MAC(cfg.Index).String())
	}
	return args
}

func boot(t testing.TB, img image.Image, cfg guest.KernelConfig, net string, more ...string) *vm {
	t.Helper()
	dir := t.TempDir()
	v := &vm{
		socket: filepath.Join(dir, "agent"), monitor: filepath.Join(dir, "monitor"), console: filepath.Join(dir, "console"), exited: make(chan struct{}),
	}
	args := argv(img, cfg, "512", net, v.socket, v.console)
	args = append(args, "-monitor", "unix:"+v.monitor+",server=on,wait=off")
	cmd := exec.Command("qemu-system-x86_64", append(args, more...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v; install it with: apt-get install qemu-system-x86", err)
	}
	v.pid = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(v.exited)
	}()
	v.Client = guest.DialUnix(v.socket)
	t.Cleanup(func() {
		_ = v.Close()
		_ = cmd.Process.Kill()
		<-v.exited
		if t.Failed() {
			b, _ := os.ReadFile(v.console)
			t.Logf("console of guest %d:\n%s", cfg.Index, b)
		}
	})
	return v
}

// pair boots two guests that are joined by a wire and waits for both agents.
func pair(t testing.TB, img image.Image) [2]*vm {
	t.Helper()
	wire := filepath.Join(t.TempDir(), "wire")
	var vms [2]*vm
	start := time.Now()
	for i := range vms {
		net := "stream,server=on,addr.type=unix,addr.path=" + wire
		if i == 1 {
			waitForFile(t, wire)
			net = "stream,server=off,addr.type=unix,addr.path=" + wire
		}
		vms[i] = boot(t, img, guest.KernelConfig{Index: i, Size: 2, Console: os.Getenv("VFT_CONSOLE") != ""}, net)
	}
	for i, v := range vms {
		hello := ready(t, v)
		t.Logf("guest %d answers after %s, %s of processor time: %s",
			i, time.Since(start).Round(time.Millisecond), v.cpuTime(), hello)
	}
	return vms
}

func ready(t testing.TB, v *vm) fmt.Stringer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hello, err := v.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return hello
}

func waitForFile(t testing.TB, path string) {
	t.Helper()
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not appear", path)
}

func mustRun(t testing.TB, v *vm, want int32, args ...string) string {
	t.Helper()
	res, err := v.Run(t.Context(), args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	if res.GetCode() != want || res.GetSignal() != 0 {
		t.Fatalf("%q: %s", args, res)
	}
	return string(res.GetStdout())
}

func TestBoot(t *testing.T) {
	vms := pair(t, testImage(t))
	for i, v := range vms {
		if got := mustRun(t, v, 0, "hostname"); got != guest.HostName(i)+"\n" {
			t.Errorf("host name %q", got)
		}
	}
	mustRun(t, vms[0], 0, "busybox", "ping", "-c", "1", "-W", "3", "guest1")
	if got := mustRun(t, vms[0], 7, "/usr/lib/vft/rsh", "-x", "guest1", "hostname;", "exit", "7"); got != "guest1\n" {
		t.Errorf("remote host name %q", got)
	}
	if got := mustRun(t, vms[1], 0, "/usr/lib/vft/rsh", "guest1", "hostname"); got != "guest1\n" {
		t.Errorf("own host name %q", got)
	}
}

// startJob starts args in v as an ordinary user.
func startJob(ctx context.Context, t testing.TB, v *vm, id, dir string, args, env []string) {
	t.Helper()
	env = append([]string{"PATH=/usr/bin:/bin", "HOME=/home/alice", "USER=alice"}, env...)
	_, err := v.StartProcess(ctx, connect.NewRequest(&agentv1.StartProcessRequest{
		Id: id, Argv: args, Env: env, Dir: dir, Uid: 1234, Gid: 1234, UserName: "alice", Home: "/home/alice",
		Umask: 0o22, NoStdin: true,
	}))
	if err != nil {
		t.Fatal(err)
	}
}

// job runs args in v and returns their output and exit.
func job(t testing.TB, v *vm, id string, args, env []string) (stdout, stderr string, exit *agentv1.ExitStatus) {
	t.Helper()
	return jobIn(t, v, id, "/", args, env)
}

func jobIn(t testing.TB, v *vm, id, dir string, args, env []string) (stdout, stderr string, exit *agentv1.ExitStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	startJob(ctx, t, v, id, dir, args, env)
	stream, err := v.Output(ctx, connect.NewRequest(&agentv1.OutputRequest{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	var out, errs bytes.Buffer
	for stream.Receive() {
		if c := stream.Msg().GetChunk(); c.GetStream() == agentv1.Stream_STREAM_STDOUT {
			out.Write(c.GetData())
		} else {
			errs.Write(c.GetData())
		}
		if e := stream.Msg().GetExit(); e != nil {
			return out.String(), errs.String(), e
		}
	}
	t.Fatalf("%q: the output ended without an exit: %v\n%s%s", args, stream.Err(), out.String(), errs.String())
	return "", "", nil
}

func TestMPIAcrossGuests(t *testing.T) {
	vms := pair(t, testImage(t))
	hosts := []launch.Host{{Name: "guest0", Slots: 1}, {Name: "guest1", Slots: 1}}
	for _, tt := range []struct {
		id    string
		build func(hosts []launch.Host, programEnv, userArgs []string) (argv, env []string)
		args  []string
		want  []string
	}{
		{"openmpi-hostname", launch.OpenMPI, []string{"-np", "2", "hostname"}, []string{"guest0\n", "guest1\n"}},
		{"mpich-hostname", launch.MPICH, []string{"-np", "2", "hostname"}, []string{"guest0\n", "guest1\n"}},
		{"openmpi-netpipe", launch.OpenMPI, []string{"-np", "2", "NPopenmpi", "-u", "16", "-o", "/tmp/np"}, []string{}},
		{"mpich-netpipe", launch.MPICH, []string{"-np", "2", "NPmpich2", "-u", "16", "-o", "/tmp/np"}, []string{}},
		{"openmpi-exit", launch.OpenMPI, []string{"-np", "2", "id", "-un"}, []string{"alice\nalice\n"}},
	} {
		t.Run(tt.id, func(t *testing.T) {
			args, env := tt.build(hosts, nil, tt.args)
			start := time.Now()
			stdout, stderr, exit := job(t, vms[0], tt.id, args, env)
			t.Logf("%s after %s\n%s%s", exit, time.Since(start).Round(time.Millisecond), stdout, stderr)
			if exit.GetCode() != 0 || exit.GetSignal() != 0 {
				t.Fatal("the job failed")
			}
			for _, w := range tt.want {
				if !strings.Contains(stdout, w) {
					t.Errorf("the output lacks %q", w)
				}
			}
		})
	}
}
