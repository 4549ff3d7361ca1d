package fsm

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// model is what the rules say about one job, kept apart from the state machine.
type model struct {
	incarnation uint64
	committed   map[uint64][]byte // epoch → as it was when committed
	deleted     map[uint64]bool
	everAborted map[uint64]bool
	events      uint64
	ended       bool
	resumed     int
	former      uint64 // incarnation, and epoch, of the last resumption
	from        uint64
	imported    int
	reached     int // commands after which an epoch was safe at a level outside
	pins        int // or pinned
	moves       int
	revoked     map[uint64]bool // migrations that were given up
}

// machine drives random commands, also old ones again, against the state
// machine and checks the invariants after each.
type machine struct {
	s     *State
	index uint64
	at    int64
	past  []*vftv1.Command // as leaders, present and former, have sent them
	m     map[string]*model
	led   bool // whole operations go their straight way, on the first job
	fills bool // guests have lacked memory

	hits, wrong, missed int64 // alarms that were judged
}

var jobIDs = []string{"a", "b", "imported"}

func (x *machine) send(t *rapid.T, cmd *vftv1.Command) Result {
	cmd = proto.CloneOf(cmd)
	if cmd.GetVersion() == 0 {
		cmd.Version = Version
		x.at += 10
		cmd.At = x.at
		x.past = append(x.past, cmd)
	}
	before, scores := encode(t, x.s), x.s.Snapshot()
	unread := proto.CloneOf(scores)
	jobs := map[string]*vftv1.Job{}
	for _, j := range x.s.Jobs() {
		jobs[j.GetSpec().GetId()] = proto.CloneOf(j)
	}
	shared := map[string]*vftv1.Job{}
	for _, j := range x.s.Jobs() {
		shared[j.GetSpec().GetId()] = j
	}
	input := proto.CloneOf(cmd)
	x.index++
	res := x.s.Apply(cmd, x.index)
	if !proto.Equal(input, cmd) {
		t.Fatalf("the command was modified: %v", cmd)
	}
	after := encode(t, x.s)
	if (res.Err != nil || !res.Changed) && !bytes.Equal(before, after) { // I6
		t.Fatalf("%v changed the state though it answered %v, %v", cmd, res.Changed, res.Err)
	}
	for id, j := range shared { // what readers hold is never modified
		if !proto.Equal(j, jobs[id]) {
			t.Fatalf("job %s was modified in place by %v", id, cmd)
		}
	}
	if !proto.Equal(scores, unread) {
		t.Fatalf("a snapshot was modified in place by %v", cmd)
	}
	if res.Changed { // a replica may restore it
		if again, err := Decode(after); err != nil || !bytes.Equal(encode(t, again), after) {
			t.Fatalf("the state does not survive its encoding after %v: %v", cmd, err)
		}
	}
	x.check(t, cmd, jobs)
	x.checkScores(t, cmd, scores)
	return res
}

func encode(t *rapid.T, s *State) []byte {
	st := s.Snapshot()
	st.Applied = 0
	data, err := Encode(st)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// aVerdict draws what a node says of itself: none, one or two rules raised.
func aVerdict(t *rapid.T) *vftv1.Health {
	h := &vftv1.Health{Watching: []string{"disk", "fan"}}
	for _, rule := range rapid.SliceOfN(rapid.SampledFrom([]string{"disk", "fan"}), 0, 2).Draw(t, "alarms") {
		h.Reasons = append(h.Reasons, &vftv1.HealthReason{Rule: rule, Confidence: 0.5, Window: rapid.SampledFrom([]int64{0, 30, 1000}).Draw(t, "window")})
	}
	return h
}

func TestInvariants(t *testing.T) {
	commits, restarts, ends, reached, pins, resumed, imported, moves := 0, 0, 0, 0, 0, 0, 0, 0
	hits, wrong, missed := int64(0), int64(0), int64(0)
	rapid.Check(t, func(t *rapid.T) {
		x := &machine{s: New(), m: map[string]*model{}, at: 1000}
		for _, n := range []string{"n1", "n2", "n4"} {
			x.send(t, &vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: n, Session: 1}}}})
		}
		led := rapid.Bool().Draw(t, "led")
		for _, id := range jobIDs[:2] { // start from running jobs, the interesting part
			x.send(t, &vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: testSpec(id)}}})
			if led && id == jobIDs[0] || rapid.Bool().Draw(t, "running") {
				x.send(t, &vftv1.Command{Body: &vftv1.Command_BeginOperation{BeginOperation: &vftv1.BeginOperation{
					Job: id, Operation: 1, Kind: vftv1.OperationKind_OPERATION_KIND_BOOT, Incarnation: 1, Guests: guestsOn("n1", "n2"),
				}}})
				x.send(t, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: &vftv1.AdvanceOperation{
					Job: id, Operation: 1, Incarnation: 1, Phase: vftv1.OperationPhase_OPERATION_PHASE_RESTORED,
				}}})
				x.send(t, &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{Job: id, Operation: 1, Incarnation: 1}}})
			}
		}
		actions := x.straight(x.actions())
		if led { // to where chance alone hardly ever gets
			x.led = true
			for _, name := range []string{"whole checkpoint", "whole restart", "whole level", "whole migration", "whole life", "whole alarm"} {
				actions[name](t)
			}
			x.led = false
			x.send(t, anImport(jobIDs[2]))
			m, other := x.m[jobIDs[0]], x.m[jobIDs[2]]
			if len(m.committed) != 1 || m.reached == 0 || m.moves != 1 || m.pins == 0 || m.resumed != 1 || other.imported != 1 || !x.fills ||
				x.hits != 1 || x.wrong != 1 || x.missed != 1 {
				t.Fatalf("the straight way led to %+v and %+v; %d alarms right, %d false, %d missed", m, other, x.hits, x.wrong, x.missed)
			}
		}
		t.Repeat(actions)
		hits, wrong, missed = hits+x.hits, wrong+x.wrong, missed+x.missed
		for _, m := range x.m {
			reached += m.reached
			pins += m.pins
			moves += m.moves
			resumed += m.resumed
			imported += m.imported
			commits += len(m.committed)
			restarts += int(m.incarnation)
			if m.ended {
				ends++
			}
		}
	})
	t.Logf("%d commits, %d incarnations, %d jobs ended; %d times an epoch was at an outside level, %d times pinned; %d imports, %d resumptions, %d migrations; %d alarms right, %d false, %d failures missed", commits, restarts, ends, reached, pins, imported, resumed, moves, hits, wrong, missed)
	if commits == 0 { // what a straight way reaches is checked above
		t.Error("the commands drawn commit nothing")
	}
}
