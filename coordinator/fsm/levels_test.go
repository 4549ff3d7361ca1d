package fsm

import (
	"errors"
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// update says where both parts of an epoch are at a level.
func (x *script) update(epoch uint64, level, failure string, nodes ...string) Result {
	e := FindEpoch(x.s.Job("a"), epoch)
	c := &vftv1.UpdateLevel{Job: "a", Epoch: epoch, Revision: e.GetRevision(), Level: level, Failure: failure}
	if failure == "" {
		for _, p := range e.GetParts() {
			c.Parts = append(c.Parts, &vftv1.PartUpdate{Guest: p.GetGuest(), Manifest: p.GetManifest(), Nodes: nodes, Bytes: 1 << 20})
		}
	}
	return x.try(&vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: c}})
}

func (x *script) lose(node string) {
	x.t.Helper()
	n := x.s.Node(node)
	x.do(&vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{Node: node, Session: n.GetSession(), Since: n.GetSince()}}})
}

func (x *script) state(epoch uint64, level string) vftv1.LevelState {
	return FindLevel(FindEpoch(x.s.Job("a"), epoch), level).GetState()
}

func (x *script) expectEvent(want string) {
	x.t.Helper()
	if got := lastEvent(x.s.Job("a")).GetText(); got != want {
		x.t.Errorf("%q, want %q", got, want)
	}
}

func TestLevelsFollowNodesAndUpdates(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	const safe, pending, failed = vftv1.LevelState_LEVEL_STATE_SAFE, vftv1.LevelState_LEVEL_STATE_PENDING, vftv1.LevelState_LEVEL_STATE_FAILED
	expect := func(local, partner, rs, s3 vftv1.LevelState) {
		t.Helper()
		for level, want := range map[string]vftv1.LevelState{"local": local, "partner": partner, "rs:2+1": rs, "s3:b": s3} {
			if got := x.state(1, level); got != want {
				t.Errorf("level %s is %v, want %v", level, got, want)
			}
		}
	}
	expect(safe, safe, pending, pending)
	x.update(1, "s3:b", "no route")
	expect(safe, safe, pending, failed)
	x.expectEvent("checkpoint 1 did not reach s3:b, which will be tried again: no route")
	events := LastEvent(x.s.Job("a"))
	if res := x.update(1, "s3:b", "still no route"); !res.Changed || LastEvent(x.s.Job("a")) != events {
		t.Error("a second failure is another event")
	}
	x.update(1, "s3:b", "")
	expect(safe, safe, pending, safe)
	x.expectEvent("checkpoint 1 is safe at s3:b, 3.0 s after its commit (2 MiB written)")
	x.update(1, "rs:2+1", "", "n1", "n2", "n3")
	expect(safe, safe, safe, safe)
	x.lose("n2") // guest 0 is on n1 and n2, guest 1 on n2 and n3
	expect(safe, pending, pending, safe)
	x.update(1, "partner", "", "n1", "n3")
	expect(safe, safe, pending, safe)
	x.expectEvent("copies of checkpoint 1 restored on n1, n3")
	x.update(1, "rs:2+1", "", "n1", "n4", "n3")
	expect(safe, safe, pending, safe) // nobody knows n4
	x.do(&vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: "n4", Session: 1}}}})
	expect(safe, safe, safe, safe)
	x.lose("n1")
	x.lose("n3")
	expect(pending, pending, pending, safe)
	if e := FindEpoch(x.s.Job("a"), 1); !Readable(e.GetParts()[0], FindLevel(e, "s3:b"), x.s.alive) ||
		Readable(e.GetParts()[0], FindLevel(e, "local"), x.s.alive) || Readable(e.GetParts()[0], FindLevel(e, "rs:2+1"), x.s.alive) {
		t.Error("read from where nothing is, or not from where it is")
	}
}

