package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

const small = `
name: small
title: A small one
repetitions: 2
runs:
  - {program: heat, where: native, ranks: [1, 2]}
metrics: [job]
`

// stand makes a campaign whose runs take ten seconds of a clock that nobody
// waits for; fail, when it is not nil, decides a run's fate.
func stand(t *testing.T, dir string, fail func(experiment.Run) error) (Conduct, *bytes.Buffer, *[]string) {
	t.Helper()
	c, err := campaign.Open(dir, []byte(small))
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	var made []string
	var out bytes.Buffer
	return Conduct{
		Campaign: c, Out: &out, Now: func() time.Time { return now },
		Execute: func(_ context.Context, r experiment.Run) (campaign.Run, error) {
			if fail != nil {
				if err := fail(r); err != nil {
					return campaign.Run{}, err
				}
			}
			now = now.Add(10 * time.Second)
			made = append(made, r.Key)
			return campaign.Run{Key: r.Key, Variant: r.Variant, Repetition: r.Repetition, Outcome: campaign.Verified, Figures: map[string]float64{"job": 9}}, nil
		},
	}, &out, &made
}

func TestConduct(t *testing.T) {
	dir := t.TempDir()
	c, out, first := stand(t, dir, nil)
	c.Limit = 15 * time.Second
	left, err := c.Run(t.Context(), campaign.Environment{})
	require.NoError(t, err)
	assert.Equal(t, 2, left)
	assert.Contains(t, out.String(), "[1/4] 1 rank, repetition 1: verified (job 9 s); about 30s left")
	assert.Contains(t, out.String(), "2 runs are left; about 20s left: run it again")

	// A run that cannot be made ends the campaign; what was made stays.
	broken := errors.New("the lab does not start")
	n := 0
	c, _, second := stand(t, dir, func(experiment.Run) error {
		if n++; n > 1 {
			return broken
		}
		return nil
	})
	left, err = c.Run(t.Context(), campaign.Environment{})
	require.ErrorIs(t, err, broken)
	assert.Equal(t, 1, left)
	assert.ErrorContains(t, err, "repetition 2")

	c, _, third := stand(t, dir, nil)
	left, err = c.Run(t.Context(), campaign.Environment{})
	require.NoError(t, err)
	assert.Zero(t, left)
	var keys []string
	for _, r := range c.Campaign.Experiment.Schedule() {
		keys = append(keys, r.Key)
	}
	assert.Equal(t, keys, append(append(*first, *second...), *third...), "every run is made once, in order")
	assert.Equal(t, 10.0, c.Campaign.Runs[0].Took)
}

