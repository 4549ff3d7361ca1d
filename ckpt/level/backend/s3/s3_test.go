package s3_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/backend/backendtest"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3/s3test"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.New(cfg, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	n := 0
	backendtest.Run(t, func(t *testing.T) backendtest.Place {
		n++
		cfg := server.Bucket(t, fmt.Sprintf("bucket%d", n))
		if n%2 == 0 {
			cfg.Prefix = "some/prefix"
		}
		return backendtest.Place{
			Open: func(t *testing.T) backend.Backend { return open(t, cfg) },
			Lose: func(t *testing.T) {
				if err := os.RemoveAll(filepath.Join(server.Dir, cfg.Bucket)); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

func TestPrefixesAreApart(t *testing.T) {
	t.Parallel()
	cfg := s3test.Start(t).Bucket(t, "bucket")
	for _, prefix := range []string{"a", "ab", "a/b"} {
		cfg.Prefix = prefix
		backendtest.Put(t, open(t, cfg), "o", []byte(prefix))
	}
	for prefix, names := range map[string]string{"a": "b/o o", "ab": "o", "a/b": "o"} {
		cfg.Prefix = prefix
		s := open(t, cfg)
		backendtest.Want(t, s, "o", []byte(prefix))
		if got := strings.Join(backendtest.Names(t, s, ""), " "); got != names {
			t.Errorf("%s has %s, want %s", prefix, got, names)
		}
	}
}

func TestCutConnections(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.Addr)
	cfg := server.Bucket(t, "bucket")
	cfg.Endpoint = "http://" + proxy.Addr
	s := open(t, cfg)
	small, large := backendtest.Content(3<<20, 1), backendtest.Content(20<<20, 2)
	for name, b := range map[string][]byte{"small": small, "large": large} {
		proxy.CutUp(int64(len(b)/2), 2)
		backendtest.Put(t, s, name, b)
		proxy.Heal()
		proxy.CutDown(int64(len(b)/3), 5)
		backendtest.Want(t, s, name, b)
		proxy.Heal()
		// Cut before a byte of an answer arrives: the request was done.
		proxy.CutDown(0, 1)
		backendtest.Put(t, s, name, b)
		proxy.CutDown(0, 2)
		if got := backendtest.Names(t, s, name); len(got) != 1 {
			t.Fatalf("%q", got)
		}
		backendtest.Want(t, s, name, b)
	}
}

// A cut after the last part hits the request that completes the upload.
func TestCutAnswerOfCompletedUpload(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	cfg := server.Bucket(t, "bucket")
	b := backendtest.Content(9<<20, 1)
	for cut := range int64(8) {
		proxy := s3test.NewProxy(t, server.Addr)
		cfg.Endpoint = "http://" + proxy.Addr
		s := open(t, cfg)
		proxy.CutDown(300*(cut+1), 1)
		backendtest.Put(t, s, "o", b)
		proxy.Heal()
		backendtest.Want(t, s, "o", b)
	}
}

// The store refuses what was damaged on its way, and it is sent again.
func TestDamageOnTheWay(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.Addr)
	cfg := server.Bucket(t, "bucket")
	cfg.Endpoint = "http://" + proxy.Addr
	s := open(t, cfg)
	for name, size := range map[string]int{"small": 1 << 20, "large": 12 << 20} {
		b := backendtest.Content(size, 1)
		proxy.FlipUp(int64(size) / 2)
		backendtest.Put(t, s, name, b)
		if !proxy.Flipped() {
			t.Fatal("nothing was damaged")
		}
		backendtest.Want(t, s, name, b)
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server.Addr)
	cfg := server.Bucket(t, "bucket")
	cfg.Endpoint, cfg.Silence = "http://"+proxy.Addr, 100*time.Millisecond
	s := open(t, cfg)
	b := backendtest.Content(1<<20, 1)
	backendtest.Put(t, s, "o", b)
	proxy.StallDown(500_000)
	n, err := s.ReadAt(t.Context(), "o", make([]byte, len(b)), 0)
	if !errors.Is(err, backend.ErrUnreachable) || n == len(b) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := s.ReadAt(ctx, "o", make([]byte, len(b)), 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled in silence: %v", err)
	}
	proxy.Heal()
	backendtest.Want(t, s, "o", b)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	good := server.Bucket(t, "bucket")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*s3.Config)
		want   error
		says   string
	}{
		"bucket":         {func(c *s3.Config) { c.Bucket = "absent" }, backend.ErrLost, "make the bucket absent"},
		"key":            {func(c *s3.Config) { c.Credentials.AccessKey = "other" }, backend.ErrDenied, "AWS_ACCESS_KEY_ID"},
		"secret":         {func(c *s3.Config) { c.Credentials.SecretKey = "other" }, backend.ErrDenied, "AWS_ACCESS_KEY_ID"},
		"no credentials": {func(c *s3.Config) { c.Credentials = s3.Credentials{} }, backend.ErrDenied, "are there credentials"},
		"no credentials file": {
			func(c *s3.Config) { c.Credentials = s3.Credentials{File: "/absent/credentials"} }, nil, "/absent/credentials",
		},
		"region":  {func(c *s3.Config) { c.Region = "mars-1" }, backend.ErrDenied, "region"},
		"port":    {func(c *s3.Config) { c.Endpoint = "http://" + addr }, backend.ErrUnreachable, "connection refused"},
		"no TLS":  {func(c *s3.Config) { c.Endpoint = "https://" + server.Addr }, backend.ErrUnreachable, "http://"},
		"no host": {func(c *s3.Config) { c.Endpoint = "http://nowhere.invalid" }, backend.ErrUnreachable, "nowhere.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			s := open(t, cfg)
			err := s.Put(t.Context(), "o", 1, strings.NewReader("x"))
			_, read := s.ReadAt(t.Context(), "o", make([]byte, 1), 0)
			for _, err := range []error{err, read} {
				if err == nil || (c.want != nil && !errors.Is(err, c.want)) || errors.Is(err, backend.ErrNotExist) ||
					!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), s.String()) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	server := s3test.Start(t)
	good := server.Bucket(t, "bucket")
	file := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = x\naws_secret_access_key = y\n[p]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
		good.Credentials.AccessKey, good.Credentials.SecretKey)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env         map[string]string
		credentials s3.Credentials
	}{
		"options":      {nil, good.Credentials},
		"environment":  {map[string]string{"AWS_ACCESS_KEY_ID": good.Credentials.AccessKey, "AWS_SECRET_ACCESS_KEY": good.Credentials.SecretKey}, s3.Credentials{}},
		"file":         {map[string]string{"AWS_PROFILE": "p"}, s3.Credentials{File: file}},
		"profile":      {map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file}, s3.Credentials{Profile: "p"}},
		"default file": {map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "p"}, s3.Credentials{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, unset := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_PROFILE", "AWS_CONFIG_FILE"} {
				t.Setenv(unset, "")
			}
			t.Setenv("AWS_ENDPOINT_URL", good.Endpoint)
			t.Setenv("AWS_REGION", good.Region)
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			s := open(t, s3.Config{Bucket: good.Bucket, Credentials: c.credentials})
			backendtest.Put(t, s, "o", []byte("x"))
			backendtest.Want(t, s, "o", []byte("x"))
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, endpoint := range []string{"ftp://host", "host:80", "http://", "http://user:pass@host", "http://host/path", "http://[::1"} {
		if _, err := s3.New(s3.Config{Endpoint: endpoint, Bucket: "bucket"}, time.Now); err == nil {
			t.Errorf("%s was taken", endpoint)
		}
	}
}

