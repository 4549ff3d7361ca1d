package fsm

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// says has a node say that these rules have an alarm raised.
func (x *script) says(node string, rules ...string) {
	x.t.Helper()
	h := &vftv1.Health{Watching: []string{"disk", "fan"}}
	for _, r := range rules {
		h.Reasons = append(h.Reasons, &vftv1.HealthReason{Rule: r, Confidence: 0.5, Window: 30 * second})
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: node, Session: 1, Health: h}}}})
}

func (x *script) settle() Result {
	x.t.Helper()
	return x.do(&vftv1.Command{Body: &vftv1.Command_SettleAlarms{SettleAlarms: &vftv1.SettleAlarms{}}})
}

func TestScores(t *testing.T) {
	for name, tc := range map[string]struct {
		story func(x *script)
		want  []*vftv1.RuleScore // but for at
		open  int
	}{
		"right, and another rule saw nothing": {func(x *script) {
			x.says("n1", "disk")
			x.says("n1", "disk", "disk") // of two subjects
			x.lose("n1")
		}, []*vftv1.RuleScore{{Rule: "disk", Confidence: 0.5, Episodes: 1, Hits: 1, Leads: []int64{2 * second}}, {Rule: "fan", Missed: 1}}, 0},
		"false": {func(x *script) {
			x.says("n1", "disk")
			x.says("n1")
			if x.settle().Changed {
				x.t.Error("judged before its time")
			}
			x.index += 30
			if !x.settle().Changed || x.settle().Changed {
				x.t.Error("not judged once")
			}
		}, []*vftv1.RuleScore{{Rule: "disk", Confidence: 0.5, Episodes: 1, FalseAlarms: 1}}, 0},
		"false, and it stays": {func(x *script) {
			x.says("n1", "disk")
			x.index += 31
			x.settle()
		}, []*vftv1.RuleScore{{Rule: "disk", Confidence: 0.5, Episodes: 1, FalseAlarms: 1}}, 1},
		"not known yet": {func(x *script) { x.says("n2", "fan") }, []*vftv1.RuleScore{{Rule: "fan", Confidence: 0.5, Episodes: 1}}, 1},
		"taken away on purpose": {func(x *script) {
			x.says("n1", "disk")
			x.do(&vftv1.Command{Body: &vftv1.Command_DrainNode{DrainNode: &vftv1.DrainNode{Node: "n1", Reason: "repair"}}})
			x.lose("n1")
		}, []*vftv1.RuleScore{{Rule: "disk", Confidence: 0.5, Episodes: 1}}, 0},
		"expelled": {func(x *script) {
			x.says("n1", "disk")
			x.do(&vftv1.Command{Body: &vftv1.Command_ExpelNode{ExpelNode: &vftv1.ExpelNode{Node: "n1", Reason: "sold"}}})
		}, []*vftv1.RuleScore{{Rule: "disk", Confidence: 0.5, Episodes: 1}}, 0},
		"no rule watches": {func(x *script) { x.lose("n1") }, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newScript(t)
			tc.story(x)
			got := x.s.Scores()
			for _, r := range got {
				if r.GetAt() == 0 {
					t.Errorf("%v was counted at no time", r)
				}
				r.At = 0
			}
			if !proto.Equal(&vftv1.State{Scores: got}, &vftv1.State{Scores: tc.want}) {
				t.Errorf("scores %v, want %v", got, tc.want)
			}
			if open := x.s.Episodes(); len(open) != tc.open {
				t.Errorf("open are %v, want %d", open, tc.open)
			}
		})
	}
}

// A replica that restores a snapshot goes on to the same state as one that has
// seen every command, and what it was made from stays as it was.
func TestScoresAreRestored(t *testing.T) {
	x := newScript(t)
	x.says("n1", "disk")
	x.says("n2", "fan", "disk")
	x.lose("n1")
	snapshot := x.s.Snapshot()
	data, err := Encode(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	y := &script{t: t, s: restored, index: x.index}
	for _, s := range []*script{x, y} {
		s.says("n2", "fan")
		s.index += 40
		s.settle()
		s.says("n1", "disk")
		s.lose("n2")
	}
	a, err := Encode(x.s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	b, err := Encode(y.s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%v\nwant\n%v", y.s.Snapshot(), x.s.Snapshot())
	}
	if again, err := Encode(snapshot); err != nil || !bytes.Equal(again, data) {
		t.Errorf("the snapshot has changed: %v", err)
	}
}
