package fsm

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Levels that consist of whole copies on nodes.
const (
	LevelLocal   = "local"
	LevelPartner = "partner"
)

// beginLevels checks and copies the levels of a new epoch.
func beginLevels(c *vftv1.BeginOperation) ([]*vftv1.EpochLevel, error) {
	var out []*vftv1.EpochLevel
	for _, l := range c.GetLevels() {
		if l.GetLevel() == "" || l.GetOutside() != (l.GetNodes() == 0) || l.GetNeeds() > l.GetNodes() {
			return nil, fmt.Errorf("level %q of %d nodes: %w", l.GetLevel(), l.GetNodes(), ErrInvalid)
		}
		if findLevel(out, l.GetLevel()) != nil {
			return nil, fmt.Errorf("level %s twice: %w", l.GetLevel(), ErrInvalid)
		}
		out = append(out, &vftv1.EpochLevel{
			Level: l.GetLevel(), Nodes: l.GetNodes(), Needs: l.GetNeeds(), Outside: l.GetOutside(),
			State: vftv1.LevelState_LEVEL_STATE_PENDING,
		})
	}
	if len(out) == 0 || out[0].GetLevel() != LevelLocal || out[0].GetNodes() == 0 {
		return nil, fmt.Errorf("checkpoint that does not begin at level %s: %w", LevelLocal, ErrInvalid)
	}
	if findLevel(out, c.GetRequired()) == nil {
		return nil, fmt.Errorf("checkpoint that requires level %q, which it is not kept at: %w", c.GetRequired(), ErrInvalid)
	}
	return out, nil
}

func findLevel(levels []*vftv1.EpochLevel, name string) *vftv1.EpochLevel {
	for _, l := range levels {
		if l.GetLevel() == name {
			return l
		}
	}
	return nil
}

// FindLevel returns what is known of an epoch at a level, or nil.
func FindLevel(e *vftv1.Epoch, name string) *vftv1.EpochLevel { return findLevel(e.GetLevels(), name) }

// FindPartLevel returns what is known of a part at a level, or nil.
func FindPartLevel(p *vftv1.Part, name string) *vftv1.PartLevel {
	for _, l := range p.GetLevels() {
		if l.GetLevel() == name {
			return l
		}
	}
	return nil
}

// Holding returns how many different nodes, of those that are alive, have the
// part at a level of nodes: a whole copy, or a shard of it.
func Holding(p *vftv1.Part, l *vftv1.EpochLevel, alive func(string) bool) int {
	nodes := p.GetNodes()
	if !WholeCopies(l) {
		nodes = FindPartLevel(p, l.GetLevel()).GetNodes()
	}
	distinct := map[string]bool{}
	for _, n := range nodes {
		if n != "" && alive(n) {
			distinct[n] = true
		}
	}
	return len(distinct)
}

// WholeCopies says whether a level consists of whole copies on nodes.
func WholeCopies(l *vftv1.EpochLevel) bool {
	return l.GetLevel() == LevelLocal || l.GetLevel() == LevelPartner
}

// SafeAt says whether a part is safe at a level, as far as nodes that are
// alive make it so.
func SafeAt(p *vftv1.Part, l *vftv1.EpochLevel, alive func(string) bool) bool {
	if l.GetOutside() {
		return FindPartLevel(p, l.GetLevel()) != nil
	}
	return Holding(p, l, alive) >= int(l.GetNodes())
}

// Readable says whether a level can give a part back.
func Readable(p *vftv1.Part, l *vftv1.EpochLevel, alive func(string) bool) bool {
	if l.GetOutside() {
		return FindPartLevel(p, l.GetLevel()) != nil
	}
	return Holding(p, l, alive) >= int(l.GetNeeds())
}

// reckon sets the states of a committed epoch's levels from where its parts
// are. It modifies e.
func (t *transition) reckon(e *vftv1.Epoch) {
	for _, l := range e.GetLevels() {
		safe := !slices.ContainsFunc(e.GetParts(), func(p *vftv1.Part) bool { return !SafeAt(p, l, t.alive) })
		switch {
		case safe:
			l.State, l.Reason, l.NewNodes = vftv1.LevelState_LEVEL_STATE_SAFE, "", nil
			l.At = orElse(l.GetAt(), t.at)
		case l.GetState() == vftv1.LevelState_LEVEL_STATE_SAFE:
			l.State = vftv1.LevelState_LEVEL_STATE_PENDING
		}
	}
}

// reckonAll does so for all epochs of which a node has something, after its
// own state has changed, and returns the jobs that this changed.
func (s *State) reckonAll(node string, at int64) []string {
	var changed []string
	for id, j := range s.jobs {
		t := s.transition(j, at)
		touched := false
		for _, e := range j.GetEpochs() {
			if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED || !onNode(e, node) {
				continue
			}
			n := proto.CloneOf(e)
			t.reckon(n)
			if !proto.Equal(e, n) {
				n.Revision++
				t.setEpoch(n)
				touched = true
			}
		}
		if touched {
			s.jobs[id] = t.job
			changed = append(changed, id)
		}
	}
	slices.Sort(changed)
	return changed
}

func onNode(e *vftv1.Epoch, node string) bool {
	for _, p := range e.GetParts() {
		if slices.Contains(p.GetNodes(), node) {
			return true
		}
		for _, l := range p.GetLevels() {
			if slices.Contains(l.GetNodes(), node) {
				return true
			}
		}
	}
	return false
}

