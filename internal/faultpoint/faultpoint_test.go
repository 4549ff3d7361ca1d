package faultpoint

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv("FAULTPOINT_TEST_CRASH"); spec != "" {
		s, err := Parse(spec)
		if err != nil {
			os.Exit(3)
		}
		for range 2 {
			_ = s.Hit(context.Background(), "p")
		}
		os.Exit(4)
	}
	goleak.VerifyTestMain(m)
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		spec, want string // want: String of the result
		bad        string // part of the error
	}{
		{spec: "", want: ""},
		{spec: " , ;\n", want: ""},
		{spec: "a.b=crash", want: "a.b=crash"},
		{spec: "a=pause; b=delay:200ms ,c=error:ENOSPC", want: "a=pause,b=delay:200ms,c=error:ENOSPC"},
		{spec: "a=count:3:crash", want: "a=count:3:crash"},
		{spec: "a=count:1:error:some text: here", want: "a=count:1:error:some text: here"},
		{spec: "a=pause,b=pause,a=delay:1s", want: "a=pause,a=delay:1s,b=pause"},
		{spec: "a", bad: "want name=action"},
		{spec: "=crash", bad: "want name=action"},
		{spec: "a b=crash", bad: "want name=action"},
		{spec: "a=", bad: "want crash, pause"},
		{spec: "a=crash:now", bad: "want crash, pause"},
		{spec: "a=error:", bad: "want crash, pause"},
		{spec: "a=error", bad: "want crash, pause"},
		{spec: "a=delay:5", bad: "want a duration"},
		{spec: "a=delay:-1s", bad: "want a duration"},
		{spec: "a=count:0:crash", bad: "number from 1"},
		{spec: "a=count:x:crash", bad: "number from 1"},
		{spec: "a=count:1", bad: "want crash, pause"},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			s, err := Parse(tc.spec)
			if tc.bad != "" {
				if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), tc.bad) {
					t.Fatalf("error %v, want one with %q", err, tc.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.String(); got != tc.want {
				t.Fatalf("String %q, want %q", got, tc.want)
			}
			if tc.want == "" && s != nil {
				t.Fatal("an empty specification gave a Set")
			}
		})
	}
}

func TestNilSetDoesNothing(t *testing.T) {
	var s *Set
	if err := s.Hit(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	s.Release("p")
	if s.Names() != nil || s.String() != "" || s.Check() != nil {
		t.Fatal("a nil Set says something")
	}
	if s.Await(t.Context(), "p", 1) == nil {
		t.Fatal("Await on a nil Set would wait for ever")
	}
}

func TestErrors(t *testing.T) {
	s, err := Parse("a=error:ENOSPC,b=error:went wrong,c=count:2:error:EIO")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	got := s.Hit(ctx, "a")
	var fe *Error
	if !errors.Is(got, syscall.ENOSPC) || !errors.As(got, &fe) || fe.Point != "a" {
		t.Fatalf("a: %v", got)
	}
	if got := s.Hit(ctx, "b"); got == nil || !strings.Contains(got.Error(), "went wrong") {
		t.Fatalf("b: %v", got)
	}
	for i, want := range []error{nil, syscall.EIO, nil, nil} {
		if got := s.Hit(ctx, "c"); !errors.Is(got, want) {
			t.Fatalf("c, hit %d: %v, want %v", i+1, got, want)
		}
	}
	if got := s.Hit(ctx, "d"); got != nil {
		t.Fatalf("d: %v", got)
	}
}

func TestPauseAndRelease(t *testing.T) {
	s, err := Parse("p=pause")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Hit(t.Context(), "p") }()
	if err := s.Await(t.Context(), "p", 1); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("Hit returned %v while paused", err)
	case <-time.After(20 * time.Millisecond):
	}
	s.Release("p")
	s.Release("p")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.Hit(t.Context(), "p"); err != nil {
		t.Fatalf("after release: %v", err)
	}
}

func TestBlockingEndsWithContext(t *testing.T) {
	for _, spec := range []string{"p=pause", "p=delay:1h"} {
		s, err := Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Hit(ctx, "p"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", spec, err)
		}
	}
	s, _ := Parse("p=pause")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Await(ctx, "p", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Await: %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Parse("p=count:1:delay:200ms")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for range 3 {
			if err := s.Hit(t.Context(), "p"); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Since(start); got != 200*time.Millisecond {
			t.Fatalf("took %v", got)
		}
	})
}

func TestCrash(t *testing.T) {
	for spec, killed := range map[string]bool{"p=crash": true, "p=count:2:crash": true, "p=count:3:crash": false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // the test binary itself
		cmd.Env = append(os.Environ(), "FAULTPOINT_TEST_CRASH="+spec)
		err := cmd.Run()
		var ee *exec.ExitError
		if !errors.As(err, &ee) {
			t.Fatalf("%s: %v", spec, err)
		}
		ws := ee.Sys().(syscall.WaitStatus)
		if killed != (ws.Signaled() && ws.Signal() == syscall.SIGKILL) || !killed && ws.ExitStatus() != 4 {
			t.Errorf("%s: %v", spec, ee)
		}
	}
}

func TestFromEnvAndCheck(t *testing.T) {
	t.Setenv(EnvVar, "a=nonsense")
	if _, err := FromEnv(); err == nil || !strings.Contains(err.Error(), EnvVar) {
		t.Fatalf("error %v does not name the variable", err)
	}
	t.Setenv(EnvVar, "ckpt.write=crash")
	s, err := FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check("ckpt.write", "other"); err != nil {
		t.Fatal(err)
	}
	if err := s.Check("other"); !errors.Is(err, ErrSpec) {
		t.Fatalf("unknown point accepted: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a=crash,b=count:2:delay:1s;c=error:EIO")
	f.Fuzz(func(t *testing.T, spec string) {
		s, err := Parse(spec)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q became %q, then %q, %v", spec, s.String(), again.String(), err)
		}
	})
}
