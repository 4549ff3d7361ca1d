package object

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// action changes a store, and is interrupted.
type action struct {
	name  string
	do    func(s *Store) error
	after []sample // are there once do has returned nil
}

// old is in the store before every action, live always, and garbage not.
var (
	oldSamples = samples(0, 50)
	oldLive    = every(4, oldSamples)
	newSamples = slices.Concat(samples(1000, 1020), oldSamples[:10])
)

func actions() []action {
	put := func(s *Store) error { return put(s, newSamples) }
	collect := func(s *Store) error {
		_, err := s.Collect(context.Background(), marks(oldLive))
		return err
	}
	return []action{
		{"put", put, newSamples},
		{"collect", collect, nil},
		{"put in two steps", func(s *Store) error {
			b := s.NewBatch(context.Background())
			defer b.Close()
			for i, x := range newSamples {
				if err := b.Add(x.kind, x.id, x.data); err != nil {
					return err
				}
				if i == len(newSamples)/2 {
					if err := b.Sync(context.Background()); err != nil {
						return err
					}
				}
			}
			return b.Sync(context.Background())
		}, newSamples},
		{"put and collect", func(s *Store) error {
			b := s.NewBatch(context.Background())
			defer b.Close()
			for _, x := range newSamples {
				if !b.Keep(x.id) {
					if err := b.Add(x.kind, x.id, x.data); err != nil {
						return err
					}
				}
			}
			if err := collect(s); err != nil {
				return err
			}
			return b.Sync(context.Background())
		}, newSamples},
	}
}

// prepared returns a file system with a store that holds the old samples.
func prepared(t *testing.T) *faultfs.FS {
	t.Helper()
	m := newFS(t)
	s := open(t, testDir, smallPacks(m))
	for part := range slices.Chunk(oldSamples, 20) {
		mustPut(t, s, part)
	}
	closeStore(t, s)
	return m
}

// consistent fails unless what must be there is, and all that is there is whole.
func consistent(s *Store, must []sample) error {
	if err := check(s, must); err != nil {
		return err
	}
	var damage error
	_, err := s.Verify(context.Background(), func(c *CorruptError) { damage = c })
	if n := len(s.Unreadable()); n > 0 {
		return fmt.Errorf("%d unreadable packs", n)
	}
	return errors.Join(err, damage)
}

func noTemp(m *faultfs.FS) error {
	if left := m.Files(testDir + "/tmp"); len(left) > 0 {
		return fmt.Errorf("left in tmp: %q", left)
	}
	return nil
}

// survivals returns two kinds of crashes, others for each k.
func survivals(k int) map[string]faultfs.Survival {
	return map[string]faultfs.Survival{
		"nothing":               faultfs.Nothing(),
		fmt.Sprint("some, ", k): faultfs.Some(uint64(k)),
	}
}

// TestCrashAnywhere crashes every way of changing the store between any two
// calls of the file system, and looks at what is there afterwards.
func TestCrashAnywhere(t *testing.T) {
	for _, a := range actions() {
		t.Run(a.name, func(t *testing.T) {
			base := prepared(t)
			for k, finished := 1, false; !finished; k += faultfs.Step {
				for how, left := range survivals(k) {
					m := base.AfterCrash(faultfs.Nothing())
					s := open(t, testDir, smallPacks(m))
					m.Inject(faultfs.CrashAt(k))
					err := a.do(s)
					finished = m.Calls() < k
					closeStore(t, s)

					m = m.AfterCrash(left)
					s = open(t, testDir, smallPacks(m))
					where := fmt.Sprintf("crash at call %d, %s survives", k, how)
					must := oldLive
					if err == nil {
						must = slices.Concat(oldLive, a.after)
					}
					if err := errors.Join(consistent(s, must), noTemp(m)); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
					if err := errors.Join(a.do(s), consistent(s, slices.Concat(oldLive, a.after))); err != nil {
						t.Fatalf("%s: again: %v", where, err)
					}
					closeStore(t, s)
				}
				if k > 1000 {
					t.Fatal("does not come to an end")
				}
			}
		})
	}
}

// TestRepeatAfterKilledProcess kills the process, not the machine, between any
// two calls, repeats the action in a new process, and then crashes the machine:
// what the second process found and relied on must be durable, though the first
// one may have named it without syncing the name.
func TestRepeatAfterKilledProcess(t *testing.T) {
	base := prepared(t)
	for _, a := range actions() {
		for k, finished := 1, false; !finished; k += faultfs.Step {
			m := base.AfterCrash(faultfs.Nothing())
			s := open(t, testDir, smallPacks(m))
			m.Inject(faultfs.CrashAt(k))
			_ = a.do(s)
			finished = m.Calls() < k
			closeStore(t, s)
			m.Revive()
			s = open(t, testDir, smallPacks(m))
			if err := a.do(s); err != nil {
				t.Fatalf("%s, killed at call %d: again: %v", a.name, k, err)
			}
			closeStore(t, s)
			s = open(t, testDir, smallPacks(m.AfterCrash(faultfs.Nothing())))
			if err := consistent(s, slices.Concat(oldLive, a.after)); err != nil {
				t.Fatalf("%s, killed at call %d, repeated, machine crashed: %v", a.name, k, err)
			}
			closeStore(t, s)
		}
	}
}

