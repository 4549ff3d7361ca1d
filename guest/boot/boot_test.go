package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStartProcessors(t *testing.T) {
	sys := t.TempDir()
	write := func(cpu, state string) string {
		dir := filepath.Join(sys, "devices/system/cpu", cpu)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "online")
		if err := os.WriteFile(file, []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	off, on := write("cpu2", "0\n"), write("cpu1", "1\n")
	if err := os.MkdirAll(filepath.Join(sys, "devices/system/cpu/cpu0"), 0o750); err != nil {
		t.Fatal(err) // processor 0 has no such file
	}
	if err := startProcessors(sys); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{off: "1", on: "1\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", file, got, err, want)
		}
	}
}
