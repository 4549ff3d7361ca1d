package fsm

import (
	"bytes"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// checkScores: an episode is counted at most once, and only by what can end it;
// a failure that no episode of a watching rule announced is missed by it.
func (x *machine) checkScores(t *rapid.T, cmd *vftv1.Command, before *vftv1.State) {
	was := map[string]*vftv1.RuleScore{}
	for _, r := range before.GetScores() {
		was[r.GetRule()] = r
	}
	open := map[string]bool{}  // rules with an episode that is not judged, of the node that fails
	over := map[string]int64{} // episodes whose time is over, by rule
	lost := cmd.GetLoseNode().GetNode()
	for _, e := range before.GetEpisodes() {
		if e.GetUntil() < cmd.GetAt() && !e.GetCounted() {
			over[e.GetRule()]++
		} else if e.GetNode() == lost {
			open[e.GetRule()] = !e.GetCounted()
		}
	}
	after := x.s.Snapshot()
	unjudged := map[string]int64{}
	for _, e := range after.GetEpisodes() {
		if !e.GetCounted() {
			unjudged[e.GetRule()]++
		}
		if e.GetCounted() && !e.GetRaised() {
			t.Fatalf("%v is judged and over, and not forgotten", e)
		}
	}
	failure := cmd.GetLoseNode() != nil && x.s.Node(lost).GetState() == vftv1.NodeState_NODE_STATE_LOST &&
		x.s.Node(lost).GetSince() >= cmd.GetAt() && x.s.Node(lost).GetDrained() == ""
	for _, r := range after.GetScores() {
		o := was[r.GetRule()]
		hits, wrong, missed := r.GetHits()-o.GetHits(), r.GetFalseAlarms()-o.GetFalseAlarms(), r.GetMissed()-o.GetMissed()
		if (hits != 0 || missed != 0) && !failure || hits < 0 || hits > 1 || missed < 0 || missed > 1 || hits+missed > 1 {
			t.Fatalf("%v after %v by %v", r, o, cmd)
		}
		if (hits == 1) != (failure && open[r.GetRule()]) || wrong != 0 && wrong != over[r.GetRule()] {
			t.Fatalf("%v after %v by %v, of %v", r, o, cmd, before.GetEpisodes())
		}
		if r.GetHits()+r.GetFalseAlarms()+unjudged[r.GetRule()] > r.GetEpisodes() || int64(len(r.GetLeads())) > r.GetHits() {
			t.Fatalf("%v with %d open", r, unjudged[r.GetRule()])
		}
		x.hits, x.wrong, x.missed = x.hits+hits, x.wrong+wrong, x.missed+missed
	}
	if len(after.GetScores()) < len(before.GetScores()) {
		t.Fatalf("scores went from %v to %v", before.GetScores(), after.GetScores())
	}
	if cmd.GetSettleAlarms() != nil && x.s.AlarmsDue(cmd.GetAt()) {
		t.Fatalf("%v is due after %v", after.GetEpisodes(), cmd)
	}
}

func (x *machine) check(t *rapid.T, cmd *vftv1.Command, before map[string]*vftv1.Job) {
	for _, j := range x.s.Jobs() {
		id := j.GetSpec().GetId()
		m := x.m[id]
		if m == nil {
			m = &model{committed: map[uint64][]byte{}, deleted: map[uint64]bool{}, everAborted: map[uint64]bool{}, revoked: map[uint64]bool{}}
			x.m[id] = m
		}
		old := before[id]
		imported := cmd.GetImportEpoch() != nil && j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED
		if j.GetIncarnation() < m.incarnation || j.GetIncarnation() > m.incarnation+1 && !imported { // I3
			t.Fatalf("incarnation %d after %d", j.GetIncarnation(), m.incarnation)
		}
		if j.GetIncarnation() != m.incarnation && !imported {
			x.checkRestart(t, cmd, old, j)
		}
		m.incarnation = j.GetIncarnation()
		if m.ended && j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
			if cmd.GetResumeJob() == nil || j.GetPhase() != vftv1.JobPhase_JOB_PHASE_PENDING || !committed(old, cmd.GetResumeJob().GetEpoch()) {
				t.Fatalf("job %s is %v after it had ended", id, j.GetPhase())
			}
			m.resumed++
			m.former = j.GetIncarnation()
			m.from = cmd.GetResumeJob().GetEpoch()
		}
		m.ended = j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED
		x.checkPlaces(t, cmd, m, old, j)
		checkFilling(t, cmd, old, j)
		x.checkEpochs(t, cmd, m, old, j)
		if last := LastEvent(j); last < m.events {
			t.Fatalf("events went from %d to %d", m.events, last)
		} else {
			m.events = last
		}
		for i, e := range j.GetEvents() {
			if i > 0 && e.GetNumber() != j.GetEvents()[i-1].GetNumber()+1 {
				t.Fatalf("gap before event %d", e.GetNumber())
			}
		}
		if len(j.GetEvents()) > MaxEvents {
			t.Fatalf("%d events", len(j.GetEvents()))
		}
	}
}

