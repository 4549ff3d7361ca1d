//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// TestPlain: programs of both MPIs run across guests of a cluster as under mpirun.
func TestPlain(t *testing.T) {
	for _, mpi := range []string{"openmpi", "mpich"} {
		t.Run(mpi, func(t *testing.T) {
			m := start(t, options{cluster: shared, args: heat(mpi, "100", "400", "100")})
			boot := m.await("booted")
			m.verified(400, 100)
			t.Log(boot.Text)
			if !strings.Contains(m.errOut(), "heat: ") {
				t.Error("what the program wrote to stderr is not on stderr")
			}
			if strings.Contains(m.out(), "vft:") {
				t.Error("vft's own lines are on stdout")
			}
			noGuests(t, boot.Job)
		})
	}
}

// TestStreams: stdin reaches rank 0, the streams stay apart, the environment
// and the staged files are there, what is written comes back, and the exit
// code is the program's.
func TestStreams(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "input.txt"), []byte("staged\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "not-staged.txt"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "script.sh")
	text := `#!/bin/sh
cat
echo "dir $(pwd)"
echo "var $VFT_TEST_VAR"
cat input.txt
ls not-staged.txt 2>/dev/null
echo "to stderr" >&2
mkdir -p made && echo written > made/by-the-job.txt
exit 7
`
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	m := start(t, options{
		cluster: shared, dir: dir, stdin: "line 1\nline 2\n", env: []string{"VFT_TEST_VAR=value with spaces"},
		args: []string{"--vft-stage", "input.txt", "--vft-mpi", "openmpi", "-x", "VFT_TEST_VAR", "-np", "1", "./script.sh"},
	})
	if code := m.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	want := "line 1\nline 2\ndir " + dir + "\nvar value with spaces\nstaged\n"
	if got := m.out(); got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if !strings.Contains(m.errOut(), "to stderr\n") {
		t.Errorf("stderr %q lacks the program's line", m.errOut())
	}
	data, err := os.ReadFile(filepath.Join(dir, "made", "by-the-job.txt"))
	if err != nil || string(data) != "written\n" {
		t.Errorf("the file that the job made: %q, %v", data, err)
	}
}

// TestFilesAtCommit: what the job has written is on the host at every
// committed epoch, while the job goes on.
func TestFilesAtCommit(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho first > result.txt\nsleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := start(t, options{cluster: shared, dir: dir, args: []string{"--vft-mpi", "openmpi", "--vft-interval", "3s", "-np", "1", "./script.sh"}})
	m.await("checkpoint")
	eventually(t, "the file of a running job is on the host", func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "result.txt"))
		return err == nil && string(data) == "first\n"
	})
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := m.wait(); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

// TestGuestNeverBoots: a job whose guests do not come up is given up after some
// attempts, with a line that says what to do.
func TestGuestNeverBoots(t *testing.T) {
	m := start(t, options{cluster: shared, args: append([]string{"--vft-boot-timeout", "100ms"}, heat("openmpi", "100", "100", "100")...)})
	e := m.await("ended")
	if code := m.wait(); code != 71 {
		t.Errorf("exit code %d, want 71", code)
	}
	if !strings.Contains(m.errOut(), "--vft-boot-timeout") {
		t.Errorf("%q does not say what to do", m.errOut())
	}
	noGuests(t, e.Job)
}

// TestEmbedded: without a cluster the command brings its own and leaves
// nothing behind, also when it is killed.
func TestEmbedded(t *testing.T) {
	tmp := t.TempDir()
	m := start(t, options{env: []string{"TMPDIR=" + tmp}, args: append([]string{"--vft-interval", "3s"}, heat("mpich", "200", "2500", "250")...)})
	e := m.await("checkpoint")
	m.verified(2500, 250)
	noGuests(t, e.Job)
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	m = start(t, options{env: []string{"TMPDIR=" + tmp}, args: heat("openmpi", "200", "100000", "500")})
	e = m.await("started")
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-m.ended
	noGuests(t, e.Job)
}

