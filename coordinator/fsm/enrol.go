package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// What an enrolment can be refused for besides.
var (
	ErrToken    = errors.New("not a token that can be used")
	ErrTaken    = errors.New("the cluster has a node of this id")
	ErrExpelled = errors.New("the node is expelled")
)

// tokensKept is how long tokens are remembered after they expired, in ns.
const tokensKept = 24 * 3600 * int64(1e9)

// Token returns a token or nil.
func (s *State) Token(id string) *vftv1.Token { return s.tokens[id] }

// Enrolled returns what is known of a node's enrolment, or nil.
func (s *State) Enrolled(node string) *vftv1.Enrolled { return s.enrolled[node] }

// addToken makes a token known, and forgets those that expired long ago.
func (s *State) addToken(c *vftv1.AddToken, at int64) Result {
	t := c.GetToken()
	if t.GetId() == "" || len(t.GetSecret()) != 32 || t.GetKind() == vftv1.EnrolKind_ENROL_KIND_UNSPECIFIED || t.GetUsedBy() != "" || len(t.GetPublicKey()) != 0 {
		return Result{Err: fmt.Errorf("a token needs an id, a secret and a kind: %w", ErrInvalid)}
	}
	if t.GetName() == "" && !forNode(t) {
		return Result{Err: fmt.Errorf("a token for a person names them: %w", ErrInvalid)}
	}
	if old := s.tokens[t.GetId()]; old != nil {
		if !bytes.Equal(old.GetSecret(), t.GetSecret()) || old.GetKind() != t.GetKind() || old.GetName() != t.GetName() {
			return Result{Err: fmt.Errorf("another token has this id: %w", ErrToken)}
		}
		return Result{} // asked again
	}
	if forNode(t) && s.enrolled[t.GetName()].GetExpelled() != "" {
		return Result{Err: expelled(s.enrolled[t.GetName()])}
	}
	for id, old := range s.tokens {
		if old.GetExpires() < at-tokensKept {
			delete(s.tokens, id)
		}
	}
	s.tokens[t.GetId()] = proto.CloneOf(t)
	return Result{Changed: true}
}

func forNode(t *vftv1.Token) bool {
	return t.GetKind() == vftv1.EnrolKind_ENROL_KIND_NODE || t.GetKind() == vftv1.EnrolKind_ENROL_KIND_REPLICA
}

func expelled(e *vftv1.Enrolled) error {
	return fmt.Errorf("node %s was expelled (%s) and cannot come back under this id, choose another: %w", e.GetNode(), e.GetExpelled(), ErrExpelled)
}

// MayRedeem tells whether a token can be used as asked, or has been used just so.
func (s *State) MayRedeem(c *vftv1.RedeemToken, at int64) error {
	t := s.tokens[c.GetId()]
	switch {
	case t == nil || !bytes.Equal(t.GetSecret(), c.GetSecret()):
		return fmt.Errorf("the cluster does not know it: %w", ErrToken)
	case c.GetName() == "" || len(c.GetPublicKey()) != 32:
		return fmt.Errorf("enrolling needs a name and a key: %w", ErrInvalid)
	case t.GetName() != "" && t.GetName() != c.GetName():
		return fmt.Errorf("it is for %s, not for %s: %w", t.GetName(), c.GetName(), ErrToken)
	case forNode(t) && s.enrolled[c.GetName()].GetExpelled() != "":
		return expelled(s.enrolled[c.GetName()])
	case t.GetUsedBy() == c.GetName() && bytes.Equal(t.GetPublicKey(), c.GetPublicKey()):
		return nil
	case t.GetUsedBy() != "":
		return fmt.Errorf("it was used by %s already: %w", t.GetUsedBy(), ErrToken)
	case at > t.GetExpires():
		return fmt.Errorf("it has expired: %w", ErrToken)
	case forNode(t) && t.GetName() == "" && s.known(c.GetName()):
		return fmt.Errorf("%s: %w; choose another, or use a token made for this one", c.GetName(), ErrTaken)
	}
	return nil
}

// known says whether a node of that id is or was in the cluster.
func (s *State) known(node string) bool {
	return s.nodes[node] != nil || s.enrolled[node] != nil || s.replicas[node] != ""
}

func (s *State) redeemToken(c *vftv1.RedeemToken, at int64) Result {
	if err := s.MayRedeem(c, at); err != nil {
		return Result{Err: err}
	}
	t := s.tokens[c.GetId()]
	if t.GetUsedBy() != "" {
		return Result{} // asked again
	}
	t = proto.CloneOf(t)
	t.UsedBy, t.PublicKey = c.GetName(), c.GetPublicKey()
	s.tokens[t.GetId()] = t
	if forNode(t) {
		s.enrolled[c.GetName()] = &vftv1.Enrolled{
			Node: c.GetName(), PublicKey: c.GetPublicKey(), At: at,
			Replica: t.GetKind() == vftv1.EnrolKind_ENROL_KIND_REPLICA,
		}
	}
	return Result{Changed: true}
}

// enrolment adds tokens and members to a snapshot, in order.
func (s *State) enrolment(st *vftv1.State) {
	for _, t := range s.tokens {
		st.Tokens = append(st.Tokens, t)
	}
	slices.SortFunc(st.Tokens, func(a, b *vftv1.Token) int { return strings.Compare(a.GetId(), b.GetId()) })
	for _, e := range s.enrolled {
		st.Enrolled = append(st.Enrolled, e)
	}
	slices.SortFunc(st.Enrolled, func(a, b *vftv1.Enrolled) int { return strings.Compare(a.GetNode(), b.GetNode()) })
}

// Expelled are the nodes that may never come back, in order.
func (s *State) Expelled() []string {
	var out []string
	for id, e := range s.enrolled {
		if e.GetExpelled() != "" {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// expelNode ends a node's membership. Its guests are lost with it.
func (s *State) expelNode(c *vftv1.ExpelNode, at int64) Result {
	id := c.GetNode()
	if id == "" || c.GetReason() == "" {
		return Result{Err: fmt.Errorf("expelling needs a node and a reason: %w", ErrInvalid)}
	}
	if !s.known(id) {
		return Result{Err: fmt.Errorf("node %q: %w", id, ErrUnknownNode)}
	}
	if s.enrolled[id].GetExpelled() != "" {
		return Result{} // asked again
	}
	e := &vftv1.Enrolled{Node: id, At: at}
	if old := s.enrolled[id]; old != nil {
		e = proto.CloneOf(old)
	}
	e.Expelled, e.Replica = c.GetReason(), false
	s.enrolled[id] = e
	delete(s.replicas, id)
	s.book.Withdraw(id)
	if old := s.nodes[id]; old != nil && old.GetState() == vftv1.NodeState_NODE_STATE_ALIVE {
		return s.lost(old, at, fmt.Sprintf("node %s expelled: %s", id, c.GetReason()), nil)
	}
	return Result{Changed: true}
}