// checkRestart: I2.
func (x *machine) checkRestart(t *rapid.T, cmd *vftv1.Command, old, j *vftv1.Job) {
	b := cmd.GetBeginOperation()
	if b == nil || len(j.GetGuests()) != len(j.GetSpec().GetGuests()) {
		t.Fatalf("new incarnation by %v with %d guests", cmd, len(j.GetGuests()))
	}
	if b.GetKind() != vftv1.OperationKind_OPERATION_KIND_RESTART {
		return
	}
	var any bool
	for _, e := range old.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			any = true
			if e.GetNumber() == b.GetEpoch() && e.GetDamaged() == "" {
				if m := x.m[j.GetSpec().GetId()]; m.resumed > 0 && e.GetNumber() > m.from && e.GetIncarnation() <= m.former {
					t.Fatalf("restart from epoch %d of a former life; resumed from %d", e.GetNumber(), m.from)
				}
				return
			}
		}
	}
	if b.GetEpoch() != 0 || (any && !b.GetAbandon()) {
		t.Fatalf("restart from epoch %d of %v", b.GetEpoch(), old.GetEpochs())
	}
}

// checkPlaces: I3. Within an incarnation a guest's place changes only by the
// entry that ends a migration which nobody has given up, and then to a node
// that is alive; requests are answered once.
func (x *machine) checkPlaces(t *rapid.T, cmd *vftv1.Command, m *model, old, j *vftv1.Job) {
	if op := j.GetOperation(); op.GetKind() == vftv1.OperationKind_OPERATION_KIND_MIGRATE && op.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_REVOKED {
		m.revoked[op.GetId()] = true
	}
	seen := map[uint32]bool{}
	for _, r := range j.GetMoves() {
		if seen[r.GetGuest()] || r.GetNumber() > j.GetNextMove() || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			t.Fatalf("requests %v, next %d", j.GetMoves(), j.GetNextMove())
		}
		seen[r.GetGuest()] = true
	}
	answered := func(j *vftv1.Job, number uint64) bool {
		for _, r := range j.GetMoves() {
			if r.GetNumber() == number {
				return false
			}
		}
		return j.GetOperation().GetMove().GetNumber() != number
	}
	for n := uint64(1); n <= old.GetNextMove(); n++ {
		if answered(old, n) && !answered(j, n) {
			t.Fatalf("request %d is open again by %v", n, cmd)
		}
		if !answered(old, n) && answered(j, n) {
			told := false
			for _, ev := range Without(j, LastEvent(old), false).GetEvents() {
				told = told || ev.GetFigures()["request"] == int64(n) && (ev.GetKind() == "migrated" || ev.GetKind() == "migrate-failed")
			}
			if !told {
				t.Fatalf("request %d ended without a word by %v", n, cmd)
			}
		}
	}
	if old.GetIncarnation() != j.GetIncarnation() || cmd.GetImportEpoch() != nil {
		return
	}
	for i, g := range j.GetGuests() {
		if proto.Equal(g, old.GetGuests()[i]) {
			continue
		}
		op, a := old.GetOperation(), cmd.GetAdvanceOperation()
		if a.GetPhase() != vftv1.OperationPhase_OPERATION_PHASE_MOVED || a.GetProof() == nil ||
			op.GetKind() != vftv1.OperationKind_OPERATION_KIND_MIGRATE || op.GetPhase() != vftv1.OperationPhase_OPERATION_PHASE_BEGUN || op.GetId() != a.GetOperation() ||
			op.GetMove().GetGuest() != uint32(i) || op.GetMove().GetFrom() != old.GetGuests()[i].GetNode() || op.GetMove().GetTo() != g.GetNode() ||
			!x.s.alive(g.GetNode()) || m.revoked[op.GetId()] {
			t.Fatalf("guest %d went from %v to %v by %v in %v", i, old.GetGuests()[i], g, cmd, op)
		}
		m.moves++
	}
}

