package faultfs

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

func write(t *testing.T, m *FS, path, content string, sync bool) {
	t.Helper()
	f, err := m.Create(path)
	if err == nil {
		err = fsys.WriteAll(f, []byte(content))
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCrashForgetsWhatWasNotSynced(t *testing.T) {
	m := New()
	if err := m.MakeRoot("/d"); err != nil {
		t.Fatal(err)
	}
	write(t, m, "/d/durable", "content", true)
	write(t, m, "/d/named", "content", false)
	if err := m.SyncDir("/d"); err != nil {
		t.Fatal(err)
	}
	write(t, m, "/d/synced", "content", true)
	for name, tc := range map[string]struct {
		left  Survival
		files []string
		named int
	}{
		"all":     {All(), []string{"/d/durable", "/d/named", "/d/synced"}, 7},
		"nothing": {Nothing(), []string{"/d/durable", "/d/named"}, 0},
	} {
		after := m.AfterCrash(tc.left)
		if got := after.Files("/d"); !slices.Equal(got, tc.files) {
			t.Errorf("%s: %q", name, got)
		}
		if got := string(after.Bytes("/d/durable")); got != "content" {
			t.Errorf("%s: durable file has %q", name, got)
		}
		if got := len(after.Bytes("/d/named")); got != tc.named {
			t.Errorf("%s: unsynced file has %d bytes", name, got)
		}
	}
	if _, err := m.Stat("/d"); err == nil {
		t.Error("a crashed machine answers")
	}
	m.Revive()
	if _, err := m.Stat("/d/synced"); err != nil {
		t.Errorf("after the process alone died: %v", err)
	}
	seen := map[string]bool{}
	for seed := range uint64(50) {
		b := m.AfterCrash(Some(seed)).Bytes("/d/named")
		seen[string(b)] = true
	}
	if len(seen) < 8 {
		t.Errorf("50 crashes left only %d kinds of file", len(seen))
	}
}

func TestInject(t *testing.T) {
	m := New()
	write(t, m, "/f", "12345678", true)
	f, err := m.Create("/g")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		fail, want error
		n          int
	}{
		{syscall.EIO, syscall.EIO, 0}, {ErrShort, syscall.ENOSPC, 2}, {ErrQuietShort, nil, 2}, {nil, nil, 4},
	} {
		m.Inject(FailAt(2, tc.fail))
		if _, err := m.Stat("/f"); err != nil {
			t.Fatal(err)
		}
		n, err := f.Write([]byte("abcd"))
		if n != tc.n || !errors.Is(err, tc.want) {
			t.Errorf("%v: %d, %v", tc.fail, n, err)
		}
		if m.Calls() != 2 {
			t.Errorf("%d calls counted", m.Calls())
		}
	}
	m.Flip("/f", 8)
	if got := string(m.Bytes("/f")); got != "13345678" {
		t.Errorf("after a flip: %q", got)
	}
	m.Distort(func(string, []byte) []byte { return []byte("wrong") })
	m.Inject(CrashAt(3))
	if _, err := f.Write([]byte("right")); err != nil {
		t.Fatal(err)
	}
	if got := m.Bytes("/g"); string(got) != "abababcdwrong" {
		t.Errorf("stored %q", got)
	}
	_ = f.Sync()
	if err := f.Close(); !errors.Is(err, ErrCrash) {
		t.Errorf("third call: %v", err)
	}
	if _, err := m.Open("/g"); err == nil {
		t.Error("open after the crash")
	}
}

func TestScratchOverwrites(t *testing.T) {
	m := New()
	write(t, m, "/s", "12345678", true)
	if err := m.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	f, err := m.OpenScratch("/s")
	if err != nil {
		t.Fatal(err)
	}
	m.Inject(FailAt(1, ErrShort))
	if n, err := f.WriteAt([]byte("WXYZ"), 4); n != 2 || !errors.Is(err, syscall.ENOSPC) || string(m.Bytes("/s")) != "1234WX78" {
		t.Fatalf("%d, %v, %q", n, err, m.Bytes("/s"))
	}
	if got := m.AfterCrash(Nothing()).Bytes("/s"); string(got) != "1234" {
		t.Fatalf("a crash left %q", got)
	}
}