func TestUpdatesThatAreRefused(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	stale := &vftv1.UpdateLevel{Job: "a", Epoch: 1, Level: "s3:b", Failure: "x"}
	for name, tc := range map[string]struct {
		change *vftv1.UpdateLevel
		want   error
	}{
		"unknown level":  {&vftv1.UpdateLevel{Epoch: 1, Level: "tape"}, ErrInvalid},
		"unknown epoch":  {&vftv1.UpdateLevel{Epoch: 2, Level: "s3:b"}, ErrEpoch},
		"other revision": {&vftv1.UpdateLevel{Epoch: 1, Level: "s3:b", Revision: 1}, ErrStale},
		"other part":     {&vftv1.UpdateLevel{Epoch: 1, Level: "s3:b", Parts: []*vftv1.PartUpdate{{Guest: 0, Manifest: "other"}}}, ErrInvalid},
		"other guest":    {&vftv1.UpdateLevel{Epoch: 1, Level: "s3:b", Parts: []*vftv1.PartUpdate{{Guest: 9, Manifest: "a"}}}, ErrInvalid},
	} {
		tc.change.Job = "a"
		if res := x.try(&vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: tc.change}}); !errors.Is(res.Err, tc.want) {
			t.Errorf("%s: %v, want %v", name, res.Err, tc.want)
		}
	}
	send := func() Result { return x.try(&vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: stale}}) }
	if res := send(); res.Err != nil {
		t.Fatal(res.Err)
	}
	if res := send(); !errors.Is(res.Err, ErrStale) {
		t.Errorf("repeated: %v", res.Err)
	}
}

func TestLevelsOfANewEpochThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*vftv1.BeginOperation){
		"none":              func(b *vftv1.BeginOperation) { b.Levels = nil },
		"not local first":   func(b *vftv1.BeginOperation) { b.Levels = b.GetLevels()[1:] },
		"twice":             func(b *vftv1.BeginOperation) { b.Levels = append(b.Levels, b.Levels[1]) },
		"required not kept": func(b *vftv1.BeginOperation) { b.Required = "dir:/d" },
		"outside on nodes":  func(b *vftv1.BeginOperation) { b.Levels[3].Nodes = 2 },
		"needs too many":    func(b *vftv1.BeginOperation) { b.Levels[2].Needs = 4 },
	} {
		x := newScript(t)
		b := &vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 1, Required: LevelPartner, Levels: testLevels()}
		spoil(b)
		if res := x.try(begin(b)); !errors.Is(res.Err, ErrInvalid) {
			t.Errorf("%s: %v", name, res.Err)
		}
	}
}

// A deleted epoch is remembered until nothing of it is left outside the nodes.
func TestDeletedEpochIsClearedFirst(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	x.checkpoint(TriggerInterval)
	x.do(&vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: &vftv1.DeleteEpoch{Job: "a", Epoch: 1}}})
	if e := FindEpoch(x.s.Job("a"), 1); e.GetState() != vftv1.EpochState_EPOCH_STATE_DELETED || !e.GetLeftovers() || len(e.GetParts()) != 2 {
		t.Errorf("%v", e)
	}
	clearIt := &vftv1.Command{Body: &vftv1.Command_ClearEpoch{ClearEpoch: &vftv1.ClearEpoch{Job: "a", Epoch: 1}}}
	if res := x.do(clearIt); !res.Changed || FindEpoch(res.Job, 1) != nil {
		t.Errorf("%v", res)
	}
	if res := x.do(clearIt); res.Changed {
		t.Error("cleared twice")
	}
	clearIt.GetClearEpoch().Epoch = 2
	if res := x.try(clearIt); !errors.Is(res.Err, ErrEpoch) {
		t.Errorf("a committed epoch cleared: %v", res.Err)
	}
}

func TestAbortedEpochLeavesTraces(t *testing.T) {
	for required, leftovers := range map[string]bool{"partner": false, "s3:b": true} {
		x := newScript(t)
		x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: 1, Epoch: 1, Required: required, Levels: testLevels()}))
		x.do(sendAdvance(x.release(2, 1)))
		x.do(&vftv1.Command{Body: &vftv1.Command_AbortEpoch{AbortEpoch: &vftv1.AbortEpoch{Job: "a", Operation: 2, Epoch: 1, Reason: "r"}}})
		prune := &vftv1.Command{Body: &vftv1.Command_Prune{Prune: &vftv1.Prune{EpochsBefore: 1 << 60}}}
		x.do(prune)
		if left := FindEpoch(x.s.Job("a"), 1) != nil; left != leftovers {
			t.Errorf("required %s: remembered %v", required, left)
		}
		x.do(&vftv1.Command{Body: &vftv1.Command_ClearEpoch{ClearEpoch: &vftv1.ClearEpoch{Job: "a", Epoch: 1}}})
		x.do(prune)
		if FindEpoch(x.s.Job("a"), 1) != nil {
			t.Error("not forgotten")
		}
	}
}

