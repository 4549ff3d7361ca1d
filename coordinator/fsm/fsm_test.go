package fsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// script applies commands one second apart.
type script struct {
	t     *testing.T
	s     *State
	index uint64
}

const second = int64(1e9)

func (x *script) try(cmd *vftv1.Command) Result {
	x.index++
	cmd.Version, cmd.At = Version, int64(x.index)*second
	return x.s.Apply(cmd, x.index)
}

func (x *script) do(cmd *vftv1.Command) Result {
	x.t.Helper()
	res := x.try(cmd)
	if res.Err != nil {
		x.t.Fatal(res.Err)
	}
	return res
}

func begin(b *vftv1.BeginOperation) *vftv1.Command {
	b.Job = "a"
	return &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: b}}
}

func advance(op, inc uint64, p vftv1.OperationPhase) *vftv1.AdvanceOperation {
	return &vftv1.AdvanceOperation{Job: "a", Operation: op, Incarnation: inc, Phase: p}
}

func sendAdvance(a *vftv1.AdvanceOperation) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: a}}
}

func finish(op, inc uint64) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{Job: "a", Operation: op, Incarnation: inc}}}
}

func newScript(t *testing.T) *script {
	x := &script{t: t, s: New()}
	for _, n := range []string{"n1", "n2", "n3"} {
		x.do(&vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: n, Session: 1}}}})
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: testSpec("a")}}})
	x.do(begin(&vftv1.BeginOperation{Operation: 1, Kind: vftv1.OperationKind_OPERATION_KIND_BOOT, Incarnation: 1, Guests: guestsOn("n1", "n2")}))
	x.do(sendAdvance(advance(1, 1, vftv1.OperationPhase_OPERATION_PHASE_RESTORED)))
	x.do(finish(1, 1))
	return x
}

func (x *script) release(op, inc uint64) *vftv1.AdvanceOperation {
	a := advance(op, inc, vftv1.OperationPhase_OPERATION_PHASE_RELEASED)
	a.Proof = &vftv1.DrainProof{}
	a.Parts = []*vftv1.Part{{Guest: 0, Pause: 4e6, CutAt: 77}}
	a.Releases = []*vftv1.NodeRelease{{Node: "n1", ByOrder: true, Hold: 5e6}, {Node: "n2", ByOrder: true, Hold: 9e6}}
	return a
}

func commitCmd(op, inc, epoch uint64) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_CommitEpoch{CommitEpoch: &vftv1.CommitEpoch{Job: "a", Operation: op, Incarnation: inc, Epoch: epoch, Parts: []*vftv1.Part{
		{Guest: 0, Manifest: "a", Size: 200 << 20, Nodes: []string{"n1", "n2"}, Engine: vftv1.Engine_ENGINE_PRE_COPY},
		{Guest: 1, Manifest: "b", Size: 12 << 20, Nodes: []string{"n2", "n3"}, Engine: vftv1.Engine_ENGINE_PRE_COPY},
	}}}}
}

func (x *script) checkpoint(trigger string) {
	x.t.Helper()
	j := x.s.Job("a")
	op, inc, epoch := j.GetNextOperation(), j.GetIncarnation(), j.GetNextEpoch()
	x.do(begin(&vftv1.BeginOperation{Operation: op, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: inc, Epoch: epoch, Required: LevelPartner, Levels: testLevels(), Trigger: trigger}))
	x.do(sendAdvance(x.release(op, inc)))
	x.do(commitCmd(op, inc, epoch))
}

func lastEvent(j *vftv1.Job) *vftv1.Event { return j.GetEvents()[len(j.GetEvents())-1] }

func TestEventsSayWhatItCost(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	if got, want := lastEvent(x.s.Job("a")).GetText(), "checkpoint 1 committed in 2.0 s (pause 4 ms, 212 MiB)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if e := LastCommitted(x.s.Job("a")); e.GetHold() != 9e6 || e.GetParts()[0].GetCutAt() != 77 {
		t.Errorf("epoch %v", e)
	}
	n := x.s.Node("n2")
	res := x.do(&vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: "n2", Session: 1, Since: n.GetSince(), Silent: 3 * second}}})
	if got := lastEvent(x.s.Job("a")).GetText(); got != "node n2 lost: no heartbeat for 3.0 s" || len(res.Jobs) != 1 {
		t.Errorf("%q, jobs %v", got, res.Jobs)
	}
	op := x.s.Job("a").GetNextOperation()
	x.do(begin(&vftv1.BeginOperation{
		Operation: op, Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: 2, Guests: guestsOn("n1", "n3"), Epoch: 1,
		Reason: "node n2 is lost", Counted: true, Figures: map[string]int64{"detect": 3 * second, "lost": 5200e6},
	}))
	if got := lastEvent(x.s.Job("a")).GetText(); got != "restarting from checkpoint 1 on n1, n3: node n2 is lost" {
		t.Errorf("%q", got)
	}
	a := advance(op, 2, vftv1.OperationPhase_OPERATION_PHASE_RESTORED)
	a.Figures = map[string]int64{"fence": 2e6, "restore": 340e6}
	x.do(sendAdvance(a))
	x.do(finish(op, 2))
	want := "restarted from checkpoint 1: detection 3.0 s, fencing 2 ms, restore 340 ms; 5.2 s of work lost"
	if got := lastEvent(x.s.Job("a")); got.GetText() != want || got.GetFigures()["detect"] != 3*second {
		t.Errorf("%q, want %q; figures %v", got.GetText(), want, got.GetFigures())
	}
}