func TestInterruptedRunIsNoResult(t *testing.T) {
	x, err := experiment.Parse([]byte("name: a\nprograms: {slow: {path: sleep, arguments: ['60'], check: npb}}\nruns: [{program: slow, where: native, ranks: 1}]"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = executor{bin: "/nowhere", x: x}.execute(ctx, x.Schedule()[0])
	assert.ErrorIs(t, err, context.Canceled)
}

const reference = `
 BT-MZ Benchmark Completed.
 Class           =                        W
 Time in seconds =                     2.11
 Mop/s total     =                  6710.92
 Mop/s/thread    =                  3355.46
 Verification    =               SUCCESSFUL
`

func TestCheckReference(t *testing.T) {
	v, err := checkReference(reference)
	require.NoError(t, err)
	assert.Equal(t, map[string]float64{"program": 2.11, "mops": 6710.92, "mops_per_thread": 3355.46}, v.figures)
	assert.Equal(t, []string{"Verification = SUCCESSFUL"}, v.proof)
	for name, test := range map[string]struct{ out, want string }{
		"failed":  {bytesReplace(reference, "SUCCESSFUL", "UNSUCCESSFUL"), "UNSUCCESSFUL"},
		"missing": {bytesReplace(reference, "Verification", "Vindication"), "no verdict"},
		"twice":   {reference + reference, "doubled"},
		"other":   {bytesReplace(reference, "SUCCESSFUL", "NOT PERFORMED"), "NOT PERFORMED"},
	} {
		_, err := checkReference(test.out)
		assert.ErrorContains(t, err, test.want, name)
	}
}

func bytesReplace(s, old, to string) string {
	return string(bytes.Replace([]byte(s), []byte(old), []byte(to), 1))
}

func TestCheckNetPIPE(t *testing.T) {
	const table = "1: vm\n0: vm\nNow starting the main loop\n" +
		"  0:       1 bytes  89335 times -->     58.00 Mbps in       0.13 usec\n" +
		"  1:       2 bytes 760167 times -->    104.59 Mbps in       0.15 usec\n"
	v, err := checkNetPIPE(table)
	require.NoError(t, err)
	assert.Equal(t, []campaign.Point{{Bytes: 1, Latency: 0.13, Bandwidth: 58}, {Bytes: 2, Latency: 0.15, Bandwidth: 104.59}}, v.curve)
	assert.Equal(t, map[string]float64{"latency": 0.13, "bandwidth": 104.59}, v.figures)
	_, err = checkNetPIPE("Now starting the main loop\n")
	assert.ErrorContains(t, err, "no table")
	_, err = checkNetPIPE(table + "  3:       3 bytes 1 times -->    104.59 Mbps in       0.15 usec\n")
	assert.ErrorContains(t, err, "does not follow")
}

func TestCheckText(t *testing.T) {
	_, err := checkText("all is well\n", "well")
	require.NoError(t, err)
	_, err = checkText("well, well", "well")
	require.ErrorContains(t, err, "2 times")
	_, err = checkText("", "well")
	assert.ErrorContains(t, err, "0 times")
}

func TestCommands(t *testing.T) {
	x, err := experiment.Parse([]byte(`
name: a
programs: {mine: {path: /p, arguments: ["-c", "{class}"], check: npb}}
runs:
  - {program: mine, class: W, where: native, mpi: mpich, threads: 2, arguments: "-v -w"}
  - {program: sp-mz, class: S, ranks: 4, guests: 2, nodes: 3, interval: 10s, engine: pre-copy, memory: 1G}
`))
	require.NoError(t, err)
	w, err := workloadOf(x, x.Variants[0], "/b")
	require.NoError(t, err)
	assert.Equal(t, []string{"mpirun.mpich", "-np", "2", "-genv", "OMP_NUM_THREADS", "2", "/p", "-c", "W", "-v", "-w"}, w.nativeCommand(x.Variants[0]))
	w, err = workloadOf(x, x.Variants[1], "/b")
	require.NoError(t, err)
	assert.Equal(t, []string{
		"--vft-memory", "1G", "--vft-nodes", "2", "--vft-cpus", "1", "--vft-restarts", "10", "--vft-interval", "10s", "--vft-engine", "pre-copy",
		"--oversubscribe", "-np", "4", "-x", "OMP_NUM_THREADS=1", "/b/sp-mz", "S",
	}, w.guestOptions(x.Variants[1]))
	n, ok := w.done(" Time step   40")
	assert.True(t, ok)
	assert.Equal(t, 40, n)
	_, ok = w.done(" Time step size 0.0008")
	assert.False(t, ok)
	x.Variants[1].Class = ""
	_, err = workloadOf(x, x.Variants[1], "/b")
	assert.ErrorContains(t, err, "needs a class")
}

func TestArms(t *testing.T) {
	plan := experiment.Plan{{Do: experiment.Arm, Points: "a=crash"}, {Do: experiment.KillNode}, {Do: experiment.Arm, Points: "b=pause"}}
	env, later := arms(plan.Schedule(1))
	assert.Equal(t, []string{"VFT_FAULTPOINTS=a=crash,b=pause"}, env)
	require.Len(t, later, 1)
	assert.Equal(t, experiment.KillNode, later[0].Step.Do)
	assert.Len(t, armed(plan), 2)
	env, _ = arms(nil)
	assert.Empty(t, env)
}

// What does not come to pass is in the record, with the reason.
func TestFaultsThatAreNotReached(t *testing.T) {
	plan := experiment.Plan{{Do: experiment.KillNode}, {Do: experiment.KillQEMU, After: 2}}
	faults := plan.Schedule(1)
	faults[0].At = time.Hour
	i := newInjector(&cluster{bin: "/nowhere", dir: t.TempDir()}, faults)
	i.see(t.Context(), event{Kind: "started", Job: "j"})
	i.see(t.Context(), event{Kind: "checkpoint", Job: "j"})
	records := i.close(time.Now())
	require.Len(t, records, 2)
	for _, r := range records {
		assert.Equal(t, errNotReached.Error(), r.NotDone)
		assert.Zero(t, r.At)
	}
}

func TestFaultThatCannotBeDone(t *testing.T) {
	i := newInjector(&cluster{bin: "/nowhere", dir: t.TempDir()}, experiment.Plan{{Do: experiment.KillNode}}.Schedule(1))
	i.see(t.Context(), event{Kind: "started", Job: "j"})
	i.wg.Wait()
	records := i.close(time.Now())
	require.Len(t, records, 1)
	assert.Contains(t, records[0].NotDone, "finding what to hit")
}

func TestRampNeedsAHealthRoot(t *testing.T) {
	lab := &cluster{dir: t.TempDir()}
	i := newInjector(lab, nil)
	step := experiment.Step{Do: experiment.EDAC, Errors: 30}
	require.ErrorIs(t, i.ramp(t.Context(), step, "n1"), errNoHealthRoot)
}

func TestEnvironment(t *testing.T) {
	bin := t.TempDir()
	_, err := Environment(t.Context(), bin)
	require.ErrorContains(t, err, "reading vft")
	for _, name := range []string{"vft", "mpirun-vft"} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho "+name+" version 1\n"), 0o755))
	}
	a, err := Environment(t.Context(), bin)
	require.NoError(t, err)
	assert.Contains(t, a.Versions["vft"], "vft version 1 sha256:")
	assert.Contains(t, a.Kernel, "Linux")
	assert.NotContains(t, a.Machine, "unknown")
	require.NoError(t, os.WriteFile(filepath.Join(bin, "mpirun-vft"), []byte("another build"), 0o755))
	b, err := Environment(t.Context(), bin)
	require.NoError(t, err)
	assert.True(t, a.Same(a))
	assert.False(t, a.Same(b), "another build is another environment")
}

func TestVersionLine(t *testing.T) {
	assert.Equal(t, "Version: 4.0.2", versionLine("HYDRA build details:\n    Version:           4.0.2\n"))
	assert.Equal(t, "QEMU emulator version 7.2.22", versionLine("QEMU emulator version 7.2.22\nCopyright 2022\n"))
}
