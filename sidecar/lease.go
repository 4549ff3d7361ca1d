package sidecar

import (
	"context"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// A node that cannot renew its lease must assume that its guests are being
// restored elsewhere. It stops them before the leader may act: the leader
// waits a whole lease from when it received the last renewal, the node only
// this share of it from when it sent that renewal. Both measure durations,
// not times of day.
const (
	suspendNumerator   = 4
	suspendDenominator = 5
)

// heartbeatNow sends the next heartbeat without waiting for its turn.
func (s *Sidecar) heartbeatNow() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// renewal is the outcome of one heartbeat.
type renewal struct {
	sent time.Time
	resp *vftv1.HeartbeatResponse
	err  error
}

// keepLease renews until ctx ends. A renewal that hangs does not delay the
// decision to stop the guests.
func (s *Sidecar) keepLease(ctx context.Context) error {
	answers := make(chan renewal, 1)
	calls := newScope(ctx)
	defer calls.end()
	lease := s.cfg.Lease
	renewed := time.Now()
	inFlight := false
	again := false
	next := time.NewTimer(0)
	defer next.Stop()
	doubt := time.NewTimer(lease * suspendNumerator / suspendDenominator)
	defer doubt.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
			if inFlight {
				again = true
				continue
			}
			next.Reset(0)
		case <-next.C:
			if inFlight {
				continue
			}
			inFlight = true
			req := s.status()
			calls.run(func(ctx context.Context) {
				cctx, cancel := context.WithTimeout(ctx, lease/2)
				defer cancel()
				r := renewal{sent: time.Now()}
				r.resp, r.err = s.cfg.Leader.Heartbeat(cctx, req)
				answers <- r
			})
		case r := <-answers:
			inFlight = false
			wait := s.cfg.Heartbeat
			if again {
				wait, again = 0, false
			}
			next.Reset(wait)
			if r.err != nil {
				s.log.Warn("renewing the lease failed", "err", r.err, "since", time.Since(renewed).Round(time.Millisecond))
				continue
			}
			if l := time.Duration(r.resp.GetLease()); l > 0 {
				lease = l
			}
			renewed = r.sent
			if expelled := r.resp.GetExpelled(); len(expelled) > 0 && s.cfg.Refuse != nil {
				s.cfg.Refuse(expelled)
			}
			doubt.Reset(time.Until(renewed.Add(lease * suspendNumerator / suspendDenominator)))
			s.obey(r.resp)
			s.resume(ctx)
		case <-doubt.C:
			s.suspend(ctx, time.Since(renewed))
			doubt.Reset(s.cfg.Heartbeat) // what started meanwhile is stopped too
		}
	}
}

// status is what the node says of itself.
func (s *Sidecar) status() *vftv1.HeartbeatRequest {
	req := &vftv1.HeartbeatRequest{Node: s.describe(), Unreachable: s.net.PeersDown()}
	for _, inc := range s.incarnations() {
		for _, g := range inc.allAndArrived() {
			st := &vftv1.GuestStatus{Job: inc.job, Incarnation: inc.number, Index: g.index}
			st.State, st.Detail = g.get()
			st.DataLost = g.dataLost()
			st.Filling, st.Fill = g.filling()
			req.Guests = append(req.Guests, st)
		}
	}
	return req
}

// obey ends what the leader says is over.
func (s *Sidecar) obey(resp *vftv1.HeartbeatResponse) {
	wanted := map[string]*vftv1.WantedJob{}
	for _, w := range resp.GetJobs() {
		wanted[w.GetJob()] = w
	}
	for _, inc := range s.incarnations() {
		w := wanted[inc.job]
		inc.mu.Lock()
		newer := inc.applied > resp.GetApplied() // decided after this answer's view
		inc.mu.Unlock()
		switch {
		case w == nil || newer:
		case w.GetEnded():
			s.log.Info("ending guests of a job that is over", "job", inc.job)
			inc.close()
			s.life.run(func(ctx context.Context) {
				s.killUpTo(inc.job, inc.number)
				if err := s.forget(inc.job); err != nil {
					s.log.Error("forgetting a job", "job", inc.job, "err", err)
				}
			})
		case w.GetIncarnation() > inc.number:
			s.log.Warn("ending guests of an old incarnation", "job", inc.job, "incarnation", inc.number, "current", w.GetIncarnation())
			inc.close() // at once: the lease is about to be taken for renewed
			s.life.run(func(context.Context) { s.killUpTo(inc.job, w.GetIncarnation()-1) })
		case w.GetIncarnation() == inc.number:
			inc.setGateway(w.GetGateway())
		}
	}
}

// suspend stops all guests and holds their frames; it may be called again.
func (s *Sidecar) suspend(ctx context.Context, since time.Duration) {
	if !s.suspended.Swap(true) {
		s.log.Error("the lease could not be renewed; guests stand still until it is", "since", since.Round(time.Millisecond))
	}
	for _, inc := range s.incarnations() {
		inc.setGateway(nil) // another node may be told to open its ports
		if network := inc.network(); network != nil {
			network.Suspend("the lease is in doubt")
		}
		for _, g := range inc.all() {
			if steering := g.follows(); steering != nil {
				s.life.run(func(context.Context) { steering.follow(ctx) })
			}
		}
	}
}

// resume lets the guests that are still current run again.
func (s *Sidecar) resume(ctx context.Context) {
	if !s.suspended.Swap(false) {
		return
	}
	s.log.Info("the lease holds; guests go on")
	for _, inc := range s.incarnations() {
		if network := inc.network(); network != nil {
			network.Resume()
		}
		if !inc.runs() {
			continue // restored guests wait for the leader
		}
		for _, g := range inc.all() {
			if steering := g.follows(); steering != nil {
				s.life.run(func(context.Context) { steering.follow(ctx) })
			}
		}
	}
}

// runs says whether the incarnation's guests may run, as far as the leader has
// a say in it: those that boot do, those that are restored wait for all others.
func (inc *incarnation) runs() bool {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	return (inc.phase == phaseBooting || inc.phase == phaseRunning) && !inc.ended
}