func TestCommitNeedsEveryProof(t *testing.T) {
	for name, spoil := range map[string]func(*vftv1.AdvanceOperation){
		"no proof":          func(a *vftv1.AdvanceOperation) { a.Proof = nil },
		"frames in flight":  func(a *vftv1.AdvanceOperation) { a.Proof.Pairs = []*vftv1.PairCount{{Sent: 2, Delivered: 1}} },
		"released alone":    func(a *vftv1.AdvanceOperation) { a.Releases[1].ByOrder = false },
		"node unheard":      func(a *vftv1.AdvanceOperation) { a.Releases = a.Releases[:1] },
		"other operation":   func(a *vftv1.AdvanceOperation) { a.Operation-- },
		"other incarnation": func(a *vftv1.AdvanceOperation) { a.Incarnation++ },
	} {
		t.Run(name, func(t *testing.T) {
			x := newScript(t)
			x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 1, Required: LevelPartner, Levels: testLevels()}))
			a := x.release(2, 1)
			spoil(a)
			if res := x.try(sendAdvance(a)); res.Err == nil {
				t.Error("released")
			}
			if res := x.try(commitCmd(2, 1, 1)); !errors.Is(res.Err, ErrProof) {
				t.Errorf("commit: %v", res.Err)
			}
		})
	}
	for name, spoil := range map[string]func(*vftv1.CommitEpoch){
		"part missing":   func(c *vftv1.CommitEpoch) { c.Parts = c.Parts[:1] },
		"part twice":     func(c *vftv1.CommitEpoch) { c.Parts[1].Guest = 0 },
		"one copy":       func(c *vftv1.CommitEpoch) { c.Parts[1].Nodes = []string{"n2"} },
		"same node":      func(c *vftv1.CommitEpoch) { c.Parts[1].Nodes = []string{"n2", "n2"} },
		"no manifest":    func(c *vftv1.CommitEpoch) { c.Parts[0].Manifest = "" },
		"other epoch":    func(c *vftv1.CommitEpoch) { c.Epoch = 2 },
		"late operation": func(c *vftv1.CommitEpoch) { c.Operation = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			x := newScript(t)
			x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 1, Required: LevelPartner, Levels: testLevels()}))
			x.do(sendAdvance(x.release(2, 1)))
			cmd := commitCmd(2, 1, 1)
			spoil(cmd.GetCommitEpoch())
			if res := x.try(cmd); res.Err == nil {
				t.Error("committed")
			}
			if LastCommitted(x.s.Job("a")) != nil {
				t.Error("there is a committed epoch")
			}
			x.do(commitCmd(2, 1, 1))
		})
	}
}

func TestCommittedOnce(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	before := proto.CloneOf(x.s.Job("a"))
	if res := x.do(commitCmd(2, 1, 1)); res.Changed {
		t.Error("a second commit changed something")
	}
	if res := x.try(&vftv1.Command{Body: &vftv1.Command_AbortEpoch{AbortEpoch: &vftv1.AbortEpoch{Job: "a", Operation: 2, Epoch: 1}}}); !errors.Is(res.Err, ErrEpoch) {
		t.Errorf("abort of a committed epoch: %v", res.Err)
	}
	if !proto.Equal(before, x.s.Job("a")) {
		t.Error("the job changed")
	}
}

func TestLastEpochIsNotDeleted(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	del := &vftv1.DeleteEpoch{Job: "a", Epoch: 1}
	cmd := func() *vftv1.Command {
		return &vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: del}}
	}
	if res := x.try(cmd()); !errors.Is(res.Err, ErrEpoch) {
		t.Errorf("deleted: %v", res.Err)
	}
	del.Last = true
	if res := x.do(cmd()); !res.Changed {
		t.Error("not deleted though forced")
	}
	if res := x.do(cmd()); res.Changed {
		t.Error("deleted twice")
	}
}

