package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// levelBoot stands in a verdict for a guest that was restored and thrown away.
const levelBoot = "boot"

// check is one part at one place that is to be read, by node.
type check struct {
	part  *vftv1.Part
	level *vftv1.EpochLevel
	node  string
	boot  bool
}

// VerifyEpoch implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) VerifyEpoch(ctx context.Context, req *connect.Request[vftv1.VerifyEpochRequest]) (*connect.Response[vftv1.VerifyEpochResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	e := fsm.FindEpoch(job, req.Msg.GetEpoch())
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("only a committed checkpoint can be verified"))
	}
	checks := c.checksOf(e, req.Msg.GetBoot())
	resp := &vftv1.VerifyEpochResponse{}
	var mu sync.Mutex
	var calls sync.WaitGroup
	for _, some := range checks {
		calls.Go(func() {
			for _, x := range some {
				v := c.carryOut(ctx, job, e, x)
				mu.Lock()
				resp.Verdicts = append(resp.Verdicts, v)
				mu.Unlock()
			}
		})
	}
	calls.Wait()
	if ctx.Err() != nil {
		return nil, c.fault(context.Cause(ctx))
	}
	slices.SortFunc(resp.Verdicts, func(a, b *vftv1.Verdict) int {
		return cmp.Or(cmp.Compare(a.GetGuest(), b.GetGuest()), cmp.Compare(a.GetLevel(), b.GetLevel()), cmp.Compare(a.GetNode(), b.GetNode()))
	})
	if err := c.convict(ctx, job.GetSpec().GetId(), e, resp.GetVerdicts()); err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(resp), nil
}

// checksOf lists what is to be read, by the node that does it: each one after
// the other.
func (c *Coordinator) checksOf(e *vftv1.Epoch, boot bool) map[string][]check {
	out := map[string][]check{}
	for _, p := range e.GetParts() {
		reader := "" // of what is not on one node alone
		for _, n := range p.GetNodes() {
			if !c.alive(n) {
				continue
			}
			if reader == "" {
				reader = n
			}
			out[n] = append(out[n], check{part: p, level: fsm.FindLevel(e, fsm.LevelLocal), node: n})
		}
		if targets := c.reachable(); reader == "" && len(targets) > 0 {
			reader = targets[0].node
		}
		for _, l := range e.GetLevels() {
			if !fsm.WholeCopies(l) && reader != "" && fsm.Readable(p, l, c.alive) {
				out[reader] = append(out[reader], check{part: p, level: l, node: reader})
			}
		}
		if boot && reader != "" {
			out[reader] = append(out[reader], check{part: p, node: reader, boot: true})
		}
	}
	return out
}

// carryOut has a node read one part at one level, or restore it.
func (c *Coordinator) carryOut(ctx context.Context, job *vftv1.Job, e *vftv1.Epoch, x check) *vftv1.Verdict {
	v := &vftv1.Verdict{Guest: x.part.GetGuest(), Level: x.level.GetLevel(), Node: x.node, Asked: true}
	req := &vftv1.VerifyPartRequest{Job: job.GetSpec().GetId(), Part: c.source(e, x.part), Level: x.level.GetLevel()}
	if x.boot {
		v.Level, req.Boot = levelBoot, job.GetSpec()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.PartsTimeout, context.DeadlineExceeded)
	defer cancel()
	ctx, release := c.whileAlive(ctx, x.node)
	defer release()
	r, err := c.cfg.Sidecar(c.store.node(x.node).GetAddress()).VerifyPart(ctx, connect.NewRequest(req))
	if err != nil {
		v.Fault = err.Error()
		v.Asked = lostData(err) || x.boot && connect.CodeOf(err) == connect.CodeFailedPrecondition
		return v
	}
	v.Took, v.Bytes, v.Repaired = r.Msg.GetTook(), r.Msg.GetBytes(), r.Msg.GetRepaired()
	return v
}

// lostData says that a node found that something is not there or not what it was.
func lostData(err error) bool {
	code := connect.CodeOf(err)
	return code == connect.CodeDataLoss || code == connect.CodeNotFound
}

// convict records what was found out: levels that cannot give a part back are
// reached anew, and an epoch of which no level can give some part back is
// damaged. When everything can be read again, it is not.
func (c *Coordinator) convict(ctx context.Context, id string, e *vftv1.Epoch, verdicts []*vftv1.Verdict) error {
	readable := map[uint32]bool{}
	bad := map[string][]*vftv1.PartUpdate{} // by level
	unknown := false
	for _, v := range verdicts {
		l := fsm.FindLevel(e, v.GetLevel())
		switch {
		case l == nil: // boot
		case v.GetFault() == "":
			readable[v.GetGuest()] = true
		case !v.GetAsked():
			unknown = true
		case !fsm.WholeCopies(l): // a node's own copy is repaired there, if at all
			bad[v.GetLevel()] = append(bad[v.GetLevel()], &vftv1.PartUpdate{
				Guest: v.GetGuest(), Manifest: e.GetParts()[v.GetGuest()].GetManifest(), Gone: true,
			})
		}
	}
	for level, parts := range bad {
		err := c.change(id, e.GetNumber(), func(e *vftv1.Epoch) error {
			_, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: &vftv1.UpdateLevel{
				Job: id, Epoch: e.GetNumber(), Revision: e.GetRevision(), Level: level, Parts: parts,
			}}})
			return err
		})
		if err != nil {
			return err
		}
	}
	damaged := ""
	for _, p := range e.GetParts() {
		if !readable[p.GetGuest()] {
			damaged = fmt.Sprintf("the part of guest %d cannot be read from any level", p.GetGuest())
		}
		unknown = unknown || slices.ContainsFunc(p.GetNodes(), func(n string) bool { return !c.alive(n) })
	}
	if damaged != "" && unknown {
		return nil // a node that did not answer may have it
	}
	return c.change(id, e.GetNumber(), func(e *vftv1.Epoch) error {
		_, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_SetDamaged{SetDamaged: &vftv1.SetDamaged{
			Job: id, Epoch: e.GetNumber(), Revision: e.GetRevision(), Reason: damaged,
		}}})
		return err
	})
}
