package fsm

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

var secret, keyA, keyB = bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)

// enrolling applies commands to a state, which must survive a snapshot.
type enrolling struct {
	t *testing.T
	s *State
}

func (e *enrolling) do(at int64, cmd *vftv1.Command) Result {
	e.t.Helper()
	cmd.Version, cmd.At = Version, at
	res := e.s.Apply(cmd, e.s.Applied()+1)
	data, err := Encode(e.s.Snapshot())
	if err != nil {
		e.t.Fatal(err)
	}
	if e.s, err = Decode(data); err != nil {
		e.t.Fatal(err)
	}
	return res
}

func (e *enrolling) add(at int64, t *vftv1.Token) Result {
	e.t.Helper()
	return e.do(at, &vftv1.Command{Body: &vftv1.Command_AddToken{AddToken: &vftv1.AddToken{Token: t}}})
}

func (e *enrolling) redeem(at int64, id, name string, key []byte) Result {
	e.t.Helper()
	return e.do(at, &vftv1.Command{Body: &vftv1.Command_RedeemToken{RedeemToken: &vftv1.RedeemToken{Id: id, Secret: secret, Name: name, PublicKey: key}}})
}

func (e *enrolling) want(res Result, err error) {
	e.t.Helper()
	if !errors.Is(res.Err, err) || err != nil && res.Changed {
		e.t.Errorf("%v, changed %v; want %v", res.Err, res.Changed, err)
	}
}

func TestTokens(t *testing.T) {
	e := &enrolling{t, New()}
	token := func(id string, kind vftv1.EnrolKind, name string) *vftv1.Token {
		return &vftv1.Token{Id: id, Secret: secret, Expires: 100, Kind: kind, Name: name}
	}
	node, replica, user := vftv1.EnrolKind_ENROL_KIND_NODE, vftv1.EnrolKind_ENROL_KIND_REPLICA, vftv1.EnrolKind_ENROL_KIND_USER
	e.want(e.add(1, token("any", node, "")), nil)
	again := e.add(2, token("any", node, ""))
	if e.want(again, nil); again.Changed {
		t.Error("asked again, it changes something")
	}
	other := token("any", node, "")
	other.Secret = keyA
	e.want(e.add(2, other), ErrToken)
	e.want(e.add(2, token("nobody", user, "")), ErrInvalid)
	e.want(e.add(2, token("", node, "")), ErrInvalid)
	used := token("used", node, "n9")
	used.UsedBy = "n9"
	e.want(e.add(2, used), ErrInvalid)

	e.want(e.redeem(3, "none", "n1", keyA), ErrToken)
	wrong := &vftv1.Command{Body: &vftv1.Command_RedeemToken{RedeemToken: &vftv1.RedeemToken{Id: "any", Secret: keyA, Name: "n1", PublicKey: keyA}}}
	e.want(e.do(3, wrong), ErrToken)
	e.want(e.redeem(101, "any", "n1", keyA), ErrToken) // expired
	e.want(e.redeem(4, "any", "n1", keyA), nil)
	for _, at := range []int64{5, 200} { // the answer was lost, and asked for again, even late
		if res := e.redeem(at, "any", "n1", keyA); res.Err != nil || res.Changed {
			t.Errorf("asked again: %v, changed %v", res.Err, res.Changed)
		}
	}
	e.want(e.redeem(6, "any", "n1", keyB), ErrToken) // somebody else
	e.want(e.redeem(6, "any", "n2", keyA), ErrToken)

	e.want(e.add(7, token("any2", node, "")), nil)
	e.want(e.redeem(8, "any2", "n1", keyB), ErrTaken)
	e.want(e.add(7, token("again", node, "n1")), nil)
	e.want(e.redeem(8, "again", "n2", keyB), ErrToken)
	e.want(e.redeem(8, "again", "n1", keyB), nil)
	if e.s.Enrolled("n1").GetReplica() {
		t.Error("a node became a replica")
	}
	e.want(e.add(9, token("r", replica, "n3")), nil)
	e.want(e.redeem(9, "r", "n3", keyA), nil)
	if !e.s.Enrolled("n3").GetReplica() || !proto.Equal(e.s.Enrolled("n3"), &vftv1.Enrolled{Node: "n3", Replica: true, PublicKey: keyA, At: 9}) {
		t.Errorf("%v", e.s.Enrolled("n3"))
	}
	e.want(e.add(9, token("u", user, "n3")), nil) // a user may be called like a node
	e.want(e.redeem(9, "u", "n3", keyB), nil)
	if !bytes.Equal(e.s.Enrolled("n3").GetPublicKey(), keyA) {
		t.Error("a user changed a node")
	}
	e.want(e.add(100+tokensKept+1, token("late", node, "")), nil)
	if e.s.Token("any") != nil || e.s.Token("late") == nil {
		t.Error("tokens that expired long ago are kept, or the new one is not")
	}
}

func TestExpelled(t *testing.T) {
	x := newScript(t) // a job with guests on n1 and n2
	e := &enrolling{t, x.s}
	expel := func(node string) Result {
		t.Helper()
		return e.do(1000, &vftv1.Command{Body: &vftv1.Command_ExpelNode{ExpelNode: &vftv1.ExpelNode{Node: node, Reason: "stolen"}}})
	}
	e.want(expel("n7"), ErrUnknownNode)
	res := expel("n2")
	e.want(res, nil)
	if e.s.Node("n2").GetState() != vftv1.NodeState_NODE_STATE_LOST || len(res.Jobs) != 1 {
		t.Errorf("node %v, jobs %v", e.s.Node("n2").GetState(), res.Jobs)
	}
	events := e.s.Job("a").GetEvents()
	if ev := events[len(events)-1]; ev.GetKind() != "node-lost" || ev.GetText() != "node n2 expelled: stolen" {
		t.Errorf("%v", ev)
	}
	if again := expel("n2"); again.Err != nil || again.Changed {
		t.Errorf("asked again: %v, changed %v", again.Err, again.Changed)
	}
	// It never comes back: not by itself, not with a token.
	e.want(e.do(1001, &vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: &vftv1.Node{Id: "n2", Session: 9}}}}), ErrExpelled)
	node := vftv1.EnrolKind_ENROL_KIND_NODE
	e.want(e.add(1002, &vftv1.Token{Id: "t", Secret: secret, Expires: 2000, Kind: node, Name: "n2"}), ErrExpelled)
	e.want(e.add(1002, &vftv1.Token{Id: "any", Secret: secret, Expires: 2000, Kind: node}), nil)
	e.want(e.redeem(1003, "any", "n2", keyA), ErrExpelled)
	e.want(e.redeem(1003, "any", "n2b", keyA), nil)
	if got := e.s.Expelled(); len(got) != 1 || got[0] != "n2" {
		t.Errorf("expelled %v", got)
	}
}
