package fsm

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// job draws one of the jobs, which may not exist.
func (x *machine) job(t *rapid.T) (string, *vftv1.Job) {
	id := jobIDs[0]
	if !x.led {
		id = rapid.SampledFrom(jobIDs).Draw(t, "job")
	}
	return id, x.s.Job(id)
}

// mishap draws one of several ways in which something goes wrong, or one of
// as many in which nothing does.
func (x *machine) mishap(t *rapid.T, what string) int {
	if x.led {
		return 9
	}
	return rapid.IntRange(0, 9).Draw(t, what)
}

// anEpoch draws one of a job's epochs, mostly the last one, or nil.
func anEpoch(t *rapid.T, j *vftv1.Job) *vftv1.Epoch {
	n := len(j.GetEpochs())
	if n == 0 {
		return nil
	}
	return j.GetEpochs()[max(0, n-1-rapid.IntRange(0, 2).Draw(t, "back"))]
}

// near draws a number mostly equal to n, at times a stale or early one.
func near(t *rapid.T, n uint64, what string) uint64 {
	switch d := rapid.IntRange(0, 11).Draw(t, what); {
	case d == 0 && n > 0:
		return n - 1
	case d == 1:
		return n + 1
	}
	return n
}

func testSpec(id string) *vftv1.JobSpec {
	return &vftv1.JobSpec{Id: id, Name: "prog", Guests: []*vftv1.GuestSpec{{Slots: 1}, {Slots: 1}}, Levels: []string{"local", "partner", "rs:2+1", "s3:b"}, Commit: LevelPartner}
}

func testLevels() []*vftv1.EpochLevel {
	return []*vftv1.EpochLevel{
		{Level: LevelLocal, Nodes: 1, Needs: 1},
		{Level: LevelPartner, Nodes: 2, Needs: 1},
		{Level: "rs:2+1", Nodes: 3, Needs: 2},
		{Level: "s3:b", Outside: true},
	}
}

func guestsOn(nodes ...string) []*vftv1.Guest {
	var out []*vftv1.Guest
	for i, n := range nodes {
		out = append(out, &vftv1.Guest{Index: uint32(i), Node: n})
	}
	return out
}

