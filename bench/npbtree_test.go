package bench

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

// tree makes something like NPB3.4-MZ-MPI whose benchmark is a script.
func tree(t *testing.T, makefile string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "NPB3.4-MZ", "NPB3.4-MZ-MPI")
	for name, text := range map[string]string{
		"Makefile": makefile, "config/make.def.template": "MPIFC = mpif90\n", "sys/x": "", "common/x": "",
		"BT-MZ/bt.sh": "#!/bin/sh\n# the first rank speaks\n[ \"$OMPI_COMM_WORLD_RANK\" = 0 ] && cat <<'END'\n" + reference + "END\nexit 0\n",
		"SP-MZ/x":     "", "LU-MZ/x": "",
		"bin/bt-mz.W.x": "left over from another build",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	return dir
}

const goodMakefile = "bt-mz:\n\ttest -f config/make.def\n\tcp BT-MZ/bt.sh bin/bt-mz.$(CLASS).x\n"

func TestNPBTree(t *testing.T) {
	dir := tree(t, goodMakefile)
	found, err := FindNPBTree(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Equal(t, dir, found.Dir)
	work := t.TempDir()
	program, err := found.Build(t.Context(), work, "bt-mz", "W", openMPI, 2)
	require.NoError(t, err)
	assert.NoFileExists(t, filepath.Join(dir, "config/make.def"), "the tree is left as it is")
	again, err := found.Build(t.Context(), work, "bt-mz", "W", openMPI, 2)
	require.NoError(t, err)
	assert.Equal(t, program, again)

	text, err := NPBRun{Program: program, Benchmark: "bt-mz", Class: "W", MPI: openMPI, Ranks: 2, Repetitions: 1, Where: []string{"native", "guests"}, Interval: "10s"}.Experiment()
	require.NoError(t, err)
	x, err := experiment.Parse(text)
	require.NoError(t, err)
	require.Len(t, x.Variants, 4)
	b, ok := x.BaselineOf(x.Variants[3])
	require.True(t, ok)
	assert.Equal(t, x.Variants[1], b, "own and reference are compared where they ran")

	// The real mpirun runs it.
	rec, err := executor{bin: "/nowhere", x: x}.execute(t.Context(), experiment.Run{Key: "k", Variant: x.Variants[0], Repetition: 1})
	require.NoError(t, err)
	assert.Equal(t, campaign.Verified, rec.Outcome, rec.Why)
	assert.Equal(t, 6710.92, rec.Figures["mops"])
	assert.Greater(t, rec.Figures["total"], 0.0)
}

func TestWrongNPBTree(t *testing.T) {
	plain := t.TempDir()
	for _, d := range []string{"BT", "EP", "sys", "config", "common"} {
		require.NoError(t, os.Mkdir(filepath.Join(plain, d), 0o755))
	}
	serial := filepath.Join(t.TempDir(), "NPB3.4-MZ-SER")
	require.NoError(t, os.Mkdir(serial, 0o755))
	file := filepath.Join(t.TempDir(), "NPB.tar.gz")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	two := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(two, "NPB3.3-MZ-MPI"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(two, "NPB3.4-MZ-MPI"), 0o755))
	part := tree(t, goodMakefile)
	require.NoError(t, os.RemoveAll(filepath.Join(part, "LU-MZ")))
	bare := tree(t, goodMakefile)
	require.NoError(t, os.Remove(filepath.Join(bare, "config/make.def.template")))
	for name, test := range map[string]struct{ dir, want string }{
		"missing":    {filepath.Join(plain, "none"), "no such file"},
		"an archive": {file, "unpack"},
		"empty":      {t.TempDir(), "there is no Makefile, sys"},
		"no zones":   {plain, "without zones"},
		"serial":     {serial, "without MPI"},
		"several":    {two, "several"},
		"incomplete": {part, "there is no LU-MZ"},
		"no config":  {bare, "make.def"},
	} {
		_, err := FindNPBTree(test.dir)
		require.ErrorIs(t, err, ErrNPBTree, name)
		assert.ErrorContains(t, err, test.want, name)
	}
}

func TestBrokenNPBTree(t *testing.T) {
	for name, test := range map[string]struct{ makefile, want string }{
		"does not compile": {"bt-mz:\n\t@echo 'Error: type mismatch'; exit 1\n", "Error: type mismatch"},
		"builds nothing":   {"bt-mz:\n\t@echo done\n", "0 programs"},
		"no such target":   {"sp-mz:\n", "No rule"},
	} {
		found, err := FindNPBTree(tree(t, test.makefile))
		require.NoError(t, err)
		_, err = found.Build(t.Context(), t.TempDir(), "bt-mz", "W", openMPI, 2)
		assert.ErrorContains(t, err, test.want, name)
	}
	_, err := NPBRun{Benchmark: "ep", Class: "W"}.Experiment()
	assert.ErrorContains(t, err, "bt-mz")
}

// A program that hangs ends with its time, and the record says so.
func TestTimeout(t *testing.T) {
	x, err := experiment.Parse([]byte("name: a\ntimeout: 300ms\nprograms: {slow: {path: /bin/sleep, arguments: ['60'], check: npb}}\nruns: [{program: slow, where: native, ranks: 1}]"))
	require.NoError(t, err)
	begun := time.Now()
	rec, err := executor{bin: "/nowhere", x: x}.execute(t.Context(), x.Schedule()[0])
	require.NoError(t, err)
	assert.Equal(t, campaign.TimedOut, rec.Outcome)
	assert.Less(t, time.Since(begun), 50*time.Second)
}