// An upload that was interrupted is no object; Sweep gives its space back.
func TestSweepAbortsUploads(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	cfg := server.Bucket(t, "bucket")
	after := time.Duration(0)
	s, err := s3.New(cfg, func() time.Time { return time.Now().Add(after) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	core, err := minio.NewCore(server.Addr, &minio.Options{Creds: credentials.NewStaticV4(cfg.Credentials.AccessKey, cfg.Credentials.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := core.NewMultipartUpload(t.Context(), cfg.Bucket, "o", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.PutObjectPart(t.Context(), cfg.Bucket, "o", id, 1, strings.NewReader("part"), 4, minio.PutObjectPartOptions{}); err != nil {
		t.Fatal(err)
	}
	uploads := func() (n int) {
		err := filepath.WalkDir(server.Dir, func(path string, d os.DirEntry, err error) error {
			if d != nil && !d.IsDir() {
				n++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if uploads() == 0 {
		t.Fatal("no upload")
	}
	if got := backendtest.Names(t, s, ""); len(got) != 0 {
		t.Fatalf("objects %q", got)
	}
	for _, step := range []struct {
		after time.Duration
		gone  bool
	}{{0, false}, {25 * time.Hour, true}} {
		after = step.after
		if err := s.Sweep(t.Context(), 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		if (uploads() == 0) != step.gone {
			t.Errorf("after %v: %d files of uploads", step.after, uploads())
		}
	}
}
