package vm

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files") //nolint:gochecknoglobals // test flag

func fullSpec() Spec {
	return Spec{
		Name: "job1/g0,x", Dir: "/run/vft/g0", MemoryMiB: 512, CPUs: 2, Accel: AccelTCG,
		Kernel: "/img/vmlinuz", Initrd: "/img/initrd", Append: "console=ttyS0, quiet",
		Disks: []Disk{{Path: "/img/root,1.squashfs", ReadOnly: true, Serial: "root"}, {Path: "/img/data"}},
		MAC:   "02:76:66:74:00:01", MTU: 65520,
	}
}

func TestArgvGolden(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"tcg":      func(*Spec) {},
		"kvm":      func(s *Spec) { s.Accel, s.CPUModel = AccelKVM, "EPYC-v1" },
		"incoming": func(s *Spec) { s.Incoming = true },
		"minimal":  func(s *Spec) { *s = Spec{Name: "m", Dir: "/d", MemoryMiB: 64, CPUs: 1} },
		"sockets":  func(s *Spec) { s.NetSocket, s.AgentSocket, s.QMPSocket = "/s/n", "/s/a", "/s/q" },
		"i440fx":   func(s *Spec) { s.Machine = "pc-i440fx-8.1" },
	} {
		t.Run(name, func(t *testing.T) {
			s := fullSpec()
			change(&s)
			argv, err := s.Argv()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(argv, "\n") + "\n"
			path := filepath.Join("testdata", "argv", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("argv differs from %s (go test -update rewrites it):\n%s", path, got)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"good":          {func(*Spec) {}, ""},
		"no name":       {func(s *Spec) { s.Name = "" }, "no name"},
		"relative dir":  {func(s *Spec) { s.Dir = "run" }, "absolute"},
		"memory":        {func(s *Spec) { s.MemoryMiB = 0 }, "memory"},
		"cpus":          {func(s *Spec) { s.CPUs = 0 }, "CPUs"},
		"accel":         {func(s *Spec) { s.Accel = "xen" }, "accelerator"},
		"machine":       {func(s *Spec) { s.Machine = "q35" }, "version"},
		"machine 2":     {func(s *Spec) { s.Machine = "pc-q35" }, "version"},
		"initrd alone":  {func(s *Spec) { s.Kernel = "" }, "without a kernel"},
		"mac":           {func(s *Spec) { s.MAC = "x" }, "Ethernet"},
		"multicast mac": {func(s *Spec) { s.MAC = "01:00:5e:00:00:01" }, "multicast"},
		"mtu":           {func(s *Spec) { s.MTU = 70000 }, "MTU"},
		"disk":          {func(s *Spec) { s.Disks = []Disk{{}} }, "disk"},
		"long dir":      {func(s *Spec) { s.Dir = "/" + strings.Repeat("d", 100) }, "shorter runtime directory"},
		"just fits":     {func(s *Spec) { s.Dir = "/" + strings.Repeat("d", 107-1-len("/agent.sock")) }, ""},
		"one too many":  {func(s *Spec) { s.Dir = "/" + strings.Repeat("d", 107-len("/agent.sock")) }, "107"},
	} {
		t.Run(name, func(t *testing.T) {
			s := fullSpec()
			c.change(&s)
			err := s.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, aerr := s.Argv(); (aerr == nil) != (err == nil) {
				t.Errorf("argv: %v", aerr)
			}
		})
	}
}

func TestCompat(t *testing.T) {
	base, err := CompatOf(fullSpec(), "7.2.22")
	if err != nil {
		t.Fatal(err)
	}
	same := fullSpec()
	same.Name, same.Dir, same.Append, same.MAC, same.Incoming = "other", "/elsewhere", "x", "02:00:00:00:00:09", true
	same.Disks[0].Path = "/copy"
	for name, c := range map[string]struct {
		change  func(*Spec)
		version string
		field   string
	}{
		"names and paths": {func(s *Spec) { *s = same }, "7.2.22", ""},
		"newer":           {func(*Spec) {}, "10.0.2", ""},
		"older micro":     {func(*Spec) {}, "7.2.1", ""},
		"older":           {func(*Spec) {}, "7.1.0", "QEMU version"},
		"memory":          {func(s *Spec) { s.MemoryMiB++ }, "7.2.22", "memory"},
		"cpus":            {func(s *Spec) { s.CPUs++ }, "7.2.22", "number of CPUs"},
		"machine":         {func(s *Spec) { s.Machine = "pc-q35-8.0" }, "7.2.22", "machine type"},
		"accel":           {func(s *Spec) { s.Accel = AccelKVM }, "7.2.22", "accelerator"},
		"model":           {func(s *Spec) { s.CPUModel = "EPYC-v1" }, "7.2.22", "CPU model"},
		"no nic":          {func(s *Spec) { s.MAC = "" }, "7.2.22", "device set"},
		"mtu":             {func(s *Spec) { s.MTU = 1500 }, "7.2.22", "device set"},
		"disk":            {func(s *Spec) { s.Disks = s.Disks[:1] }, "7.2.22", "device set"},
	} {
		t.Run(name, func(t *testing.T) {
			s := fullSpec()
			c.change(&s)
			here, err := CompatOf(s, c.version)
			if err != nil {
				t.Fatal(err)
			}
			err = CheckCompat(base, here)
			var ce *CompatError
			if c.field == "" && err != nil || c.field != "" && (!errors.As(err, &ce) || ce.Field != c.field || ce.Hint == "") {
				t.Errorf("got %v, want field %q", err, c.field)
			}
		})
	}
	bad := base
	bad.QEMUVersion = "seven"
	if CheckCompat(bad, base) == nil || CheckCompat(base, bad) == nil {
		t.Error("accepted a malformed version")
	}
}
