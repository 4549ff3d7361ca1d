// Package s3test runs a real S3 server for tests: versitygw, with a directory
// below it. `make test` installs it.
package s3test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/level/backend/s3"
)

// Skip is the environment variable that, when it is not empty, makes tests
// that need the server skip.
const Skip = "VFT_SKIP_S3"

// Server is a running server.
type Server struct {
	Addr        string // HOST:PORT
	Dir         string // has a directory for every bucket, with a file for every object
	Credentials s3.Credentials
}

// Start runs a server until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	if os.Getenv(Skip) != "" {
		t.Skip(Skip + " is set")
	}
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: t.TempDir(), Credentials: s3.Credentials{AccessKey: "vft-test", SecretKey: "not a secret"}}
	// The port that was free may be taken when the server asks for it.
	for try := 0; ; try++ {
		err := s.start(t, program)
		if err == nil {
			return s
		}
		if try == 3 {
			t.Fatal(err)
		}
	}
}

// find returns the path of the server's program.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		path := filepath.Join(dir, ".cache/tools/versitygw")
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("these tests need an S3 server: run `make -C %s test-tools`, or set %s=1 to skip them", dir, Skip)
		}
		return path, nil
	}
	return "", errors.New("not in the source tree")
}

func (s *Server) start(t testing.TB, program string) error {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Addr = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	var output strings.Builder
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "--port", s.Addr, "--quiet", "--keep-alive", "posix", "--sidecar", t.TempDir(), s.Dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.Credentials.AccessKey, "ROOT_SECRET_KEY="+s.Credentials.SecretKey)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-exited
	}
	if err := s.wait(exited); err != nil {
		stop()
		return fmt.Errorf("%s: %w: %s", program, err, output.String())
	}
	t.Cleanup(stop)
	return nil
}

// wait waits until the server answers.
func (s *Server) wait(exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var d net.Dialer
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.New("it does not answer")
		case <-tick.C:
		}
		c, err := d.DialContext(ctx, "tcp", s.Addr)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.WriteString(c, "HEAD / HTTP/1.0\r\n\r\n")
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		_ = c.Close()
		if err == nil {
			return nil
		}
	}
}

// Bucket makes an empty bucket and returns how to use it.
func (s *Server) Bucket(t testing.TB, name string) s3.Config {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.Dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	return s3.Config{Endpoint: "http://" + s.Addr, Region: "us-east-1", Bucket: name, Credentials: s.Credentials}
}