func TestCrashWhileOpening(t *testing.T) {
	base := prepared(t)
	base.Edit(testDir+"/tmp/left", func([]byte) []byte { return nil })
	for _, m := range []*faultfs.FS{base, newFS(t)} {
		_, stored := m.Stat(testDir + "/packs")
		for k, finished := 1, false; !finished; k += faultfs.Step {
			for how, left := range faultfs.Survivals() {
				m := m.AfterCrash(faultfs.All())
				m.Inject(faultfs.CrashAt(k))
				s, err := Open(testDir, smallPacks(m))
				if err == nil {
					finished = m.Calls() < k
					closeStore(t, s)
				}
				s = open(t, testDir, smallPacks(m.AfterCrash(left)))
				if stored == nil {
					err = consistent(s, oldSamples)
				} else {
					err = errors.Join(put(s, newSamples), consistent(s, newSamples))
				}
				if err != nil {
					t.Fatalf("crash at call %d, %s survives: %v", k, how, err)
				}
				closeStore(t, s)
			}
		}
	}
}

// TestErrorAnywhere makes every single call fail in every way: the action fails
// or what it did is durable, what was there stays, and a second attempt works.
func TestErrorAnywhere(t *testing.T) {
	base := prepared(t)
	for _, a := range actions() {
		for _, failure := range []error{syscall.EIO, syscall.ENOSPC, faultfs.ErrShort, faultfs.ErrQuietShort} {
			onlyWrites := errors.Is(failure, faultfs.ErrShort) || errors.Is(failure, faultfs.ErrQuietShort)
			full := errors.Is(failure, faultfs.ErrShort) || errors.Is(failure, syscall.ENOSPC)
			for k, finished := 1, false; !finished; k += faultfs.Step {
				m := base.AfterCrash(faultfs.Nothing())
				s := open(t, testDir, smallPacks(m))
				var at faultfs.Call
				m.Inject(func(c faultfs.Call) error {
					if c.N == k && (c.Kind == "write" || !onlyWrites) {
						at = c
						return failure
					}
					return nil
				})
				err := a.do(s)
				finished = m.Calls() < k
				m.Inject(nil)
				where := fmt.Sprintf("%s: %v at call %d (%s %s)", a.name, failure, k, at.Kind, at.Path)
				if err == nil {
					after := open(t, testDir, smallPacks(m.AfterCrash(faultfs.Nothing())))
					if err := consistent(after, slices.Concat(oldLive, a.after)); err != nil {
						t.Fatalf("%s: it succeeded, but after a crash: %v", where, err)
					}
					closeStore(t, after)
					m.Revive()
				} else if full && !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("%s: not recognisable: %v", where, err)
				}
				// A read error may have marked objects as damaged: they are
				// added again.
				if err := errors.Join(put(s, oldLive), consistent(s, oldLive)); err != nil {
					t.Fatalf("%s: what was there: %v", where, err)
				}
				if err := errors.Join(a.do(s), consistent(s, slices.Concat(oldLive, a.after))); err != nil {
					t.Fatalf("%s: second attempt: %v", where, err)
				}
				closeStore(t, s)
				if at.Kind != "remove" {
					if err := noTemp(m); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
				}
			}
		}
	}
}

// TestWrongBytesWritten has the device store something else than it was given,
// in every write in turn: nothing of it may count as stored.
func TestWrongBytesWritten(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		for k, finished := 0, false; !finished; k++ {
			m := newFS(t)
			opt.FS = m
			s := open(t, testDir, opt)
			n := 0
			m.Distort(func(_ string, b []byte) []byte {
				if n == k {
					b[len(b)/3] ^= 4
				}
				n++
				return b
			})
			err := put(s, newSamples)
			finished = n <= k
			m.Distort(nil)
			switch {
			case finished && err != nil:
				t.Fatal(err)
			case !finished && (err == nil || !strings.Contains(err.Error(), "read back") && !errors.Is(err, ErrCorrupt)):
				t.Fatalf("wrong bytes in write %d: %v", k, err)
			}
			if err := consistent(s, nil); err != nil {
				t.Fatalf("wrong bytes in write %d: %v", k, err)
			}
			mustPut(t, s, newSamples)
			if err := consistent(s, newSamples); err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
		}
	})
}

// TestMain runs the process that TestKilledProcess kills.
func TestMain(m *testing.M) {
	if spec := os.Getenv("OBJECT_TEST_CRASH"); spec != "" {
		os.Exit(crashChild(spec, os.Getenv("OBJECT_TEST_DIR")))
	}
	verifyNoLeaks(m)
}

// crashChild stores and collects with fault points set, and should not survive it.
func crashChild(spec, dir string) int {
	faults, err := faultpoint.Parse(spec)
	if err == nil {
		err = faults.Check(FaultPoints()...)
	}
	if err != nil {
		return 3
	}
	s, err := Open(dir, Options{Faults: faults})
	if err != nil {
		return 4
	}
	if err := put(s, newSamples); err != nil {
		return 5
	}
	if _, err := s.Collect(context.Background(), marks(oldLive, newSamples)); err != nil {
		return 6
	}
	return 0
}

// TestKilledProcess kills a real process at every fault point on a real file
// system.
func TestKilledProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	mustPut(t, s, oldSamples)
	closeStore(t, s)
	for _, point := range FaultPoints() {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "OBJECT_TEST_CRASH="+point+"=crash", "OBJECT_TEST_DIR="+dir)
		err := cmd.Run()
		var ee *exec.ExitError
		if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: child was not killed: %v", point, err)
		}
		s := open(t, dir, Options{})
		must := oldSamples
		if point == FaultBeforeDelete {
			must = slices.Concat(oldLive, newSamples)
		}
		if err := consistent(s, must); err != nil {
			t.Errorf("%s: %v", point, err)
		}
		if point == FaultAfterRename && !s.Has(newSamples[0].id) {
			t.Error("a pack that was named is not there")
		}
		mustCollect(t, s, oldSamples) // only new samples, if any, are dropped
		closeStore(t, s)
		names, err := os.ReadDir(dir + "/tmp")
		if err != nil || len(names) > 0 {
			t.Errorf("%s: left in tmp: %v, %v", point, names, err)
		}
	}
}