func TestCheckpointTickets(t *testing.T) {
	x := newScript(t)
	ask := func() uint64 {
		return x.do(&vftv1.Command{Body: &vftv1.Command_RequestCheckpoint{RequestCheckpoint: &vftv1.RequestCheckpoint{Job: "a"}}}).Ticket
	}
	if a, b := ask(), ask(); a != 1 || b != 1 {
		t.Errorf("tickets %d, %d before the checkpoint begins", a, b)
	}
	x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 1, Required: LevelPartner, Levels: testLevels(), Trigger: TriggerRequest}))
	if c := ask(); c != 2 {
		t.Errorf("ticket %d while it is taken", c)
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_AbortEpoch{AbortEpoch: &vftv1.AbortEpoch{Job: "a", Operation: 2, Epoch: 1, Reason: "r"}}})
	if j := x.s.Job("a"); j.GetCheckpointsDone() != 1 || !j.GetCheckpointRequested() {
		t.Errorf("done %d, requested %v", j.GetCheckpointsDone(), j.GetCheckpointRequested())
	}
}

func TestStopKeepsTheFirstReasonAndTheProgramsCode(t *testing.T) {
	x := newScript(t)
	x.do(&vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{Job: "a", Reason: "enough", Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_STOPPED, Code: 143, Message: "enough"}}}})
	x.do(&vftv1.Command{Body: &vftv1.Command_RecordExit{RecordExit: &vftv1.RecordExit{Job: "a", Incarnation: 1, Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM, Code: 5}}}})
	x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_STOP, Incarnation: 1}))
	x.do(finish(2, 1))
	j := x.s.Job("a")
	if x := j.GetExit(); x.GetCause() != vftv1.ExitCause_EXIT_CAUSE_STOPPED || x.GetCode() != 5 || x.GetMessage() != "enough" {
		t.Errorf("exit %v", x)
	}
	if res := x.try(finish(2, 1)); !errors.Is(res.Err, ErrOperation) {
		t.Errorf("finished twice: %v", res.Err)
	}
}

func TestEventsAreBoundedAndNumbered(t *testing.T) {
	x := newScript(t)
	for range MaxEvents + 50 {
		x.do(&vftv1.Command{Body: &vftv1.Command_AppendEvent{AppendEvent: &vftv1.AppendEvent{
			Job: "a", Event: &vftv1.Event{Number: LastEvent(x.s.Job("a")) + 1, Kind: "k", Text: "t"},
		}}})
	}
	j := x.s.Job("a")
	if len(j.GetEvents()) != MaxEvents || LastEvent(j) <= MaxEvents || j.GetEvents()[0].GetNumber() != LastEvent(j)-MaxEvents+1 {
		t.Errorf("%d events, %d to %d", len(j.GetEvents()), j.GetEvents()[0].GetNumber(), LastEvent(j))
	}
	if w := Without(j, LastEvent(j)-2, false); len(w.GetEvents()) != 2 {
		t.Errorf("%d events after the last but two", len(w.GetEvents()))
	}
}

func TestLateNodeLossIsRefused(t *testing.T) {
	x := newScript(t)
	since := x.s.Node("n1").GetSince()
	lose := &vftv1.LoseNode{Node: "n1", Session: 1, Since: since}
	cmd := func() *vftv1.Command { return &vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: lose}} }
	x.do(cmd())
	x.do(&vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: "n1", Session: 1}}}})
	if res := x.try(cmd()); !errors.Is(res.Err, ErrStale) || x.s.Node("n1").GetState() != vftv1.NodeState_NODE_STATE_ALIVE {
		t.Errorf("a late loss: %v, node %v", res.Err, x.s.Node("n1"))
	}
}

func TestOtherVersionsAreRefused(t *testing.T) {
	s := New()
	if res := s.Apply(&vftv1.Command{Version: Version + 1, Body: &vftv1.Command_Prune{Prune: &vftv1.Prune{}}}, 1); !errors.Is(res.Err, ErrVersion) {
		t.Errorf("command: %v", res.Err)
	}
	st := s.Snapshot()
	st.Version++
	data, err := Encode(st)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), fmt.Sprint("version ", Version)) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := Decode([]byte{0xff}); err == nil {
		t.Error("garbage accepted")
	}
}

func TestSubmitIsIdempotent(t *testing.T) {
	x := newScript(t)
	if res := x.do(&vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: testSpec("a")}}}); res.Changed || res.Job != x.s.Job("a") {
		t.Error("a repeated submit is not the same job")
	}
	other := testSpec("a")
	other.Name = "other"
	if res := x.try(&vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: other}}}); !errors.Is(res.Err, ErrJobExists) {
		t.Errorf("another job of the same id: %v", res.Err)
	}
}
