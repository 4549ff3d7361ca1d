package ckpt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

func TestOpenMakesAPrivateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := openOS(t, dir)
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", fi, err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Parts != 0 || u.Free <= 0 {
		t.Fatalf("%+v, %v", u, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the point of the test
		t.Fatal(err)
	}
	openOS(t, dir)
	if fi, _ := os.Stat(dir); fi.Mode().Perm() != 0o700 {
		t.Fatalf("reopened with mode %v", fi.Mode())
	}
}

func TestOpenRefuses(t *testing.T) {
	write := func(name, text string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	for _, tc := range []struct {
		name string
		make func(dir string) error
		want error
		says string
	}{
		{"older format", write("format", "vft checkpoint store 1\n"), ErrVersion, "use the vft that wrote it"},
		{"empty format", write("format", ""), ErrVersion, "use the vft that wrote it"},
		{"somebody's files", write("thesis.tex", "x"), ErrNotStore, "empty directory"},
		{"somebody's tmp", func(dir string) error { return os.Mkdir(filepath.Join(dir, "tmp"), 0o700) }, ErrNotStore, "empty directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tc.make(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // to see that it stays
				t.Fatal(err)
			}
			_, err := Open(dir, Options{})
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("error %v", err)
			}
			entries, _ := os.ReadDir(dir)
			if fi, _ := os.Stat(dir); len(entries) != 1 || fi.Mode().Perm() != 0o755 {
				t.Fatalf("directory was touched: %v, %v", entries, fi.Mode())
			}
		})
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil {
		t.Fatal("opened a file")
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := openOS(t, dir)
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("error %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openOS(t, dir)
}

func TestNames(t *testing.T) {
	s := openMem(t, faultfs.New())
	for _, job := range []string{
		"", ".", "..", "../x", "a/b", "/a", "a\x00b", ".hidden", "-rf", "ä", "a b", "a\nb", strings.Repeat("x", 129),
	} {
		id := PartID{Job: job}
		_, err := s.Create(t.Context(), id)
		_, lerr := s.List(t.Context(), job)
		for what, err := range map[string]error{
			"Create": err, "List": lerr, "Delete": s.Delete(t.Context(), id), "DeleteJob": s.DeleteJob(t.Context(), job),
		} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%s of job %q: %v", what, job, err)
			}
		}
	}
	for _, job := range []string{"a", "BT-MZ_1.x", strings.Repeat("x", 128), "1"} {
		if err := ValidateJob(job); err != nil {
			t.Error(err)
		}
	}
	if err := (PartID{Job: "a", Guest: -1}).Validate(); !errors.Is(err, ErrName) {
		t.Errorf("guest -1: %v", err)
	}
	for _, d := range []string{"", "../../etc/passwd", strings.Repeat("g", 64), strings.Repeat("A", 64), strings.Repeat("a", 63)} {
		if err := ValidateDigest(d); !errors.Is(err, ErrName) {
			t.Errorf("digest %q: %v", d, err)
		}
		if _, err := s.Blobs().Has(d); !errors.Is(err, ErrName) {
			t.Errorf("Has %q: %v", d, err)
		}
	}
	for name, ok := range map[string]bool{
		"0.0": true, "18446744073709551615.7": true, "01.0": false, "1.-1": false, "+1.0": false, "1": false, "1.2.3": false, "": false,
	} {
		if _, _, got := parsePartName(name); got != ok {
			t.Errorf("parsePartName(%q) = %v", name, got)
		}
	}
}

func TestListStatDelete(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	var want []PartID
	for _, epoch := range []uint64{2, 10, 1} {
		for guest := range 2 {
			p := newSample(epoch, guest, 5)
			info := p.mustPut(t, s)
			if info.ChannelFrames != 3 || info.Incarnation != 3 || info.Engine != "stop-copy" ||
				!info.CutAt.Equal(p.meta.CutAt) || info.Size <= 6*4096+10500 {
				t.Fatalf("%+v", info)
			}
			if got, err := s.Stat(t.Context(), p.id); err != nil || got != info {
				t.Fatalf("Stat %+v, %v; Commit %+v", got, err, info)
			}
			want = append(want, p.id)
		}
	}
	want = append(append(want[4:], want[:2]...), want[2:4]...)
	infos, err := s.List(t.Context(), want[0].Job)
	if err != nil || len(infos) != len(want) {
		t.Fatalf("%v, %v", infos, err)
	}
	var total int64
	for i := range infos {
		if infos[i].ID != want[i] {
			t.Errorf("%d: %v, want %v", i, infos[i].ID, want[i])
		}
		total += infos[i].Size
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Parts != 6 || u.RawBytes < total/2 || u.RawBytes > total {
		t.Fatalf("%+v, %v; parts have %d", u, err, total)
	}

	// A damaged manifest does not hide the others.
	m.Flip(testDir+"/parts/bt-mz.1/2.1", 1600)
	infos, err = s.List(t.Context(), want[0].Job)
	if !errors.Is(err, ErrCorrupt) || len(infos) != 5 {
		t.Fatalf("%d parts, %v", len(infos), err)
	}

	for range 2 {
		if err := s.Delete(t.Context(), want[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Stat(t.Context(), want[0]); !errors.Is(err, ErrNotFound) {
		t.Fatalf("%v", err)
	}
	if jobs, err := s.Jobs(t.Context()); err != nil || len(jobs) != 1 {
		t.Fatalf("%v, %v", jobs, err)
	}
	for range 2 {
		if err := s.DeleteJob(t.Context(), want[0].Job); err != nil {
			t.Fatal(err)
		}
	}
	if jobs, err := s.Jobs(t.Context()); err != nil || len(jobs) != 0 {
		t.Fatalf("%v, %v", jobs, err)
	}
	if infos, err := s.List(t.Context(), want[0].Job); err != nil || len(infos) != 0 {
		t.Fatalf("%v, %v", infos, err)
	}
	noTemp(t, m)
}

func TestLastPartTakesItsJobAlong(t *testing.T) {
	s := openMem(t, faultfs.New())
	p := newSample(1, 0, 10)
	p.mustPut(t, s)
	if err := s.Delete(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	if jobs, err := s.Jobs(t.Context()); err != nil || len(jobs) != 0 {
		t.Fatalf("%v, %v", jobs, err)
	}
}

func TestClosedStore(t *testing.T) {
	m := faultfs.New()
	s := openMem(t, m)
	p := newSample(1, 0, 10)
	w, err := s.Create(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if time.Since(start) > time.Second {
		t.Error("Close waited for a writer that nobody feeds")
	}
	if _, err := w.Commit(t.Context(), p.meta); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	noTemp(t, m)
	digest := Digest(nil)
	_, gerr := s.Collect(t.Context())
	_, cerr := s.Create(t.Context(), p.id)
	_, oerr := s.Open(p.id, digest)
	_, _, ferr := s.Fetch(t.Context(), p.id, digest, nil)
	_, serr := s.Stat(t.Context(), p.id)
	_, _, verr := s.Verify(t.Context(), p.id, digest, nil)
	_, perr := s.Blobs().Put(t.Context(), digest, 0, nil)
	_, berr := s.Blobs().Open(t.Context(), digest)
	for what, err := range map[string]error{
		"Create": cerr, "Collect": gerr, "Open": oerr, "Fetch": ferr, "Stat": serr, "Verify": verr, "Put": perr, "Blobs.Open": berr,
		"Delete": s.Delete(t.Context(), p.id), "Blobs.Delete": s.Blobs().Delete(digest),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