// present returns a copy of the committed epoch if nothing about it has changed
// since a revision.
func (t *transition) present(number, revision uint64) (*vftv1.Epoch, error) {
	e := t.epoch(number)
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
		return nil, fmt.Errorf("epoch %d is not committed: %w", number, ErrEpoch)
	}
	if e.GetRevision() != revision {
		return nil, fmt.Errorf("epoch %d at revision %d, present is %d: %w", number, revision, e.GetRevision(), ErrStale)
	}
	return proto.CloneOf(e), nil
}

func (t *transition) updateLevel(c *vftv1.UpdateLevel) (bool, error) {
	e, err := t.present(c.GetEpoch(), c.GetRevision())
	if err != nil {
		return false, err
	}
	l := FindLevel(e, c.GetLevel())
	if l == nil {
		return false, fmt.Errorf("epoch %d is not kept at level %q: %w", c.GetEpoch(), c.GetLevel(), ErrInvalid)
	}
	was := proto.CloneOf(l)
	for _, u := range c.GetParts() {
		if err := updatePart(e, l, u); err != nil {
			return false, fmt.Errorf("epoch %d at level %s: %w", c.GetEpoch(), c.GetLevel(), err)
		}
	}
	if c.GetFailure() != "" {
		l.State, l.Reason = vftv1.LevelState_LEVEL_STATE_FAILED, c.GetFailure()
	}
	added := l.GetNewNodes()
	t.reckon(e)
	if proto.Equal(e, t.epoch(c.GetEpoch())) {
		return false, nil
	}
	e.Revision++
	t.setEpoch(e)
	if was.GetState() != l.GetState() {
		t.eventLevel(e, l, was, added)
	}
	return true, nil
}

// updatePart records where one part is at a level. It modifies e and l.
func updatePart(e *vftv1.Epoch, l *vftv1.EpochLevel, u *vftv1.PartUpdate) error {
	i := slices.IndexFunc(e.GetParts(), func(p *vftv1.Part) bool { return p.GetGuest() == u.GetGuest() })
	if i < 0 || e.GetParts()[i].GetManifest() != u.GetManifest() {
		return fmt.Errorf("part of guest %d: %w", u.GetGuest(), ErrInvalid)
	}
	p := e.GetParts()[i]
	at := FindPartLevel(p, l.GetLevel())
	if u.GetGone() {
		p.Levels = slices.DeleteFunc(p.GetLevels(), func(x *vftv1.PartLevel) bool { return x == at })
		return nil
	}
	if at == nil {
		at = &vftv1.PartLevel{Level: l.GetLevel()}
		p.Levels = append(p.Levels, at)
	}
	at.Bytes += u.GetBytes()
	l.Bytes += u.GetBytes()
	old := at.GetNodes()
	switch {
	case l.GetOutside():
		return nil
	case WholeCopies(l):
		old, p.Nodes = p.GetNodes(), slices.Clone(u.GetNodes())
	default:
		at.Nodes = slices.Clone(u.GetNodes())
	}
	for _, n := range u.GetNodes() {
		if n != "" && !slices.Contains(old, n) && !slices.Contains(l.GetNewNodes(), n) {
			l.NewNodes = append(l.NewNodes, n)
		}
	}
	slices.Sort(l.NewNodes)
	return nil
}

func (t *transition) pinEpoch(c *vftv1.PinEpoch) (bool, error) {
	e, err := t.present(c.GetEpoch(), c.GetRevision())
	if err != nil {
		return false, err
	}
	if e.GetPin() == c.GetName() {
		return false, nil
	}
	if t.job.GetOperation().GetKind() == vftv1.OperationKind_OPERATION_KIND_STOP {
		return false, fmt.Errorf("the job is being stopped: %w", ErrPhase)
	}
	figures := map[string]int64{"epoch": int64(e.GetNumber())}
	if c.GetName() == "" {
		t.event("unpinned", fmt.Sprintf("checkpoint %d is no longer pinned", e.GetNumber()), figures, nil)
	} else {
		for _, other := range t.job.GetEpochs() {
			if other.GetPin() == c.GetName() {
				return false, fmt.Errorf("checkpoint %d is pinned as %s already: %w", other.GetNumber(), c.GetName(), ErrPinned)
			}
		}
		t.event("pinned", fmt.Sprintf("checkpoint %d pinned as %s", e.GetNumber(), c.GetName()), figures, map[string]string{"pin": c.GetName()})
	}
	e.Pin = c.GetName()
	e.Revision++
	t.setEpoch(e)
	return true, nil
}

func (t *transition) setDamaged(c *vftv1.SetDamaged) (bool, error) {
	e, err := t.present(c.GetEpoch(), c.GetRevision())
	if err != nil {
		return false, err
	}
	if e.GetDamaged() == c.GetReason() {
		return false, nil
	}
	figures := map[string]int64{"epoch": int64(e.GetNumber())}
	if c.GetReason() == "" {
		t.event("epoch-readable", fmt.Sprintf("checkpoint %d can be read again", e.GetNumber()), figures, nil)
	} else {
		t.event("epoch-damaged", fmt.Sprintf("checkpoint %d cannot be restored: %s", e.GetNumber(), c.GetReason()), figures,
			map[string]string{"reason": c.GetReason()})
	}
	e.Damaged = c.GetReason()
	e.Revision++
	t.setEpoch(e)
	return true, nil
}
