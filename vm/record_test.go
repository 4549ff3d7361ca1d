package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseStartTicks(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21\n"
	for _, c := range []struct {
		in   string
		want uint64
		ok   bool
	}{
		{"12 (qemu)" + tail, 4242, true},
		{"12 (a) b (c))" + tail, 4242, true},
		{"12 (qemu" + tail, 0, false},
		{"12 (qemu) S 1", 0, false},
		{"12 (qemu)" + strings.Replace(tail, " S", " Z", 1), 0, false},
		{"", 0, false},
	} {
		got, err := parseStartTicks([]byte(c.in))
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: %d, %v", c.in, got, err)
		}
	}
}

func FuzzParseStartTicks(f *testing.F) {
	f.Add([]byte("1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStartTicks(b) })
}

func TestRecordVerify(t *testing.T) {
	start, err := startTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	good := record{Version: recordVersion, PID: os.Getpid(), Start: start, BootID: boot, Binary: os.Args[0], Argv: os.Args[1:], Spec: fullSpec()}
	dir := t.TempDir()
	if _, err := loadRecord(dir); !errors.Is(err, ErrNoMachine) {
		t.Errorf("empty directory: %v", err)
	}
	if err := good.save(dir); err != nil {
		t.Fatal(err)
	}
	r, err := loadRecord(dir)
	if err != nil || r.verify() != nil || r.Spec.MAC != good.Spec.MAC {
		t.Errorf("own process: %v, %v", err, r.verify())
	}
	for name, change := range map[string]func(*record){
		"start":   func(r *record) { r.Start++ },
		"boot":    func(r *record) { r.BootID = "x" },
		"argv":    func(r *record) { r.Argv = []string{"x"} },
		"missing": func(r *record) { r.PID = 1 << 30 },
	} {
		bad := good
		change(&bad)
		if err := bad.verify(); !errors.Is(err, ErrNoMachine) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"version": `{"version": 99}`, "pid": `{"version": 1, "pid": 0}`, "json": "{"} {
		if err := os.WriteFile(filepath.Join(dir, fileMachine), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadRecord(dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestBoundAndTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := bound(path, 10); err != nil {
		t.Errorf("no file: %v", err)
	}
	text := strings.Repeat("0123456789\n", 100)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := tail(path, 25); got != "0123456789\n0123456789" {
		t.Errorf("tail %q", got)
	}
	if err := bound(path, 500); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != 0 {
		t.Errorf("log has %d bytes, %v", st.Size(), err)
	}
	old, err := os.ReadFile(path + ".old")
	if err != nil || len(old) == 0 || len(old) > 250 {
		t.Errorf("old log has %d bytes, %v", len(old), err)
	}
}

func TestProbeCache(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "k")
	if err := os.WriteFile(kernel, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := probeKey("/proc/self/exe", kernel)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "probe.json")
	if _, ok := loadProbe(path, key); ok {
		t.Error("found in no cache")
	}
	want := Capabilities{Accel: AccelTCG, CPUModel: "x", Engines: []EngineSupport{{Engine: EngineStopCopy, OK: true}}}
	if err := saveProbe(path, key, want); err != nil {
		t.Fatal(err)
	}
	got, ok := loadProbe(path, key)
	if !ok || got.CPUModel != "x" || !got.Supports(EngineStopCopy) || got.Supports(EnginePreCopy) {
		t.Errorf("cache has %+v", got)
	}
	if err := os.WriteFile(kernel, []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if other, err := probeKey("/proc/self/exe", kernel); err != nil || other == key {
		t.Errorf("another kernel has the same key (%v)", err)
	}
	if _, err := probeKey("/proc/self/exe", "/nonexistent"); err == nil {
		t.Error("key of a kernel that is not there")
	}
}

func TestRestoreWayOfNode(t *testing.T) {
	without := func(ways ...RestoreWay) Capabilities {
		c := Capabilities{}
		for _, w := range RestoreWays() {
			s := RestoreSupport{Way: w, OK: !slices.Contains(ways, w)}
			if !s.OK {
				s.Why = "no privilege"
			}
			c.RestoreWays = append(c.RestoreWays, s)
		}
		return c
	}
	for _, tc := range []struct {
		caps Capabilities
		want RestoreWay
		got  RestoreWay
		why  string
	}{
		{without(), RestoreAuto, RestorePlain, ""},
		{without(), "", RestorePlain, ""},
		{without(), RestoreLazy, RestoreLazy, ""},
		{without(), RestoreFile, RestoreFile, ""},
		{without(), RestorePlain, RestorePlain, ""},
		{without(RestoreLazy), RestoreLazy, RestorePlain, "no privilege"},
		{without(RestoreLazy), RestoreFile, RestoreFile, ""},
		{without(RestoreFile), RestoreFile, RestorePlain, "no privilege"},
		{without(RestorePlain), RestorePlain, RestorePlain, ""},
		{Capabilities{}, RestoreLazy, RestorePlain, "not tried"},
	} {
		way, why := tc.caps.RestoreWay(tc.want)
		if way != tc.got || !strings.Contains(why, tc.why) || (why == "") != (tc.why == "") {
			t.Errorf("%v: %q is %q (%s), want %q (%s)", tc.caps.RestoreWays, tc.want, way, why, tc.got, tc.why)
		}
	}
}