func (x *script) pin(epoch uint64, name string) Result {
	return x.try(&vftv1.Command{Body: &vftv1.Command_PinEpoch{PinEpoch: &vftv1.PinEpoch{
		Job: "a", Epoch: epoch, Revision: FindEpoch(x.s.Job("a"), epoch).GetRevision(), Name: name,
	}}})
}

func TestPins(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	x.checkpoint(TriggerInterval)
	if res := x.pin(1, "good"); res.Err != nil {
		t.Fatal(res.Err)
	}
	x.expectEvent("checkpoint 1 pinned as good")
	if res := x.pin(2, "good"); !errors.Is(res.Err, ErrPinned) {
		t.Errorf("the same name twice: %v", res.Err)
	}
	del := &vftv1.DeleteEpoch{Job: "a", Epoch: 1}
	if res := x.try(&vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: del}}); !errors.Is(res.Err, ErrPinned) {
		t.Errorf("deleted: %v", res.Err)
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{Job: "a", Reason: "r", Exit: &vftv1.Exit{}}}})
	if res := x.pin(2, "late"); res.Err != nil {
		t.Fatal(res.Err)
	}
	if res := x.pin(2, ""); res.Err != nil {
		t.Fatal(res.Err)
	}
	x.do(begin(&vftv1.BeginOperation{Operation: x.s.Job("a").GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_STOP, Incarnation: 1}))
	if res := x.pin(2, "too-late"); !errors.Is(res.Err, ErrPhase) {
		t.Errorf("pinned while its parts are being removed: %v", res.Err)
	}
	x.do(finish(x.s.Job("a").GetOperation().GetId(), 1))
	j := x.s.Job("a")
	if !committed(j, 1) || committed(j, 2) {
		t.Errorf("epochs of the ended job: %v", j.GetEpochs())
	}
	prune := &vftv1.Command{Body: &vftv1.Command_Prune{Prune: &vftv1.Prune{JobsBefore: 1 << 60}}}
	x.do(prune)
	if x.s.Job("a") == nil {
		t.Fatal("a job with a pinned epoch is forgotten")
	}
	del.Pinned = true
	x.do(&vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: del}})
	x.do(prune)
	if x.s.Job("a") != nil {
		t.Error("not forgotten")
	}
}

// A damaged epoch is not restored, and does not count as the last one.
func TestDamagedEpoch(t *testing.T) {
	x := newScript(t)
	x.checkpoint(TriggerInterval)
	x.checkpoint(TriggerInterval)
	damage := func(epoch uint64, reason string) {
		x.do(&vftv1.Command{Body: &vftv1.Command_SetDamaged{SetDamaged: &vftv1.SetDamaged{
			Job: "a", Epoch: epoch, Revision: FindEpoch(x.s.Job("a"), epoch).GetRevision(), Reason: reason,
		}}})
	}
	damage(2, "page 7 is nowhere")
	x.expectEvent("checkpoint 2 cannot be restored: page 7 is nowhere")
	restart := begin(&vftv1.BeginOperation{
		Operation: x.s.Job("a").GetNextOperation(), Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: 2, Guests: guestsOn("n1", "n3"), Epoch: 2,
	})
	if res := x.try(restart); !errors.Is(res.Err, ErrEpoch) {
		t.Errorf("restored: %v", res.Err)
	}
	del := &vftv1.DeleteEpoch{Job: "a", Epoch: 1}
	if res := x.try(&vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: del}}); !errors.Is(res.Err, ErrEpoch) {
		t.Errorf("the last good epoch deleted: %v", res.Err)
	}
	damage(2, "")
	x.expectEvent("checkpoint 2 can be read again")
	x.do(restart)
	if got := x.s.Job("a").GetRestoredFrom(); got != 2 {
		t.Errorf("restored from %d", got)
	}
}
