package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestWord(t *testing.T) {
	assert.Equal(t, "running", word(vftv1.JobPhase_JOB_PHASE_RUNNING))
	assert.Equal(t, "-", word(vftv1.JobPhase_JOB_PHASE_UNSPECIFIED))
	assert.Equal(t, "pre-copy", word(vftv1.Engine_ENGINE_PRE_COPY))
	assert.Equal(t, "alive", word(vftv1.NodeState_NODE_STATE_ALIVE))
	assert.Equal(t, "99", word(vftv1.JobPhase(99)), "one of a newer version")
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "-", 1234567 * time.Nanosecond: "1.23ms", 123456 * time.Microsecond: "123ms",
		9999 * time.Millisecond: "9.999s", 12345 * time.Millisecond: "12.3s", 90 * time.Minute: "1h30m0s",
	} {
		assert.Equal(t, want, short(int64(d)))
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 512 << 20: "512.0 MiB",
		3 << 30: "3.0 GiB", 1 << 40: "1.0 TiB", 5 << 50: "5.0 PiB", 1 << 62: "4096.0 PiB",
	} {
		assert.Equal(t, want, size(n))
	}
}

func TestAgo(t *testing.T) {
	now := time.Unix(1000, 0)
	assert.Equal(t, "-", ago(now, 0))
	assert.Equal(t, "1m30s", ago(now, now.Add(-90*time.Second-400*time.Millisecond).UnixNano()))
}

func TestAbbreviate(t *testing.T) {
	assert.Equal(t, "0123456789abcdef", abbreviate("0123456789abcdef0123"))
	assert.Equal(t, "012", abbreviate("012"))
}

func TestPhaseWord(t *testing.T) {
	for want, j := range map[string]*vftv1.Job{
		"running":     {Phase: vftv1.JobPhase_JOB_PHASE_RUNNING},
		"exit 3":      {Phase: vftv1.JobPhase_JOB_PHASE_ENDED, Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM, Code: 3}},
		"client-gone": {Phase: vftv1.JobPhase_JOB_PHASE_ENDED, Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE}},
	} {
		assert.Equal(t, want, phaseWord(j))
	}
}

// TestPrintJobs: jobs that run are always shown, of those that have ended the
// last ones, and how many more there are.
func TestPrintJobs(t *testing.T) {
	job := func(id string, phase vftv1.JobPhase) *vftv1.Job {
		return &vftv1.Job{Spec: &vftv1.JobSpec{Id: id}, Phase: phase}
	}
	running, ended := vftv1.JobPhase_JOB_PHASE_RUNNING, vftv1.JobPhase_JOB_PHASE_ENDED
	jobs := []*vftv1.Job{job("a", ended), job("b", running), job("c", ended), job("d", ended), job("e", running)}
	for shown, want := range map[int]struct{ ids, last string }{
		0: {"be", "and 3 that ended earlier: `vft job ls --all`"},
		2: {"bcde", "and 1 that ended earlier: `vft job ls --all`"},
		3: {"abcde", ""},
		9: {"abcde", ""},
	} {
		var out bytes.Buffer
		require.NoError(t, printJobs(&out, jobs, shown))
		var ids, last string
		for line := range strings.Lines(out.String()) {
			if f := strings.Fields(line); len(f[0]) == 1 {
				ids += f[0]
			} else if f[0] == "and" {
				last = strings.TrimSpace(line)
			}
		}
		assert.Equal(t, want.ids, ids)
		assert.Equal(t, want.last, last)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, table(&out, "node\tstate", func(row func(...any)) {
		row("n1", "alive")
		row("longer-name", 7)
	}))
	assert.Equal(t, "NODE         STATE\nn1           alive\nlonger-name  7\n", out.String())
}

func testJob() *vftv1.Job {
	return &vftv1.Job{
		Spec:  &vftv1.JobSpec{Id: "j1", Name: "a.out", User: "alice", Guests: []*vftv1.GuestSpec{{Slots: 2}, {Slots: 1}}, MemoryMib: 512},
		Phase: vftv1.JobPhase_JOB_PHASE_RUNNING, Incarnation: 2, Restarts: 1,
		Guests: []*vftv1.Guest{{Index: 0, Node: "n1", Ip: "10.0.0.1"}, {Index: 1, Node: "n2", Ip: "10.0.0.2"}},
		Epochs: []*vftv1.Epoch{
			{Number: 1, State: vftv1.EpochState_EPOCH_STATE_COMMITTED, BegunAt: 1, EndedAt: 1 + int64(time.Second), Pin: "good", Levels: []*vftv1.EpochLevel{
				{Level: "local", State: vftv1.LevelState_LEVEL_STATE_SAFE, At: 1 + int64(time.Second), Bytes: 3 << 20},
				{Level: "partner", State: vftv1.LevelState_LEVEL_STATE_PENDING},
			}, Parts: []*vftv1.Part{
				{Guest: 0, Size: 1 << 20, Nodes: []string{"n1", "n2"}, Engine: vftv1.Engine_ENGINE_PRE_COPY, Pause: int64(20 * time.Millisecond)},
				{Guest: 1, Size: 2 << 20, Nodes: []string{"n2"}, Engine: vftv1.Engine_ENGINE_PRE_COPY, Pause: int64(50 * time.Millisecond)},
			}},
			{Number: 2, State: vftv1.EpochState_EPOCH_STATE_ABORTED, Reason: "hold time-out"},
		},
		Events: []*vftv1.Event{{Kind: "checkpoint", Text: "checkpoint 1", At: int64(1500 * time.Millisecond)}},
	}
}

func TestPrintEpochs(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printEpochs(&out, testJob()))
	assert.Regexp(t, `(?m)^1 +committed +pre-copy +1s +- +50ms +3.0 MiB +local,partner\(pending\) +good `, out.String(), "longest pause, sum of sizes")
	assert.Regexp(t, `(?m)^2 +aborted .*hold time-out$`, out.String())
	assert.Equal(t, "1", lastCommitted(testJob()))
	assert.Equal(t, "-", lastCommitted(&vftv1.Job{}))
}

func TestPrintEpoch(t *testing.T) {
	var out bytes.Buffer
	e := testJob().GetEpochs()[0]
	e.Damaged = "page 7 is nowhere"
	e.Parts[1].Levels = []*vftv1.PartLevel{{Level: "rs:2+1", Nodes: []string{"n1", "n2", "n3"}}}
	require.NoError(t, printEpoch(&out, e))
	assert.Contains(t, out.String(), "checkpoint 1, damaged, incarnation 0, hold -, pinned as good\npage 7 is nowhere\n")
	assert.Regexp(t, `(?m)^local +safe +1s +3.0 MiB`, out.String())
	assert.Regexp(t, `(?m)^partner +pending +- +0 B`, out.String())
	assert.Regexp(t, `(?m)^0 +pre-copy .* n1,n2 +- `, out.String())
	assert.Regexp(t, `(?m)^1 +pre-copy .* n2 +rs:2\+1 on n1,n2,n3 `, out.String())
}

func TestPrintEvents(t *testing.T) {
	var out bytes.Buffer
	events := testJob().GetEvents()
	require.NoError(t, printEvents(&out, false, events, int64(time.Second)))
	assert.Equal(t, "    0.500s  checkpoint        checkpoint 1\n", out.String())
	out.Reset()
	require.NoError(t, printEvents(&out, true, append(events, events...), 0))
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	require.Len(t, lines, 2, "one object per line")
	var e map[string]any
	require.NoError(t, json.Unmarshal(lines[0], &e))
	assert.Equal(t, "checkpoint", e["kind"])
}