// TestSignals: Ctrl-C and SIGTERM end the job everywhere; the second at once.
func TestSignals(t *testing.T) {
	for _, c := range []struct {
		name  string
		first syscall.Signal
		twice bool
		code  int
	}{
		{"interrupt", syscall.SIGINT, false, 130},
		{"terminate twice", syscall.SIGTERM, true, 143},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t, options{cluster: shared, args: heat("openmpi", "200", "1000000", "500")})
			e := m.await("started")
			m.awaitOutput("iteration 500 ")
			if err := m.cmd.Process.Signal(c.first); err != nil {
				t.Fatal(err)
			}
			if c.twice {
				eventually(t, "the first signal is taken", func() bool { return strings.Contains(m.errOut(), "once more") })
				begun := time.Now()
				if err := m.cmd.Process.Signal(c.first); err != nil {
					t.Fatal(err)
				}
				m.wait()
				if took := time.Since(begun); took > 8*time.Second {
					t.Errorf("the second signal took %s", took)
				}
			}
			if code := m.wait(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			noGuests(t, e.Job)
		})
	}
}

// TestClientKilled: a job whose mpirun-vft is gone for good is ended.
func TestClientGone(t *testing.T) {
	m := start(t, options{cluster: shared, args: heat("openmpi", "200", "1000000", "500")})
	e := m.await("started")
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	noGuests(t, e.Job)
}

// TestBadInput: what cannot work is refused with one clear line and a
// documented exit code, and nothing runs afterwards.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain.txt")
	if err := os.WriteFile(plain, []byte("no program\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// An ELF header that says aarch64.
	foreign := filepath.Join(dir, "foreign")
	data, err := os.ReadFile(filepath.Join(bin, "heat.openmpi"))
	if err != nil {
		t.Fatal(err)
	}
	data[18], data[19] = 183, 0
	if err := os.WriteFile(foreign, data, 0o755); err != nil {
		t.Fatal(err)
	}
	images := filepath.Join(dir, "images")
	damaged := damagedImage(t)
	prog := filepath.Join(bin, "heat.openmpi")
	for _, c := range []struct {
		name string
		env  []string
		args []string
		code int
		says string
	}{
		{"program missing", nil, []string{"-np", "2", "./nothing"}, 127, "nothing"},
		{"not executable", nil, []string{"-np", "2", plain}, 126, "executable"},
		{"other architecture", nil, []string{"-np", "2", foreign}, 126, "ARM64"},
		{"no ranks", nil, []string{"-np", "0", prog}, 64, "-np"},
		{"too many ranks", nil, []string{"-np", "3", "--host", "localhost:2", prog}, 67, "oversubscribe"},
		{"unknown own option", nil, []string{"--vft-intervall", "3s", "-np", "2", prog}, 64, "--vft-interval"},
		{"nothing to stage", nil, []string{"--vft-stage", "*.none", "-np", "2", prog}, 65, "none"},
		{"no image", []string{"VFT_IMAGES=" + images}, []string{"-np", "2", prog}, 78, "vft image build"},
		{"corrupt image", []string{"VFT_IMAGES=" + damaged}, []string{"-np", "2", prog}, 78, "corrupt"},
		{"no cluster file", []string{"VFT_CLUSTER=" + dir}, []string{"-np", "2", prog}, 69, "cluster"},
		{"no QEMU", []string{"PATH=/nowhere"}, []string{"-np", "2", prog}, 69, "qemu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(filepath.Join(bin, "mpirun-vft"), c.args...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), c.env...)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(strings.ToLower(string(out)), strings.ToLower(c.says)) {
				t.Errorf("output %q does not say %q", out, c.says)
			}
			if lines := strings.Count(strings.TrimSpace(string(out)), "\n") + 1; lines > 2 {
				t.Errorf("%d lines instead of one clear one:\n%s", lines, out)
			}
		})
	}
}

// damagedImage is a cache with a copy of the current image, one byte changed.
func damagedImage(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("VFT_IMAGES")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "vft", "images")
	}
	id, err := os.Readlink(filepath.Join(cache, "current"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, id), os.DirFS(filepath.Join(cache, id))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(id, filepath.Join(dir, "current")); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(dir, id, "vmlinuz")
	data, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(kernel, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
