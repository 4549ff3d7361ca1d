package fsm

import (
	"errors"
	"strings"
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func migrate(op, inc, hold uint64, m *vftv1.Move) *vftv1.Command {
	return begin(&vftv1.BeginOperation{Operation: op, Kind: vftv1.OperationKind_OPERATION_KIND_MIGRATE, Incarnation: inc, Epoch: hold, Move: m})
}

func requestMove(m *vftv1.Move) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_RequestMove{RequestMove: &vftv1.RequestMove{Job: "a", Move: m}}}
}

func moved(op, inc uint64) *vftv1.AdvanceOperation {
	a := advance(op, inc, vftv1.OperationPhase_OPERATION_PHASE_MOVED)
	a.Proof = &vftv1.DrainProof{}
	return a
}

func (x *script) last() *vftv1.Event {
	ev := x.s.Job("a").GetEvents()
	return ev[len(ev)-1]
}

func TestMigration(t *testing.T) {
	x := newScript(t)
	res := x.do(requestMove(&vftv1.Move{Guest: 1, To: "n3", Reason: "fan"}))
	if res.Ticket != 1 || x.do(requestMove(&vftv1.Move{Guest: 1, To: "n3", Reason: "fan"})).Changed {
		t.Fatalf("ticket %d; a repeated request is the same request", res.Ticket)
	}
	x.do(migrate(2, 1, 1, &vftv1.Move{Number: 1, Guest: 1, To: "n3", Reason: "fan"}))
	if j := x.s.Job("a"); j.GetGuests()[1].GetNode() != "n2" || len(j.GetMoves()) != 0 || j.GetNextEpoch() != 2 {
		t.Fatalf("before the switch-over: %v", j)
	}
	x.do(sendAdvance(moved(2, 1)))
	if got := x.s.Job("a").GetGuests()[1].GetNode(); got != "n3" {
		t.Fatalf("guest 1 is on %s", got)
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
		Job: "a", Operation: 2, Incarnation: 1, Figures: map[string]int64{"downtime": 30e6, "bytes": 100 << 20},
	}}})
	j := x.s.Job("a")
	if j.GetOperation() != nil || j.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING || j.GetIncarnation() != 1 || j.GetRestarts() != 0 {
		t.Fatalf("after the migration: %v", j)
	}
	if ev := x.last(); ev.GetKind() != "migrated" || ev.GetFigures()["request"] != 1 || ev.GetLabels()["reason"] != "fan" ||
		ev.GetText() != "guest 1 migrated from n2 to n3 in 2.0 s (live, stood still for 30 ms, 100 MiB sent)" {
		t.Fatalf("%v", ev)
	}
	// A checkpoint after it needs the release of the new node, not of the old one.
	x.do(begin(&vftv1.BeginOperation{
		Operation: 3, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 2, Trigger: TriggerInterval,
		Required: LevelLocal, Levels: testLevels(),
	}))
	if res := x.try(sendAdvance(x.release(3, 1))); !errors.Is(res.Err, ErrProof) || !strings.Contains(res.Err.Error(), "n3") {
		t.Fatalf("release without n3: %v", res.Err)
	}
}

func TestMigrationIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		before []*vftv1.Command
		cmd    *vftv1.Command
		want   error
	}{
		"to where it is":     {cmd: migrate(2, 1, 1, &vftv1.Move{Guest: 1, To: "n2"}), want: ErrInvalid},
		"to nowhere":         {cmd: migrate(2, 1, 1, &vftv1.Move{Guest: 1}), want: ErrInvalid},
		"to an unknown node": {cmd: migrate(2, 1, 1, &vftv1.Move{Guest: 1, To: "n9"}), want: ErrUnknownNode},
		"to a lost node": {
			before: []*vftv1.Command{{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: "n3", Session: 1, Since: 3 * second}}}},
			cmd:    migrate(2, 1, 1, &vftv1.Move{Guest: 1, To: "n3"}), want: ErrUnknownNode,
		},
		"no such guest":           {cmd: migrate(2, 1, 1, &vftv1.Move{Guest: 2, To: "n3"}), want: ErrInvalid},
		"another incarnation":     {cmd: migrate(2, 2, 1, &vftv1.Move{Guest: 1, To: "n3"}), want: ErrIncarnation},
		"another hold":            {cmd: migrate(2, 1, 2, &vftv1.Move{Guest: 1, To: "n3"}), want: ErrEpoch},
		"a request that is over":  {cmd: migrate(2, 1, 1, &vftv1.Move{Number: 1, Guest: 1, To: "n3"}), want: ErrStale},
		"during a migration":      {before: []*vftv1.Command{migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"})}, cmd: migrate(3, 1, 2, &vftv1.Move{Guest: 1, To: "n3"}), want: ErrPhase},
		"finished without a move": {before: []*vftv1.Command{migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"})}, cmd: finish(2, 1), want: ErrPhase},
		"moved without a proof": {
			before: []*vftv1.Command{migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"})},
			cmd:    sendAdvance(advance(2, 1, vftv1.OperationPhase_OPERATION_PHASE_MOVED)), want: ErrProof,
		},
		"moved after it was given up": {
			before: []*vftv1.Command{migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"}), sendAdvance(advance(2, 1, vftv1.OperationPhase_OPERATION_PHASE_REVOKED))},
			cmd:    sendAdvance(moved(2, 1)), want: ErrPhase,
		},
		"given up after it was moved": {
			before: []*vftv1.Command{migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"}), sendAdvance(moved(2, 1))},
			cmd:    sendAdvance(advance(2, 1, vftv1.OperationPhase_OPERATION_PHASE_REVOKED)), want: ErrPhase,
		},
		"moved to a node lost meanwhile": {
			before: []*vftv1.Command{
				migrate(2, 1, 1, &vftv1.Move{Guest: 0, To: "n3"}),
				{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: "n3", Session: 1, Since: 3 * second}}},
			},
			cmd: sendAdvance(moved(2, 1)), want: ErrUnknownNode,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newScript(t)
			for _, c := range tt.before {
				x.do(c)
			}
			if res := x.try(tt.cmd); !errors.Is(res.Err, tt.want) {
				t.Fatalf("%v, want %v", res.Err, tt.want)
			}
		})
	}
}

func TestMigrationGivenUp(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*script)
		want string
	}{
		"by the leader": {func(x *script) {
			a := advance(2, 1, vftv1.OperationPhase_OPERATION_PHASE_REVOKED)
			a.Reason = "node n3: prepare: no memory"
			x.do(sendAdvance(a))
			x.do(finish(2, 1))
		}, "node n3: prepare: no memory"},
		"by a restart": {func(x *script) {
			x.do(begin(&vftv1.BeginOperation{Operation: 3, Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: 2, Guests: guestsOn("n1", "n3"), Reason: "node n2 is lost"}))
		}, "interrupted: node n2 is lost"},
		"by the end of the job": {func(x *script) {
			x.do(&vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{Job: "a", Reason: "r", Exit: &vftv1.Exit{}}}})
			x.do(begin(&vftv1.BeginOperation{Operation: 3, Kind: vftv1.OperationKind_OPERATION_KIND_STOP, Incarnation: 1}))
		}, "the job is being stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newScript(t)
			x.do(requestMove(&vftv1.Move{Guest: 1, To: "n3"}))
			x.do(migrate(2, 1, 1, &vftv1.Move{Number: 1, Guest: 1, To: "n3"}))
			tt.end(x)
			for _, ev := range x.s.Job("a").GetEvents() {
				if ev.GetKind() == "migrate-failed" && ev.GetLabels()["reason"] == tt.want && ev.GetFigures()["request"] == 1 {
					if op := x.s.Job("a").GetOperation(); op.GetKind() == vftv1.OperationKind_OPERATION_KIND_MIGRATE {
						t.Fatalf("still under way: %v", op)
					}
					return
				}
			}
			t.Fatalf("nobody was told: %v", x.s.Job("a").GetEvents())
		})
	}
}

func TestNewerRequestTakesThePlaceOfAnOlderOne(t *testing.T) {
	x := newScript(t)
	x.do(requestMove(&vftv1.Move{Guest: 1, To: "n3"}))
	if res := x.do(requestMove(&vftv1.Move{Guest: 1, To: "n1"})); res.Ticket != 2 {
		t.Fatalf("ticket %d", res.Ticket)
	}
	if m := x.s.Job("a").GetMoves(); len(m) != 1 || m[0].GetTo() != "n1" {
		t.Fatalf("requests: %v", m)
	}
	if ev := x.last(); ev.GetKind() != "migrate-failed" || ev.GetFigures()["request"] != 1 {
		t.Fatalf("%v", ev)
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_DropMove{DropMove: &vftv1.DropMove{Job: "a", Number: 2, Reason: "no room"}}})
	if ev := x.last(); ev.GetFigures()["request"] != 2 || ev.GetLabels()["reason"] != "no room" || len(x.s.Job("a").GetMoves()) != 0 {
		t.Fatalf("%v", ev)
	}
}

func TestDrainedNodeStaysDrained(t *testing.T) {
	x := newScript(t)
	drain := func(reason string) *vftv1.Command {
		return &vftv1.Command{Body: &vftv1.Command_DrainNode{DrainNode: &vftv1.DrainNode{Node: "n2", Reason: reason}}}
	}
	if res := x.do(drain("memory errors")); len(res.Jobs) != 1 {
		t.Fatalf("jobs to look at: %v", res.Jobs)
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: "n2", Session: 2}}}})
	if got := x.s.Node("n2").GetDrained(); got != "memory errors" {
		t.Fatalf("after another heartbeat: %q", got)
	}
	x.do(drain(""))
	if x.s.Node("n2").GetDrained() != "" || x.try(&vftv1.Command{Body: &vftv1.Command_DrainNode{DrainNode: &vftv1.DrainNode{Node: "n9"}}}).Err == nil {
		t.Fatal("drained after undrain, or an unknown node was drained")
	}
}
