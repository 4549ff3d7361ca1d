package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// change is a way of changing the store.
type change struct {
	name   string
	before func(s *Store) error // has survived
	do     func(s *Store) error // is interrupted
	must   func(s *Store) error // holds once do has returned nil
}

// changes are all ways of changing the store, with a part that they concern.
func allChanges(t *testing.T) (part, otherJob sample, all []change) {
	t.Helper()
	part = newSample(2, 0, 7)
	otherJob = newSample(1, 0, 5)
	otherJob.id.Job = "other"
	blob := randomBytes(7, 9000)
	home := openMem(t, faultfs.New()) // what the actions need is made once
	manifest := part.mustPut(t, home).Manifest
	ctx := context.Background()
	store := func(s *Store) error { _, err := part.put(s); return err }
	return part, otherJob, []change{
		{name: "commit", do: store, must: func(s *Store) error {
			info, err := s.Stat(ctx, part.id)
			if err != nil {
				return err
			}
			return part.check(s, info.Manifest)
		}},
		{
			name: "commit into a new job",
			do:   func(s *Store) error { _, err := otherJob.put(s); return err },
			must: func(s *Store) error { return verifyAny(s, otherJob.id) },
		},
		{name: "commit again", before: store, do: store, must: func(s *Store) error { return verifyAny(s, part.id) }},
		{
			name: "fetch",
			do:   func(s *Store) error { _, _, err := s.Fetch(ctx, part.id, manifest, home); return err },
			must: func(s *Store) error { return part.check(s, manifest) },
		},
		{
			name: "delete", before: store,
			do: func(s *Store) error { return s.Delete(ctx, part.id) },
			must: func(s *Store) error {
				if _, err := s.Stat(ctx, part.id); !errors.Is(err, ErrNotFound) {
					return fmt.Errorf("deleted part is back: %w", err)
				}
				return nil
			},
		},
		{
			name:   "delete job",
			before: func(s *Store) error { _, err := otherJob.put(s); return err },
			do:     func(s *Store) error { return s.DeleteJob(ctx, otherJob.id.Job) },
			must: func(s *Store) error {
				if infos, err := s.List(ctx, otherJob.id.Job); len(infos) > 0 || err != nil {
					return fmt.Errorf("deleted job is back: %v, %w", infos, err)
				}
				return nil
			},
		},
		{
			name: "collect",
			before: func(s *Store) error {
				_, err := otherJob.put(s)
				return errors.Join(err, s.DeleteJob(ctx, otherJob.id.Job))
			},
			do:   func(s *Store) error { _, err := s.Collect(ctx); return err },
			must: func(*Store) error { return nil },
		},
		{
			name: "put blob",
			do: func(s *Store) error {
				_, err := s.Blobs().Put(ctx, Digest(blob), int64(len(blob)), bytes.NewReader(blob))
				return err
			},
			must: func(s *Store) error {
				r, err := s.Blobs().Open(ctx, Digest(blob))
				if err != nil {
					return err
				}
				return r.Close()
			},
		},
	}
}

// verifyAny verifies a part whatever its manifest.
func verifyAny(s *Store, id PartID) error {
	info, err := s.Stat(context.Background(), id)
	if err != nil {
		return err
	}
	_, _, err = s.Verify(context.Background(), id, info.Manifest, nil)
	return err
}

// TestCrashAnywhere crashes every way of changing the store between any two
// calls of the file system, and looks at what is there afterwards.
func TestCrashAnywhere(t *testing.T) {
	old := newSample(1, 0, 6)
	part, otherJob, all := allChanges(t)
	for _, tc := range all {
		t.Run(tc.name, func(t *testing.T) {
			for k, finished := 1, false; !finished; k += faultfs.Step {
				for how, left := range faultfs.Survivals() {
					m := faultfs.New()
					s := openMem(t, m)
					oldManifest := old.mustPut(t, s).Manifest
					if tc.before != nil {
						if err := tc.before(s); err != nil {
							t.Fatal(err)
						}
					}
					m.Inject(faultfs.CrashAt(k))
					err := tc.do(s)
					finished = m.Calls() < k
					_ = s.Close()

					m = m.AfterCrash(left)
					s = openMem(t, m)
					where := fmt.Sprintf("crash at call %d, %s survives", k, how)
					if oerr := old.check(s, oldManifest); oerr != nil {
						t.Fatalf("%s: older part: %v", where, oerr)
					}
					for _, p := range []sample{part, otherJob} {
						if verr := verifyAny(s, p.id); verr != nil && !errors.Is(verr, ErrNotFound) {
							t.Fatalf("%s: part is there and bad: %v", where, verr)
						}
					}
					if err == nil {
						if merr := tc.must(s); merr != nil {
							t.Fatalf("%s, after success: %v", where, merr)
						}
					}
					noTemp(t, m)
					// The call can be repeated.
					if err := tc.do(s); err != nil {
						t.Fatalf("%s: again: %v", where, err)
					}
					if err := tc.must(s); err != nil {
						t.Fatalf("%s: again: %v", where, err)
					}
					if _, err := s.Collect(t.Context()); err != nil {
						t.Fatalf("%s: collecting: %v", where, err)
					}
					if oerr := old.check(s, oldManifest); oerr != nil {
						t.Fatalf("%s: older part after a collection: %v", where, oerr)
					}
					_ = s.Close()
				}
				if k > 1000 {
					t.Fatal("does not come to an end")
				}
			}
		})
	}
}