// checkFilling: guests that lack memory are neither saved nor moved, and what
// they were restored from stays until they have it (I5). One entry ends that.
func checkFilling(t *rapid.T, cmd *vftv1.Command, old, j *vftv1.Job) {
	if j.GetFilling() {
		switch j.GetOperation().GetKind() {
		case vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, vftv1.OperationKind_OPERATION_KIND_MIGRATE:
			t.Fatalf("%v of guests that lack memory", j.GetOperation())
		}
		if !committed(j, j.GetRestoredFrom()) && j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
			t.Fatalf("epoch %d is gone, and guests lack memory of it", j.GetRestoredFrom())
		}
	}
	if old.GetFilling() == j.GetFilling() || j.GetIncarnation() != old.GetIncarnation() {
		return
	}
	f, g := cmd.GetFinishOperation(), cmd.GetGuestsFilled()
	if j.GetFilling() && !f.GetFilling() || !j.GetFilling() && g.GetIncarnation() != j.GetIncarnation() && j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
		t.Fatalf("filling went from %v to %v by %v", old.GetFilling(), j.GetFilling(), cmd)
	}
}

// checkEpochs: I1.
func (x *machine) checkEpochs(t *rapid.T, cmd *vftv1.Command, m *model, old, j *vftv1.Job) {
	gathering := 0
	for _, e := range j.GetEpochs() {
		n := e.GetNumber()
		switch e.GetState() {
		case vftv1.EpochState_EPOCH_STATE_GATHERING:
			gathering++
			if op := j.GetOperation(); op.GetKind() != vftv1.OperationKind_OPERATION_KIND_CHECKPOINT || op.GetEpoch() != n {
				t.Fatalf("epoch %d gathers without its operation", n)
			}
		case vftv1.EpochState_EPOCH_STATE_ABORTED:
			m.everAborted[n] = true
			if m.committed[n] != nil {
				t.Fatalf("epoch %d aborted after its commit", n)
			}
		case vftv1.EpochState_EPOCH_STATE_COMMITTED:
			checkLevels(t, e, x.s.alive)
			data, _ := proto.MarshalOptions{Deterministic: true}.Marshal(lasting(e))
			// One that was removed may be imported anew, and be another one then.
			if was := m.committed[n]; was != nil && FindEpoch(old, n) != nil {
				if !bytes.Equal(was, data) {
					t.Fatalf("epoch %d changed after its commit", n)
				}
				if before := FindEpoch(old, n); !proto.Equal(before, e) && e.GetRevision() != before.GetRevision()+1 {
					t.Fatalf("epoch %d went from revision %d to %d by %v", n, before.GetRevision(), e.GetRevision(), cmd)
				}
				continue
			}
			m.committed[n] = data
			if c := cmd.GetImportEpoch(); c != nil && c.GetEpoch().GetNumber() == n {
				if m.deleted[n] && FindEpoch(old, n) != nil || m.everAborted[n] && FindEpoch(old, n) != nil || !m.ended || e.GetPin() == "" {
					t.Fatalf("epoch %d imported into %v", n, old)
				}
				delete(m.deleted, n)
				delete(m.everAborted, n)
				m.imported++
				continue
			}
			c := cmd.GetCommitEpoch()
			was := FindEpoch(old, n)
			if c == nil || c.GetEpoch() != n || m.everAborted[n] || m.deleted[n] ||
				was.GetState() != vftv1.EpochState_EPOCH_STATE_GATHERING ||
				old.GetOperation().GetId() != c.GetOperation() || old.GetOperation().GetPhase() != vftv1.OperationPhase_OPERATION_PHASE_RELEASED ||
				old.GetIncarnation() != c.GetIncarnation() || e.GetIncarnation() != old.GetIncarnation() {
				t.Fatalf("epoch %d committed by %v from %v", n, cmd, old)
			}
			if len(e.GetParts()) != len(j.GetGuests()) || e.GetProof() == nil {
				t.Fatalf("epoch %d committed incomplete: %v", n, e)
			}
			for i, p := range e.GetParts() {
				l := FindLevel(e, e.GetRequired())
				if int(p.GetGuest()) != i || len(p.GetNodes()) == 0 || !SafeAt(p, l, anyNode) {
					t.Fatalf("epoch %d committed with part %v", n, p)
				}
			}
		case vftv1.EpochState_EPOCH_STATE_DELETED:
			m.deleted[n] = true
			if m.committed[n] == nil && !m.everAborted[n] || !e.GetLeftovers() || e.GetPin() != "" {
				t.Fatalf("epoch %d is remembered as deleted: %v", n, e)
			}
		}
	}
	if gathering > 1 {
		t.Fatalf("%d epochs gather at once", gathering)
	}
	for n := range m.committed {
		if !committed(j, n) {
			m.deleted[n] = true
		} else if m.deleted[n] {
			t.Fatalf("epoch %d is back after its end", n)
		}
	}
	for _, e := range old.GetEpochs() { // I5: pinned and last epochs stay
		n := e.GetNumber()
		if !committed(old, n) || committed(j, n) {
			continue
		}
		if e.GetPin() != "" && (!cmd.GetDeleteEpoch().GetPinned() || cmd.GetDeleteEpoch().GetEpoch() != n) {
			t.Fatalf("epoch %d, pinned as %s, went by %v", n, e.GetPin(), cmd)
		}
		forced := cmd.GetDeleteEpoch().GetLast() || cmd.GetBeginOperation().GetAbandon() || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED
		if LastGood(old).GetNumber() == n && !forced {
			t.Fatalf("the last good epoch %d went by %v", n, cmd)
		}
	}
	pins := map[string]bool{}
	for _, e := range j.GetEpochs() {
		if FindLevel(e, "s3:b").GetState() == vftv1.LevelState_LEVEL_STATE_SAFE {
			m.reached++
		}
		if e.GetPin() != "" {
			m.pins++
		}
		if e.GetPin() != "" && pins[e.GetPin()] {
			t.Fatalf("two epochs are pinned as %s", e.GetPin())
		}
		pins[e.GetPin()] = true
	}
}

