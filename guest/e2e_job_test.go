//go:build e2e

package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/launch"
	"github.com/mpirun-vft/vft/guest/stage"
)

const ringSource = `#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
	int rank, size, sum;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0) {
		FILE *f = fopen("result.txt", "w");
		fprintf(f, "sum %d of %d\n", sum, size);
		fclose(f);
		printf("sum %d\n", sum);
	}
	if (argc > 1) { printf("waiting\n"); fflush(stdout); sleep(1000); }
	MPI_Finalize();
	return argc > 1 ? 0 : 7 * (rank == 0);
}
`

// userDir makes a directory that the job's user can enter, unlike the test's
// own, and owns.
func userDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vft-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 1234, 1234)); err != nil {
		t.Fatalf("this test makes files for another user and needs root: %v", err)
	}
	return dir
}

// TestStagedProgram compiles an MPI program on the host, stages it into two
// guests, runs it there and fetches what it wrote.
func TestStagedProgram(t *testing.T) {
	img := testImage(t)
	vms := pair(t, img)
	for _, tt := range []struct {
		compiler string
		build    func(hosts []launch.Host, programEnv, userArgs []string) (argv, env []string)
		flavour  stage.Flavour
	}{
		{"mpicc.openmpi", launch.OpenMPI, stage.OpenMPI},
		{"mpicc.mpich", launch.MPICH, stage.MPICH},
	} {
		t.Run(string(tt.flavour), func(t *testing.T) {
			dir := userDir(t)
			if err := os.WriteFile(filepath.Join(dir, "ring.c"), []byte(ringSource), 0o644); err != nil {
				t.Fatal(err)
			}
			cc := exec.Command(tt.compiler, "-o", "ring", "ring.c")
			cc.Dir = dir
			if out, err := cc.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s; install it with: apt-get install libopenmpi-dev libmpich-dev", tt.compiler, err, out)
			}
			plan, err := stage.Make(t.Context(), stage.Options{
				Program: "./ring", Dir: dir, Path: "/usr/bin",
				Image: stage.Contents{Libraries: img.Info.Libraries, Programs: img.Info.Programs},
			})
			if err != nil {
				t.Fatal(err)
			}
			if plan.Flavour != tt.flavour {
				t.Errorf("flavour %s", plan.Flavour)
			}
			for _, e := range plan.Entries {
				t.Logf("stage %s", e.Name)
			}
			var b bytes.Buffer
			if _, err := plan.WriteTar(&b); err != nil {
				t.Fatal(err)
			}
			for _, v := range vms {
				if _, err := v.StageTar(t.Context(), bytes.NewReader(b.Bytes())); err != nil {
					t.Fatal(err)
				}
			}
			hosts := []launch.Host{{Name: "guest0", Slots: 1}, {Name: "guest1", Slots: 1}}
			args, env := tt.build(hosts, plan.Env, append([]string{"-np", "2"}, plan.Argv...))
			stdout, stderr, exit := jobIn(t, vms[0], "ring-"+string(tt.flavour), dir, args, env)
			if stdout != "sum 1\n" || exit.GetCode() != 7 {
				t.Fatalf("%s\n%s%s", exit, stdout, stderr)
			}
			var got bytes.Buffer
			if _, err := vms[0].CollectTar(t.Context(), dir, "", &got); err != nil {
				t.Fatal(err)
			}
			tr := tar.NewReader(&got)
			h, err := tr.Next()
			if err != nil || "/"+h.Name != dir+"/result.txt" || h.Uid != 1234 {
				t.Fatalf("collected %+v, %v", h, err)
			}
			if text, _ := io.ReadAll(tr); string(text) != "sum 1 of 2\n" {
				t.Errorf("result %q", text)
			}
			if h, err := tr.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("and %v", h)
			}
			testSignal(t, vms, tt.build, plan, dir)
		})
	}
}