// TestRepeatAfterKilledProcess kills the process, not the machine, between any
// two calls, repeats the call in a new process, and then crashes the machine:
// what the second process reported as stored must be durable, though the first
// one may have named it without syncing the name.
func TestRepeatAfterKilledProcess(t *testing.T) {
	_, _, all := allChanges(t)
	for _, tc := range all {
		if tc.before != nil {
			continue
		}
		for k, finished := 1, false; !finished; k += faultfs.Step {
			m := faultfs.New()
			s := openMem(t, m)
			m.Inject(faultfs.CrashAt(k))
			_ = tc.do(s)
			finished = m.Calls() < k
			_ = s.Close()
			m.Revive()
			s = openMem(t, m)
			if err := tc.do(s); err != nil {
				t.Fatalf("%s, killed at call %d: again: %v", tc.name, k, err)
			}
			_ = s.Close()
			if err := tc.must(openMem(t, m.AfterCrash(faultfs.Nothing()))); err != nil {
				t.Fatalf("%s, killed at call %d, repeated, machine crashed: %v", tc.name, k, err)
			}
		}
	}
}

func TestCrashWhileOpening(t *testing.T) {
	how := faultfs.Survivals()
	for seed := range uint64(20) {
		how[fmt.Sprint("some, seed ", seed)] = faultfs.Some(seed)
	}
	for k, finished := 1, false; !finished; k += faultfs.Step {
		for how, left := range how {
			m := faultfs.New()
			m.Inject(faultfs.CrashAt(k))
			s, err := open(m, testDir, Options{})
			if err == nil {
				finished = m.Calls() < k
				_ = s.Close()
			}
			s, err = open(m.AfterCrash(left), testDir, Options{})
			if err != nil {
				t.Fatalf("crash at call %d, %s survives: %v", k, how, err)
			}
			p := newSample(1, 0, 2)
			p.mustCheck(t, s, p.mustPut(t, s).Manifest)
			_ = s.Close()
		}
	}
}

// TestErrorAnywhere makes every single call fail in every way: the commit fails
// or the part is there and durable, the older part is intact, nothing is left
// behind, and a second attempt works.
func TestErrorAnywhere(t *testing.T) {
	old, part := newSample(1, 0, 3), newSample(2, 0, 9)
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC, faultfs.ErrShort, faultfs.ErrQuietShort} {
		for k, finished := 1, false; !finished; k += faultfs.Step {
			m := faultfs.New()
			s := openMem(t, m)
			oldManifest := old.mustPut(t, s).Manifest
			var at faultfs.Call
			m.Inject(func(c faultfs.Call) error {
				short := errors.Is(failure, faultfs.ErrShort) || errors.Is(failure, faultfs.ErrQuietShort)
				if c.N == k && (c.Kind == "write" || !short) {
					at = c
					return failure
				}
				return nil
			})
			info, err := part.put(s)
			finished = m.Calls() < k
			m.Inject(nil)
			where := fmt.Sprintf("%v at call %d (%s %s)", failure, k, at.Kind, at.Path)
			switch {
			case err == nil:
				after := openMem(t, m.AfterCrash(faultfs.Nothing()))
				if err := part.check(after, info.Manifest); err != nil {
					t.Fatalf("%s: commit succeeded, but after a crash: %v", where, err)
				}
				_ = after.Close()
				_ = s.Close()
				continue
			case at.Kind == "write" && !errors.Is(failure, syscall.EIO) && !errors.Is(failure, faultfs.ErrQuietShort):
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("%s: not recognisable: %v", where, err)
				}
			}
			if _, err := s.Stat(t.Context(), part.id); !errors.Is(err, ErrNotFound) {
				t.Fatalf("%s: part is there after a failure: %v", where, err)
			}
			if err := old.check(s, oldManifest); err != nil {
				t.Fatalf("%s: older part: %v", where, err)
			}
			info, err = part.put(s)
			if err != nil {
				t.Fatalf("%s: second attempt: %v", where, err)
			}
			part.mustCheck(t, s, info.Manifest)
			_ = s.Close()
			if at.Kind != "remove" && at.Kind != "stat" && at.Kind != "readdir" {
				noTemp(t, m)
			}
		}
	}
}

// crashChild commits epoch 2 with fault points set, and should not survive it.
func crashChild(spec, dir string) int {
	faults, err := faultpoint.Parse(spec)
	if err != nil {
		return 3
	}
	s, err := Open(dir, Options{Faults: faults})
	if err != nil {
		return 4
	}
	if _, err := newSample(2, 0, 800).put(s); err != nil {
		return 5
	}
	return 0
}

// TestKilledProcess kills a real process at every fault point of a commit on a
// real file system.
func TestKilledProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	old, part := newSample(1, 0, 500), newSample(2, 0, 800)
	s := openOS(t, dir)
	oldManifest := old.mustPut(t, s).Manifest
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	points := []string{FaultPage, FaultBeforeSync, FaultBeforeRename, FaultAfterRename}
	for _, point := range points {
		cmd := exec.CommandContext(t.Context(), os.Args[0]) // the test binary itself
		cmd.Env = append(os.Environ(), "CKPT_TEST_CRASH="+point+"=crash", "CKPT_TEST_DIR="+dir)
		err := cmd.Run()
		var ee *exec.ExitError
		if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: child was not killed: %v", point, err)
		}
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		old.mustCheck(t, s, oldManifest)
		info, err := s.Stat(t.Context(), part.id)
		if point == FaultAfterRename {
			if err != nil {
				t.Errorf("%s: %v", point, err)
			} else {
				part.mustCheck(t, s, info.Manifest)
			}
		} else if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: half a part: %v", point, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, tmpName)); err != nil || len(left) > 0 {
			t.Errorf("%s: left in tmp: %v, %v", point, left, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
