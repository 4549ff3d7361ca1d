package sidecar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/quiesce"
)

// move is this node's part in the migration of one guest (docs/MIGRATE.md).
type move struct {
	order   *vftv1.MoveOrder
	prepare *future[*vftv1.PrepareMoveResponse]
	cut     *future[*vftv1.CutMoveResponse]
	end     sync.Mutex // held by what changes the guest's place here, or ends the move

	mu      sync.Mutex
	leaving *departure // on the old node
	coming  *arrival   // on the new node
	over    bool       // taken back or finished here
}

// errTakenBack says that the guest stays where it was.
var errTakenBack = errors.New("the migration was taken back")

// take gives the move its part here, unless it is over.
func (m *move) take(leaving *departure, coming *arrival) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return errTakenBack
	}
	m.leaving, m.coming = leaving, coming
	return nil
}

func (m *move) parts() (leaving *departure, coming *arrival, over bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving, m.coming, m.over
}

func (m *move) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
}

// errOldMove refuses a call of a migration before the present one.
var errOldMove = errors.New("a later migration is known here")

// beginMove readies a move, which has no part on any node yet.
func (inc *incarnation) beginMove(order *vftv1.MoveOrder) (*move, error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	switch {
	case inc.ended:
		return nil, fmt.Errorf("job %s: %w", inc.job, errUnknown)
	case inc.move != nil && inc.move.order.GetEpoch() > order.GetEpoch():
		return nil, fmt.Errorf("job %s hold %d: %w", inc.job, order.GetEpoch(), errOldMove)
	case inc.move == nil || inc.move.order.GetEpoch() < order.GetEpoch():
		inc.move = &move{order: order}
	}
	return inc.move, nil
}

// moveOf returns the move that a call is about.
func (inc *incarnation) moveOf(order *vftv1.MoveOrder) (*move, error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.move == nil || inc.move.order.GetEpoch() != order.GetEpoch() {
		return nil, fmt.Errorf("job %s hold %d: the migration was not prepared here: %w", inc.job, order.GetEpoch(), errUnknown)
	}
	return inc.move, nil
}

func (s *Sidecar) isHere(m *vftv1.Member) bool { return m.GetNode() == s.cfg.Node.GetId() }

// prepareMove readies this node's part. On the new node a job may be made
// known that had no guest there.
func (s *Sidecar) prepareMove(ctx context.Context, req *vftv1.PrepareMoveRequest) (*vftv1.PrepareMoveResponse, error) {
	c, order := req.GetContext(), req.GetMove()
	var create func() *incarnation
	if s.isHere(order.GetTo()) {
		create = func() *incarnation { return s.newIncarnation(c, req.GetSpec(), req.GetMembers(), phaseArriving) }
	}
	inc, err := s.enter(c.GetJob(), c.GetIncarnation(), create)
	if err != nil {
		return nil, err
	}
	mv, err := inc.beginMove(order)
	if err != nil {
		return nil, err
	}
	inc.mu.Lock()
	if mv.prepare == nil {
		mv.prepare = begin(inc.work, func(ctx context.Context) (*vftv1.PrepareMoveResponse, error) {
			switch {
			case s.isHere(order.GetTo()):
				return &vftv1.PrepareMoveResponse{}, inc.expectGuest(ctx, mv)
			case s.isHere(order.GetFrom()):
				return inc.sendMost(ctx, mv)
			default:
				return &vftv1.PrepareMoveResponse{}, inc.prepareHold(ctx, order, nil)
			}
		})
	}
	prepare := mv.prepare
	inc.mu.Unlock()
	return prepare.wait(ctx)
}

// prepareHold readies the network: the link to the new node, and the hold.
func (inc *incarnation) prepareHold(ctx context.Context, order *vftv1.MoveOrder, guests map[int]quiesce.Snapshot) error {
	cut, err := inc.participant()
	if err != nil {
		return err
	}
	if err := inc.network().Expect(order.GetTo().GetNode(), order.GetTo().GetAddress()); err != nil {
		return err
	}
	return cut.Prepare(ctx, order.GetEpoch(), guests)
}

// cutMove stops the guest, if it is here, or has it loaded, and changes its
// place in this node's switch. All of it can be taken back.
func (s *Sidecar) cutMove(ctx context.Context, req *vftv1.CutMoveRequest) (*vftv1.CutMoveResponse, error) {
	inc, err := s.admit(req.GetContext())
	if err != nil {
		return nil, err
	}
	mv, err := inc.moveOf(req.GetMove())
	if err != nil {
		return nil, err
	}
	inc.mu.Lock()
	if mv.cut == nil {
		mv.cut = begin(inc.work, func(ctx context.Context) (*vftv1.CutMoveResponse, error) {
			return inc.doCutMove(ctx, mv, req.GetMembers())
		})
	}
	cut := mv.cut
	inc.mu.Unlock()
	return cut.wait(ctx)
}

func (inc *incarnation) doCutMove(ctx context.Context, mv *move, members []*vftv1.Member) (*vftv1.CutMoveResponse, error) {
	resp := &vftv1.CutMoveResponse{}
	epoch := mv.order.GetEpoch()
	leaving, coming, _ := mv.parts()
	if inc.holds(epoch) {
		results, err := inc.cut.Cut(ctx, epoch)
		if err != nil {
			return nil, err
		}
		if leaving != nil {
			if resp, err = leaving.sendRest(ctx, results[int(mv.order.GetGuest())].Frames); err != nil {
				return nil, err
			}
		}
	}
	var came *loadedGuest
	if coming != nil {
		var err error
		if came, err = coming.loaded.wait(ctx); err != nil {
			return nil, err
		}
	}
	mv.end.Lock()
	defer mv.end.Unlock()
	if _, _, over := mv.parts(); over {
		return nil, errTakenBack
	}
	if err := inc.network().Rehome(networkMembers(members)); err != nil {
		return nil, err
	}
	if came != nil {
		return resp, inc.attachArrival(ctx, mv, came)
	}
	return resp, nil
}