// testSignal ends a running job and checks that its ranks are gone from both
// guests.
func testSignal(t *testing.T, vms [2]*vm, build func(hosts []launch.Host, programEnv, userArgs []string) (argv, env []string), plan *stage.Plan, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := []launch.Host{{Name: "guest0", Slots: 1}, {Name: "guest1", Slots: 1}}
	args, env := build(hosts, plan.Env, append([]string{"-np", "2"}, append(plan.Argv, "wait")...))
	id := "signal-" + string(plan.Flavour)
	startJob(ctx, t, vms[0], id, dir, args, env)
	stream, err := vms[0].Output(ctx, connect.NewRequest(&agentv1.OutputRequest{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	sent := false
	for stream.Receive() {
		if strings.Contains(string(stream.Msg().GetChunk().GetData()), "waiting") && !sent {
			sent = true
			if _, err := vms[0].Signal(ctx, connect.NewRequest(&agentv1.SignalRequest{Id: id, Signal: 15, Group: true})); err != nil {
				t.Fatal(err)
			}
		}
		if e := stream.Msg().GetExit(); e != nil {
			t.Logf("after SIGTERM: %s", e)
		}
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}
	for i, v := range vms {
		gone := false
		for range 50 {
			res, err := v.Run(ctx, "pgrep", "-f", plan.Program)
			if err != nil {
				t.Fatal(err)
			}
			if gone = res.GetCode() == 1; gone {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if !gone {
			t.Errorf("ranks are left in guest %d: %s", i, mustRun(t, v, 0, "ps", "axf"))
		}
	}
}

// TestRestore saves a guest in the middle of a stream of output, ends it,
// restores it in another QEMU, and checks that no byte is lost or repeated.
func TestRestore(t *testing.T) {
	img := testImage(t)
	cfg := guest.KernelConfig{Index: 0, Size: 1}
	old := boot(t, img, cfg, "")
	ready(t, old)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	startJob(ctx, t, old, "count", "/", []string{"sh", "-c", "i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done"}, nil)
	var got []byte
	read := func(v *vm, until int) (ended bool, err error) {
		stream, err := v.Output(ctx, connect.NewRequest(&agentv1.OutputRequest{Id: "count", StdoutOffset: uint64(len(got))}))
		if err != nil {
			return false, err
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			if c := stream.Msg().GetChunk(); c != nil {
				if int(c.GetOffset()) != len(got) {
					return false, fmt.Errorf("chunk at %d, want %d", c.GetOffset(), len(got))
				}
				got = append(got, c.GetData()...)
			}
			if stream.Msg().GetExit() != nil {
				return true, nil
			}
			if until > 0 && len(got) > until {
				return false, nil
			}
		}
		return false, stream.Err()
	}
	if _, err := read(old, 20_000); err != nil {
		t.Fatal(err)
	}
	// The host's end goes on reading while the guest is being saved.
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		_, _ = read(old, 0)
	}()
	saved := filepath.Join(t.TempDir(), "saved")
	hmp(t, old.monitor, "stop")
	hmp(t, old.monitor, `migrate "exec:cat > `+saved+`"`)
	hmp(t, old.monitor, "quit")
	<-old.exited
	<-reading
	// What a restored guest has not sent yet, the host forgets.
	fresh := boot(t, img, cfg, "", "-incoming", "exec:cat "+saved)
	for range 600 {
		if strings.Contains(hmp(t, fresh.monitor, "info status"), "paused") && !strings.Contains(hmp(t, fresh.monitor, "info status"), "inmigrate") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	hmp(t, fresh.monitor, "cont")
	ready(t, fresh)
	got = got[:10_000]
	if _, err := fresh.AckOutput(ctx, connect.NewRequest(&agentv1.AckOutputRequest{Id: "count", StdoutOffset: 10_000})); err != nil {
		t.Fatal(err)
	}
	ended, err := read(fresh, 0)
	if err != nil || !ended {
		t.Fatalf("after the restore: ended %v, %v", ended, err)
	}
	var want bytes.Buffer
	for i := range 200_000 {
		fmt.Fprintln(&want, i)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes of output, want %d, or other content", len(got), want.Len())
	}
}

// hmp runs a command of QEMU's human monitor and returns what it prints.
func hmp(t testing.TB, socket, command string) string {
	t.Helper()
	waitForFile(t, socket)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	readPrompt := func() string {
		var b []byte
		one := make([]byte, 4096)
		for !bytes.HasSuffix(b, []byte("(qemu) ")) {
			n, err := c.Read(one)
			b = append(b, one[:n]...)
			if err != nil {
				break
			}
		}
		return string(b)
	}
	readPrompt()
	if _, err := fmt.Fprintf(c, "%s\n", command); err != nil {
		t.Fatal(err)
	}
	return readPrompt()
}

func TestPowerOff(t *testing.T) {
	v := boot(t, testImage(t), guest.KernelConfig{Index: 0, Size: 1}, "")
	ready(t, v)
	if _, err := v.Shutdown(t.Context(), connect.NewRequest(&agentv1.ShutdownRequest{})); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.exited:
	case <-time.After(20 * time.Second):
		t.Error("the guest is still there")
	}
}

// TestRedial checks that a host process that dies without a word is replaced
// by the next one, and that a guest nobody talks to rests.
func TestRedial(t *testing.T) {
	v := boot(t, testImage(t), guest.KernelConfig{Index: 0, Size: 1}, "")
	ready(t, v)
	for range 5 {
		v.Reset()
		ready(t, v)
	}
	_ = v.Close()
	time.Sleep(2 * time.Second)
	again := guest.DialUnix(v.socket)
	defer func() { _ = again.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := again.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	busy := func() string { return mustRun(t, &vm{Client: again}, 0, "cat", "/proc/stat") }
	first := idle(t, busy())
	_ = again.Close()
	time.Sleep(5 * time.Second)
	again = guest.DialUnix(v.socket)
	defer func() { _ = again.Close() }()
	if d := idle(t, busy()) - first; d < 300 {
		t.Errorf("idle for %d of 500 ticks while nobody was connected", d)
	}
}

// idle reads the idle ticks of /proc/stat.
func idle(t testing.TB, stat string) int {
	t.Helper()
	var cpu string
	var v [4]int
	if _, err := fmt.Sscan(stat, &cpu, &v[0], &v[1], &v[2], &v[3]); err != nil {
		t.Fatal(err)
	}
	return v[3]
}

func TestStageIntoFullDisk(t *testing.T) {
	v := boot(t, testImage(t), guest.KernelConfig{Index: 0, Size: 1}, "", "-m", "256")
	ready(t, v)
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: 600 << 20, Mode: 0o644})
		buf := make([]byte, 1<<20)
		for range 600 {
			if _, err := tw.Write(buf); err != nil {
				break
			}
		}
		_ = w.CloseWithError(tw.Close())
	}()
	start := time.Now()
	_, err := v.StageTar(t.Context(), r)
	_ = r.Close()
	t.Logf("after %s: %v", time.Since(start), err)
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "more memory") {
		t.Errorf("got %v", err)
	}
	ready(t, v)
}