func (x *machine) actions() map[string]func(*rapid.T) {
	node := rapid.SampledFrom([]string{"n1", "n2", "n3"})
	phase := rapid.SampledFrom([]vftv1.OperationPhase{
		vftv1.OperationPhase_OPERATION_PHASE_RELEASED, vftv1.OperationPhase_OPERATION_PHASE_RELEASED,
		vftv1.OperationPhase_OPERATION_PHASE_RESTORED, vftv1.OperationPhase_OPERATION_PHASE_RESTORED, vftv1.OperationPhase_OPERATION_PHASE_BEGUN,
		vftv1.OperationPhase_OPERATION_PHASE_MOVED, vftv1.OperationPhase_OPERATION_PHASE_REVOKED,
	})
	return map[string]func(*rapid.T){
		"submit": func(t *rapid.T) {
			id := rapid.SampledFrom(jobIDs[:2]).Draw(t, "job")
			x.send(t, &vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: testSpec(id)}}})
		},
		"node": func(t *rapid.T) {
			x.send(t, &vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{
				Id: node.Draw(t, "node"), Session: rapid.Uint64Range(1, 2).Draw(t, "session"), Health: aVerdict(t),
			}}}})
		},
		"settle": func(t *rapid.T) {
			x.at += rapid.Int64Range(0, 100).Draw(t, "later")
			x.send(t, &vftv1.Command{Body: &vftv1.Command_SettleAlarms{SettleAlarms: &vftv1.SettleAlarms{}}})
		},
		"lose": func(t *rapid.T) {
			n := x.s.Node(node.Draw(t, "node"))
			x.send(t, &vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{
				Node: n.GetId(), Session: near(t, n.GetSession(), "session"), Since: n.GetSince(), Silent: 3e9,
			}}})
		},
		"begin": func(t *rapid.T) {
			id, j := x.job(t)
			kind := rapid.SampledFrom([]vftv1.OperationKind{
				vftv1.OperationKind_OPERATION_KIND_BOOT, vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, vftv1.OperationKind_OPERATION_KIND_CHECKPOINT,
				vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, vftv1.OperationKind_OPERATION_KIND_RESTART, vftv1.OperationKind_OPERATION_KIND_STOP,
				vftv1.OperationKind_OPERATION_KIND_MIGRATE,
			}).Draw(t, "kind")
			b := &vftv1.BeginOperation{
				Job: id, Operation: near(t, j.GetNextOperation(), "operation"), Kind: kind, Reason: "r",
				Trigger:  rapid.SampledFrom([]string{TriggerInterval, TriggerRequest}).Draw(t, "trigger"),
				Required: rapid.SampledFrom([]string{LevelLocal, LevelPartner, "rs:2+1", "s3:b", "none"}).Draw(t, "required"),
				Levels:   testLevels(),
				Move:     x.aMove(t, j, node),
			}
			switch kind {
			case vftv1.OperationKind_OPERATION_KIND_BOOT, vftv1.OperationKind_OPERATION_KIND_RESTART:
				b.Incarnation = near(t, j.GetIncarnation()+1, "incarnation")
				b.Guests = guestsOn(node.Draw(t, "g0"), node.Draw(t, "g1"))
				if rapid.IntRange(0, 9).Draw(t, "short") == 0 {
					b.Guests = b.Guests[:1]
				}
				b.Epoch = near(t, LastCommitted(j).GetNumber(), "epoch")
				b.Abandon = rapid.IntRange(0, 9).Draw(t, "abandon") == 0
				b.Counted = rapid.Bool().Draw(t, "counted")
			default:
				b.Incarnation = near(t, j.GetIncarnation(), "incarnation")
				b.Epoch = near(t, j.GetNextEpoch(), "epoch")
			}
			x.send(t, &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: b}})
		},
		"advance": func(t *rapid.T) {
			id, j := x.job(t)
			a := &vftv1.AdvanceOperation{
				Job: id, Operation: near(t, j.GetOperation().GetId(), "operation"), Incarnation: near(t, j.GetIncarnation(), "incarnation"),
				Phase: phase.Draw(t, "phase"), Figures: map[string]int64{"restore": 5},
			}
			flaw := rapid.IntRange(0, 9).Draw(t, "flaw")
			if flaw != 0 {
				a.Proof = &vftv1.DrainProof{Pairs: []*vftv1.PairCount{{Source: 0, Destination: 1, Sent: 5, Delivered: 4, Dropped: 1}}}
			}
			if flaw == 1 {
				a.Proof.Pairs[0].Delivered = 3
			}
			for i, g := range j.GetGuests() {
				if flaw != 2 || i > 0 {
					a.Releases = append(a.Releases, &vftv1.NodeRelease{Node: g.GetNode(), ByOrder: flaw != 3, Hold: 9})
				}
			}
			res := x.send(t, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: a}})
			if res.Changed && res.Job.GetOperation().GetKind() == vftv1.OperationKind_OPERATION_KIND_CHECKPOINT && (flaw == 0 || flaw == 1 || flaw == 3) {
				t.Fatalf("released with flaw %d", flaw)
			}
		},
		"finish": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
				Job: id, Operation: near(t, j.GetOperation().GetId(), "operation"), Incarnation: near(t, j.GetIncarnation(), "incarnation"),
				Filling: rapid.Bool().Draw(t, "filling"),
			}}})
		},
		"filled": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_GuestsFilled{GuestsFilled: &vftv1.GuestsFilled{
				Job: id, Incarnation: near(t, j.GetIncarnation(), "incarnation"),
			}}})
		},
		"commit": func(t *rapid.T) {
			id, j := x.job(t)
			c := &vftv1.CommitEpoch{
				Job: id, Operation: near(t, j.GetOperation().GetId(), "operation"), Incarnation: near(t, j.GetIncarnation(), "incarnation"),
				Epoch: near(t, j.GetOperation().GetEpoch(), "epoch"),
			}
			flaw := rapid.IntRange(0, 9).Draw(t, "flaw")
			for g := range 2 {
				p := &vftv1.Part{Guest: uint32(g), Manifest: fmt.Sprint("m", g), Nodes: []string{"n1", "n2"}, Size: 10}
				switch {
				case flaw == g:
					continue
				case flaw == 2 && g == 1:
					p.Guest = 0
				case flaw == 3:
					p.Nodes = []string{"n1", "n1"}
				case flaw == 4:
					p.Manifest = ""
				}
				c.Parts = append(c.Parts, p)
			}
			x.send(t, &vftv1.Command{Body: &vftv1.Command_CommitEpoch{CommitEpoch: c}})
		},
		"abort": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_AbortEpoch{AbortEpoch: &vftv1.AbortEpoch{
				Job: id, Operation: near(t, j.GetOperation().GetId(), "operation"), Epoch: near(t, j.GetOperation().GetEpoch(), "epoch"), Reason: "x",
			}}})
		},
		"delete": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: &vftv1.DeleteEpoch{
				Job: id, Epoch: rapid.Uint64Range(0, j.GetNextEpoch()).Draw(t, "epoch"), Last: rapid.IntRange(0, 5).Draw(t, "last") == 0,
				Pinned: rapid.IntRange(0, 5).Draw(t, "pinned") == 0,
			}}})
		},
		"level": func(t *rapid.T) {
			id, j := x.job(t)
			e := anEpoch(t, j)
			l := rapid.SampledFrom(testLevels()).Draw(t, "level")
			c := &vftv1.UpdateLevel{Job: id, Epoch: e.GetNumber(), Revision: near(t, e.GetRevision(), "revision"), Level: l.GetLevel()}
			if rapid.IntRange(0, 3).Draw(t, "fails") == 0 {
				c.Failure = "no route"
			}
			nodes := [][]string{{"n1", "n2", "n3"}, {"n2", "n3"}, {"n3", "", "n1"}, {"n3"}, {}}
			for _, p := range e.GetParts() {
				u := &vftv1.PartUpdate{Guest: p.GetGuest(), Manifest: p.GetManifest(), Bytes: 5}
				switch rapid.IntRange(0, 9).Draw(t, "kind") {
				case 0:
					continue
				case 1:
					u.Manifest = "other"
				case 2:
					u.Gone = l.GetOutside()
				}
				if !l.GetOutside() {
					u.Nodes = rapid.SampledFrom(nodes).Draw(t, "nodes")
				}
				c.Parts = append(c.Parts, u)
			}
			x.send(t, &vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: c}})
		},
		"pin": func(t *rapid.T) {
			id, j := x.job(t)
			e := anEpoch(t, j)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_PinEpoch{PinEpoch: &vftv1.PinEpoch{
				Job: id, Epoch: e.GetNumber(), Revision: near(t, e.GetRevision(), "revision"), Name: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name"),
			}}})
		},
		"damage": func(t *rapid.T) {
			id, j := x.job(t)
			e := anEpoch(t, j)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_SetDamaged{SetDamaged: &vftv1.SetDamaged{
				Job: id, Epoch: e.GetNumber(), Revision: near(t, e.GetRevision(), "revision"), Reason: rapid.SampledFrom([]string{"", "bad page"}).Draw(t, "reason"),
			}}})
		},
		"import": func(t *rapid.T) {
			id, j := x.job(t)
			if j != nil && j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED && rapid.IntRange(0, 9).Draw(t, "rarely") != 0 {
				t.Skip()
			}
			e := &vftv1.Epoch{
				Number: rapid.Uint64Range(0, 4).Draw(t, "epoch"), Incarnation: rapid.Uint64Range(0, 3).Draw(t, "of"), Proof: &vftv1.DrainProof{},
				Pin:   rapid.SampledFrom([]string{"", "a", "imported"}).Draw(t, "pin"),
				Parts: []*vftv1.Part{{Guest: 0, Manifest: "i", Nodes: []string{"n1"}}, {Guest: 1, Manifest: "j", Nodes: []string{"n2"}}},
			}
			if rapid.IntRange(0, 9).Draw(t, "short") == 0 {
				e.Parts = e.Parts[:1]
			}
			x.send(t, &vftv1.Command{Body: &vftv1.Command_ImportEpoch{ImportEpoch: &vftv1.ImportEpoch{
				Spec: testSpec(id), Incarnation: rapid.Uint64Range(0, 9).Draw(t, "incarnation"), Epoch: e, Levels: testLevels(),
			}}})
		},
		"resume": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_ResumeJob{ResumeJob: &vftv1.ResumeJob{
				Job: id, Epoch: anEpoch(t, j).GetNumber(), Incarnation: near(t, j.GetIncarnation(), "incarnation"),
				Token: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "token"), ClientBound: rapid.Bool().Draw(t, "bound"),
				Nodes: rapid.SliceOfN(node, 0, 2).Draw(t, "nodes"),
			}}})
		},
		"clear": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_ClearEpoch{ClearEpoch: &vftv1.ClearEpoch{
				Job: id, Epoch: rapid.Uint64Range(0, j.GetNextEpoch()).Draw(t, "epoch"),
			}}})
		},
		"drain": func(t *rapid.T) {
			x.send(t, &vftv1.Command{Body: &vftv1.Command_DrainNode{DrainNode: &vftv1.DrainNode{
				Node: node.Draw(t, "node"), Reason: rapid.SampledFrom([]string{"", "repair"}).Draw(t, "reason"),
			}}})
		},
		"move": func(t *rapid.T) {
			id, j := x.job(t)
			if rapid.IntRange(0, 3).Draw(t, "drop") == 0 {
				x.send(t, &vftv1.Command{Body: &vftv1.Command_DropMove{DropMove: &vftv1.DropMove{Job: id, Number: near(t, j.GetNextMove(), "number"), Reason: "no node"}}})
				return
			}
			m := x.aMove(t, j, node)
			m.Number = 0
			x.send(t, &vftv1.Command{Body: &vftv1.Command_RequestMove{RequestMove: &vftv1.RequestMove{Job: id, Move: m}}})
		},
		"request": func(t *rapid.T) {
			id, _ := x.job(t)
			var cmd *vftv1.Command
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0:
				cmd = &vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{
					Job: id, Reason: "r", Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_STOPPED}, Now: rapid.Bool().Draw(t, "now"),
				}}}
			case 1, 2, 3:
				cmd = &vftv1.Command{Body: &vftv1.Command_RequestRestart{RequestRestart: &vftv1.RequestRestart{Job: id}}}
			default:
				cmd = &vftv1.Command{Body: &vftv1.Command_RequestCheckpoint{RequestCheckpoint: &vftv1.RequestCheckpoint{Job: id}}}
			}
			x.send(t, cmd)
		},
		"exit": func(t *rapid.T) {
			if rapid.IntRange(0, 7).Draw(t, "rarely") != 0 {
				t.Skip()
			}
			id, j := x.job(t)
			i := near(t, j.GetIncarnation(), "incarnation")
			res := x.send(t, &vftv1.Command{Body: &vftv1.Command_RecordExit{RecordExit: &vftv1.RecordExit{
				Job: id, Incarnation: i, Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM},
			}}})
			if j != nil && i != j.GetIncarnation() && !errors.Is(res.Err, ErrIncarnation) {
				t.Fatalf("exit of incarnation %d with %d present: %v", i, j.GetIncarnation(), res.Err)
			}
		},
		"event": func(t *rapid.T) {
			id, j := x.job(t)
			x.send(t, &vftv1.Command{Body: &vftv1.Command_AppendEvent{AppendEvent: &vftv1.AppendEvent{
				Job: id, Event: &vftv1.Event{Number: near(t, LastEvent(j)+1, "number"), Kind: "k", Text: "t"},
			}}})
		},
		"late": func(t *rapid.T) { // an entry of a former leader, or a repeated one
			if len(x.past) == 0 {
				t.Skip()
			}
			i := rapid.IntRange(max(0, len(x.past)-12), len(x.past)-1).Draw(t, "which")
			x.send(t, x.past[i])
		},
		"prune": func(t *rapid.T) {
			if rapid.IntRange(0, 9).Draw(t, "rarely") != 0 {
				t.Skip()
			}
			x.send(t, &vftv1.Command{Body: &vftv1.Command_Prune{Prune: &vftv1.Prune{EpochsBefore: x.at - 100}}})
		},
		"restore": func(t *rapid.T) {
			data, err := Encode(x.s.Snapshot())
			if err != nil {
				t.Fatal(err)
			}
			s, err := Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Encode(s.Snapshot())
			if err != nil || !bytes.Equal(data, again) {
				t.Fatalf("the state changed by snapshot and restore: %v", err)
			}
			x.s = s
		},
	}
}