// holds says whether the epoch is held here, or was.
func (inc *incarnation) holds(epoch uint64) bool {
	cut, err := inc.participant()
	if err != nil {
		return false
	}
	number, _ := cut.State()
	return number == epoch
}

// moveTimeout bounds what ends a move on a node.
const moveTimeout = 20 * time.Second

// finishMove makes the guest's new place final. The log says that it is, so
// that from here on nothing is taken back.
func (s *Sidecar) finishMove(ctx context.Context, req *vftv1.FinishMoveRequest) (*vftv1.FinishMoveResponse, error) {
	order := req.GetMove()
	inc, err := s.admit(req.GetContext())
	if errors.Is(err, errUnknown) && s.isHere(order.GetFrom()) {
		return &vftv1.FinishMoveResponse{}, nil // nothing of it is left here
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTimeout)
	defer cancel()
	mv, err := inc.beginMove(order) // a process that was started anew knows of none
	if err != nil {
		return nil, err
	}
	mv.end.Lock()
	defer mv.end.Unlock()
	if err := inc.network().Rehome(networkMembers(req.GetMembers())); err != nil {
		return nil, err
	}
	inc.network().Settle()
	inc.setMembers(req.GetMembers())
	if s.isHere(order.GetTo()) {
		if err := inc.runArrival(ctx, order.GetGuest()); err != nil {
			return nil, err
		}
	}
	inc.tendGateway()
	resp := &vftv1.FinishMoveResponse{ByOrder: true}
	if inc.holds(order.GetEpoch()) {
		outcome, err := inc.cut.Release(ctx, order.GetEpoch())
		if err != nil && !errors.Is(err, quiesce.ErrStale) {
			return nil, err
		}
		resp.ByOrder = outcome.ByOrder
	} else {
		inc.network().Release(order.GetEpoch())
	}
	if s.isHere(order.GetFrom()) {
		inc.endDeparture(ctx, mv)
	}
	mv.finish()
	if len(inc.local()) == 0 {
		s.retire(inc)
		return resp, nil
	}
	return resp, inc.save()
}

// abortMove takes everything back: the log says that the guest stays where it
// was and will not run on the new node.
func (s *Sidecar) abortMove(ctx context.Context, req *vftv1.AbortMoveRequest) error {
	order := req.GetMove()
	inc, err := s.admit(req.GetContext())
	if errors.Is(err, errUnknown) && !s.isHere(order.GetFrom()) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTimeout)
	defer cancel()
	mv, err := inc.beginMove(order)
	if errors.Is(err, errOldMove) {
		return nil
	}
	if err != nil {
		return err
	}
	mv.end.Lock()
	defer mv.end.Unlock()
	mv.finish()
	leaving, coming, _ := mv.parts()
	if coming != nil {
		inc.dropArrival(ctx, order.GetGuest(), coming)
	}
	network := inc.network()
	if network != nil && !inc.arrivingOnly() {
		if err := network.Rehome(networkMembers(req.GetMembers())); err != nil {
			return err
		}
		network.Settle()
	}
	if cut, err := inc.participant(); err == nil {
		if err := cut.Abort(ctx, order.GetEpoch()); err != nil && !errors.Is(err, quiesce.ErrStale) {
			return err
		}
	}
	if leaving != nil {
		if err := leaving.takeBack(ctx); err != nil {
			return err
		}
		inc.setLeaving(order.GetGuest(), false)
	}
	if inc.arrivingOnly() {
		s.retire(inc)
		return nil
	}
	return inc.save()
}

// retire forgets an incarnation that has no guests here any more; one may come
// back.
func (s *Sidecar) retire(inc *incarnation) {
	inc.end() // first: the next to come uses the same directory
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[inc.job]
	if j == nil || j.current != inc {
		return
	}
	j.current = nil
	if err := s.writeFence(inc.job, j.fence); err != nil {
		s.log.Error("remembering which incarnations are over", "job", inc.job, "err", err)
	}
}

// networkMembers are the members of the job's network: its guests and its gateway.
func networkMembers(members []*vftv1.Member) []overlay.Member {
	var out []overlay.Member
	for _, m := range WithGateway(members) {
		out = append(out, overlay.Member{Guest: int(m.GetGuest()), Node: m.GetNode(), Address: m.GetAddress()})
	}
	return out
}

func (inc *incarnation) setMembers(members []*vftv1.Member) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	inc.members = members
}

func (inc *incarnation) memberList() []*vftv1.Member {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	return inc.members
}

// arrivingOnly says whether the job is known here for a guest that has not come yet.
func (inc *incarnation) arrivingOnly() bool {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	return inc.phase == phaseArriving
}

// setLeaving notes that a guest may be about to leave, for the next process.
func (inc *incarnation) setLeaving(guest uint32, on bool) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	inc.leaving = slices.DeleteFunc(slices.Clone(inc.leaving), func(g uint32) bool { return g == guest })
	if on {
		inc.leaving = append(inc.leaving, guest)
	}
}

func (inc *incarnation) removeGuestDir(index uint32) {
	if err := os.RemoveAll(inc.guestDir(index)); err != nil {
		inc.log.Warn("removing a guest's runtime directory", "guest", index, "err", err)
	}
}