func committed(j *vftv1.Job, n uint64) bool {
	return FindEpoch(j, n).GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED
}

// lasting is what nothing may change about a committed epoch.
func lasting(e *vftv1.Epoch) *vftv1.Epoch {
	n := proto.CloneOf(e)
	n.Levels, n.Pin, n.Damaged, n.Revision = nil, "", "", 0
	for _, p := range n.GetParts() {
		p.Nodes, p.Levels = nil, nil
	}
	return n
}

// checkLevels: an epoch is said to be safe at a level exactly when all parts are.
func checkLevels(t *rapid.T, e *vftv1.Epoch, alive func(string) bool) {
	for _, l := range e.GetLevels() {
		safe := true
		for _, p := range e.GetParts() {
			at := FindPartLevel(p, l.GetLevel())
			nodes := at.GetNodes()
			if l.GetLevel() == LevelLocal || l.GetLevel() == LevelPartner {
				nodes = p.GetNodes()
			}
			living := map[string]bool{}
			for _, n := range nodes {
				if alive(n) {
					living[n] = true
				}
			}
			safe = safe && len(living) >= int(l.GetNodes()) && (at != nil || !l.GetOutside())
		}
		if safe != (l.GetState() == vftv1.LevelState_LEVEL_STATE_SAFE) || safe && l.GetAt() == 0 {
			t.Fatalf("epoch %d at level %s is %v since %d with parts %v", e.GetNumber(), l.GetLevel(), l.GetState(), l.GetAt(), e.GetParts())
		}
	}
}
