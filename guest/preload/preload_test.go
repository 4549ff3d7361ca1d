// Package preload_test tests the libraries that are preloaded into ranks.
package preload_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// run runs a program to its end, which comes within a minute.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(cmd.Environ(), "UCX_TLS=self,tcp")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v (%v)\n%s; missing programs are installed by `make deps`", name, args, err, ctx.Err(), out)
	}
	return string(out)
}

// TestLateFinalize: a rank that comes late to MPI_Finalize still finds the
// others answering. Without the library this hangs.
func TestLateFinalize(t *testing.T) {
	dir := t.TempDir()
	library, program := filepath.Join(dir, "libvft-mpich.so"), filepath.Join(dir, "late")
	run(t, "gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, "src/mpich.c")
	run(t, "mpicc.mpich", "-O2", "-Wall", "-Wextra", "-o", program, "src/late.c")
	for _, ranks := range []string{"2", "4"} {
		if got := run(t, "mpirun.mpich", "-genv", "LD_PRELOAD", library, "-np", ranks, program); got != "finalized\n" {
			t.Errorf("%s ranks: %q", ranks, got)
		}
	}
}