// aMove draws a migration of one guest of a job, mostly one that was asked for.
func (x *machine) aMove(t *rapid.T, j *vftv1.Job, node *rapid.Generator[string]) *vftv1.Move {
	if n := len(j.GetMoves()); n > 0 && rapid.Bool().Draw(t, "asked") {
		m := proto.CloneOf(j.GetMoves()[rapid.IntRange(0, n-1).Draw(t, "move")])
		m.To = orElse(m.GetTo(), node.Draw(t, "to"))
		return m
	}
	return &vftv1.Move{
		Number: rapid.Uint64Range(0, 1).Draw(t, "number"), Guest: rapid.Uint32Range(0, 2).Draw(t, "guest"), To: node.Draw(t, "to"),
		Cold: rapid.Bool().Draw(t, "cold"), Reason: "r",
	}
}

// straight adds whole operations, which random single commands hardly ever
// make, broken off or disturbed by late commands at every step.
func (x *machine) straight(single map[string]func(*rapid.T)) map[string]func(*rapid.T) {
	steps := func(t *rapid.T, cmds ...func() *vftv1.Command) {
		for _, cmd := range cmds {
			switch x.mishap(t, "disturb") {
			case 0:
				return
			case 1:
				if len(x.past) > 0 {
					x.send(t, x.past[rapid.IntRange(max(0, len(x.past)-30), len(x.past)-1).Draw(t, "late")])
				}
			case 2:
				x.send(t, cmd())
			}
			x.send(t, cmd())
		}
	}
	all := map[string]func(*rapid.T){
		"whole checkpoint": func(t *rapid.T) {
			id, _ := x.job(t)
			job := func() *vftv1.Job { return x.s.Job(id) }
			trigger := rapid.SampledFrom([]string{TriggerInterval, TriggerRequest}).Draw(t, "trigger")
			steps(t, func() *vftv1.Command {
				return &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: &vftv1.BeginOperation{
					Job: id, Operation: job().GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: job().GetIncarnation(),
					Epoch: job().GetNextEpoch(), Required: LevelPartner, Levels: testLevels(), Trigger: trigger,
				}}}
			}, func() *vftv1.Command {
				a := &vftv1.AdvanceOperation{
					Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(),
					Phase: vftv1.OperationPhase_OPERATION_PHASE_RELEASED, Proof: &vftv1.DrainProof{},
					Parts: []*vftv1.Part{{Guest: 0, Pause: 4, CutAt: 5}, {Guest: 1, Pause: 6, CutAt: 7}},
				}
				for _, g := range job().GetGuests() {
					a.Releases = append(a.Releases, &vftv1.NodeRelease{Node: g.GetNode(), ByOrder: true, Hold: 3})
				}
				return &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: a}}
			}, func() *vftv1.Command {
				c := &vftv1.CommitEpoch{
					Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(), Epoch: job().GetOperation().GetEpoch(),
					Parts: []*vftv1.Part{{Guest: 0, Manifest: "a", Nodes: []string{"n1", "n2"}}, {Guest: 1, Manifest: "b", Nodes: []string{"n2", "n3"}}},
				}
				switch x.mishap(t, "flaw") {
				case 0:
					c.Parts[0].Nodes = []string{"n2", "n2"}
				case 1:
					c.Parts = c.Parts[:1]
				case 2:
					c.Parts[1].Guest = 0
				}
				return &vftv1.Command{Body: &vftv1.Command_CommitEpoch{CommitEpoch: c}}
			})
		},
		"whole restart": func(t *rapid.T) {
			id, _ := x.job(t)
			job := func() *vftv1.Job { return x.s.Job(id) }
			lazy := x.led || rapid.Bool().Draw(t, "lazy")
			epoch := func(n uint64) uint64 {
				if x.led {
					return n
				}
				return near(t, n, "epoch")
			}
			steps(t, func() *vftv1.Command {
				return &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: &vftv1.BeginOperation{
					Job: id, Operation: job().GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: job().GetIncarnation() + 1,
					Epoch: epoch(LastCommitted(job()).GetNumber()), Guests: guestsOn("n1", "n3"), Counted: true, Reason: "node n2 is lost",
				}}}
			}, func() *vftv1.Command {
				return &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: &vftv1.AdvanceOperation{
					Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(), Phase: vftv1.OperationPhase_OPERATION_PHASE_RESTORED,
				}}}
			}, func() *vftv1.Command {
				return &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
					Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(), Filling: lazy,
				}}}
			}, func() *vftv1.Command {
				x.fills = x.fills || job().GetFilling()
				return &vftv1.Command{Body: &vftv1.Command_GuestsFilled{GuestsFilled: &vftv1.GuestsFilled{Job: id, Incarnation: job().GetIncarnation()}}}
			})
		},
	}
	all["whole migration"] = func(t *rapid.T) { // asked for, begun, moved or given up, over
		id, _ := x.job(t)
		job := func() *vftv1.Job { return x.s.Job(id) }
		guest, to := rapid.Uint32Range(0, 1).Draw(t, "guest"), rapid.SampledFrom([]string{"n1", "n2", "n3", "n4"}).Draw(t, "to")
		phase := rapid.SampledFrom([]vftv1.OperationPhase{
			vftv1.OperationPhase_OPERATION_PHASE_MOVED, vftv1.OperationPhase_OPERATION_PHASE_MOVED, vftv1.OperationPhase_OPERATION_PHASE_REVOKED,
		}).Draw(t, "phase")
		if x.led {
			guest, to, phase = 0, "n4", vftv1.OperationPhase_OPERATION_PHASE_MOVED
		}
		advance := func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: &vftv1.AdvanceOperation{
				Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(), Phase: phase, Proof: &vftv1.DrainProof{}, Reason: "link",
			}}}
		}
		steps(t, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_RequestMove{RequestMove: &vftv1.RequestMove{Job: id, Move: &vftv1.Move{Guest: guest, To: to, Reason: "r"}}}}
		}, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: &vftv1.BeginOperation{
				Job: id, Operation: job().GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_MIGRATE, Incarnation: job().GetIncarnation(),
				Epoch: job().GetNextEpoch(), Move: &vftv1.Move{Number: job().GetNextMove(), Guest: guest, To: to, Reason: "r"},
			}}}
		}, advance, func() *vftv1.Command {
			phase = vftv1.OperationPhase_OPERATION_PHASE_MOVED // too late, should it have been revoked
			return advance()
		}, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
				Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(),
			}}}
		})
	}
	all["another migration"] = all["whole migration"]
	all["whole life"] = func(t *rapid.T) { // the end, with a pinned epoch, and another beginning
		id, _ := x.job(t)
		job := func() *vftv1.Job { return x.s.Job(id) }
		from := LastCommitted(job()).GetNumber()
		if from == 0 {
			t.Skip()
		}
		x.send(t, &vftv1.Command{Body: &vftv1.Command_PinEpoch{PinEpoch: &vftv1.PinEpoch{
			Job: id, Epoch: from, Revision: FindEpoch(job(), from).GetRevision(), Name: "life",
		}}})
		steps(t, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{Job: id, Reason: "r", Exit: &vftv1.Exit{Code: 1}, Now: true}}}
		}, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: &vftv1.BeginOperation{
				Job: id, Operation: job().GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_STOP, Incarnation: job().GetIncarnation(),
			}}}
		}, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
				Job: id, Operation: job().GetOperation().GetId(), Incarnation: job().GetIncarnation(),
			}}}
		}, func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_ResumeJob{ResumeJob: &vftv1.ResumeJob{
				Job: id, Epoch: from, Incarnation: job().GetIncarnation(), Token: fmt.Sprint(job().GetIncarnation()),
			}}}
		})
	}
	all["whole level"] = func(t *rapid.T) { // reached, lost with a node, and reached again
		id, _ := x.job(t)
		level := rapid.SampledFrom(testLevels()[1:]).Draw(t, "level")
		if x.led {
			level = FindLevel(&vftv1.Epoch{Levels: testLevels()}, "s3:b")
		}
		update := func(nodes ...string) func() *vftv1.Command {
			return func() *vftv1.Command {
				e := LastCommitted(x.s.Job(id))
				c := &vftv1.UpdateLevel{Job: id, Epoch: e.GetNumber(), Revision: e.GetRevision(), Level: level.GetLevel()}
				for _, p := range e.GetParts() {
					c.Parts = append(c.Parts, &vftv1.PartUpdate{Guest: p.GetGuest(), Manifest: p.GetManifest(), Nodes: nodes, Bytes: 7})
				}
				return &vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: c}}
			}
		}
		lose := func() *vftv1.Command {
			n := x.s.Node("n2")
			return &vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: "n2", Session: n.GetSession(), Since: n.GetSince()}}}
		}
		steps(t, update("n1", "n2", "n3"), lose, update("n1", "n3", "n4"))
	}
	all["whole alarm"] = func(t *rapid.T) { // right, and when the node is back, wrong
		node := "n5" // that the other straight ways do without
		if !x.led {
			node = rapid.SampledFrom([]string{"n2", "n5"}).Draw(t, "node")
		}
		says := func(window int64) func() *vftv1.Command {
			return func() *vftv1.Command {
				return &vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: node, Session: 1, Health: &vftv1.Health{
					Watching: []string{"disk", "fan"}, Reasons: []*vftv1.HealthReason{{Rule: "disk", Confidence: 0.5, Window: window}},
				}}}}}
			}
		}
		steps(t, says(1000), func() *vftv1.Command {
			n := x.s.Node(node)
			return &vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: node, Session: n.GetSession(), Since: n.GetSince()}}}
		}, says(0), func() *vftv1.Command {
			return &vftv1.Command{Body: &vftv1.Command_SettleAlarms{SettleAlarms: &vftv1.SettleAlarms{}}}
		})
	}
	all["another life"] = all["whole life"]
	all["another checkpoint"], all["third checkpoint"] = all["whole checkpoint"], all["whole checkpoint"]
	for name, f := range single {
		all[name] = f
	}
	return all
}

// anImport brings an epoch from another cluster.
func anImport(id string) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_ImportEpoch{ImportEpoch: &vftv1.ImportEpoch{
		Spec: testSpec(id), Incarnation: 3, Levels: testLevels(),
		Epoch: &vftv1.Epoch{
			Number: 2, Incarnation: 3, Proof: &vftv1.DrainProof{}, Pin: "imported",
			Parts: []*vftv1.Part{{Guest: 0, Manifest: "i", Nodes: []string{"n1"}}, {Guest: 1, Manifest: "j", Nodes: []string{"n4"}}},
		},
	}}}
}
