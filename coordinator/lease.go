package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// missingBeats is how many heartbeats of the same sidecar may lack a guest
// that should be there: one may have been on its way when the guest came.
const missingBeats = 3

type guestKey struct {
	job         string
	incarnation uint64
	index       uint32
}

// nodeView is what the leader saw of a node in its term. It is in memory only.
type nodeView struct {
	seen    time.Time
	guests  map[guestKey]*vftv1.GuestStatus
	missing map[guestKey]int
	cut     map[string]time.Time // peers that it cannot reach, since when
}

// leases keeps the heartbeats of nodes and clients during one term. Whoever
// has not been seen in this term yet counts as seen when it began.
type leases struct {
	mu      sync.Mutex
	began   time.Time
	nodes   map[string]*nodeView
	clients map[string]time.Time
}

func newLeases(now time.Time) *leases {
	return &leases{began: now, nodes: map[string]*nodeView{}, clients: map[string]time.Time{}}
}

// seen is when the node's last heartbeat came.
func (l *leases) seen(node string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.nodes[node]; v != nil {
		return v.seen
	}
	return l.began
}

// beat records a heartbeat and returns the jobs whose controllers should look:
// those that it shows to be in trouble, and those whose guests may have all of
// their memory by now. wanted are the jobs with guests placed on the node.
func (l *leases) beat(now time.Time, node string, req *vftv1.HeartbeatRequest, restarted bool, wanted []*vftv1.Job) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.nodes[node]
	v := &nodeView{seen: now, guests: map[guestKey]*vftv1.GuestStatus{}, missing: map[guestKey]int{}, cut: map[string]time.Time{}}
	l.nodes[node] = v
	for _, peer := range req.GetUnreachable() {
		v.cut[peer] = now
		if old != nil && !old.cut[peer].IsZero() {
			v.cut[peer] = old.cut[peer]
		}
	}
	for _, g := range req.GetGuests() {
		v.guests[guestKey{g.GetJob(), g.GetIncarnation(), g.GetIndex()}] = g
	}
	var news []string
	for _, j := range wanted {
		bad := len(v.cut) > 0
		filled := false
		for _, g := range j.GetGuests() {
			if g.GetNode() != node {
				continue
			}
			k := guestKey{j.GetSpec().GetId(), j.GetIncarnation(), g.GetIndex()}
			if st := v.guests[k]; st != nil {
				bad = bad || st.GetState() == vftv1.GuestState_GUEST_STATE_DEAD
				filled = filled || j.GetFilling() && !st.GetFilling() && (old == nil || old.guests[k] == nil || old.guests[k].GetFilling())
				continue
			}
			if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING {
				continue
			}
			if old != nil {
				v.missing[k] = old.missing[k]
			}
			v.missing[k]++
			if restarted {
				v.missing[k] = missingBeats
			}
			bad = bad || v.missing[k] >= missingBeats
		}
		if bad || filled {
			news = append(news, j.GetSpec().GetId())
		}
	}
	return news
}

// unfilled returns the guests of a job that do not have all of their memory, or
// have not been heard of in this term, and how the memory of all came.
func (l *leases) unfilled(j *vftv1.Job) (guests []uint32, figures map[string]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	figures = map[string]int64{}
	for _, g := range j.GetGuests() {
		var st *vftv1.GuestStatus
		if v := l.nodes[g.GetNode()]; v != nil {
			st = v.guests[guestKey{j.GetSpec().GetId(), j.GetIncarnation(), g.GetIndex()}]
		}
		if st == nil || st.GetFilling() {
			guests = append(guests, g.GetIndex())
		}
		f := st.GetFill()
		figures["fill"] = max(figures["fill"], f.GetTook())
		figures["wait"] = max(figures["wait"], f.GetWait())
		figures["demanded"] += f.GetDemanded()
		figures["ahead"] += f.GetAhead()
		figures["background"] += f.GetBackground()
	}
	return guests, figures
}

// lostGuest says why a guest must be given up, or returns "". With dataLost it
// died because something of its epoch could not be had.
func (l *leases) lostGuest(j *vftv1.Job, g *vftv1.Guest) (why string, dataLost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.nodes[g.GetNode()]
	if v == nil {
		return "", false
	}
	k := guestKey{j.GetSpec().GetId(), j.GetIncarnation(), g.GetIndex()}
	if st := v.guests[k]; st.GetState() == vftv1.GuestState_GUEST_STATE_DEAD {
		why = "died"
		if st.GetDetail() != "" {
			why += ": " + st.GetDetail()
		}
		return why, st.GetDataLost()
	}
	if v.missing[k] >= missingBeats {
		return "is gone (its sidecar started anew)", false
	}
	return "", false
}

// cutOff returns two of the nodes between which no frame has passed for so
// long, and since when; the second is the one to leave: more nodes of the job
// say that they cannot reach it, or that it cannot reach them.
func (l *leases) cutOff(nodes []string, now time.Time, long time.Duration) (stay, leave string, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	complaints := map[string]int{}
	for _, a := range nodes {
		v := l.nodes[a]
		if v == nil {
			continue
		}
		for _, b := range nodes {
			if t, ok := v.cut[b]; !ok || a == b || now.Sub(t) < long {
				continue
			}
			complaints[a]++
			complaints[b]++
			if leave == "" {
				stay, leave, since = a, b, v.cut[b]
			}
		}
	}
	if complaints[stay] > complaints[leave] {
		stay, leave = leave, stay
	}
	return stay, leave, since
}

// renewClient renews the lease of a job's client.
func (l *leases) renewClient(job string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[job] = now
}

// clientSeen is when the client was heard of. One that this leader has not
// heard of yet gets a whole lease from now on: the job, or the leader, is new.
func (l *leases) clientSeen(job string, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.clients[job]; ok {
		return t
	}
	l.clients[job] = now
	return now
}

// forget drops what is no longer in the state.
func (l *leases) forget(job func(string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.clients {
		if !job(id) {
			delete(l.clients, id)
		}
	}
}

// heartbeat takes a node's report and answers with the leader's view.
func (t *term) heartbeat(ctx context.Context, req *vftv1.HeartbeatRequest) (*vftv1.HeartbeatResponse, error) {
	n := req.GetNode()
	now := t.c.cfg.Now()
	old := t.c.store.node(n.GetId())
	restarted := old != nil && old.GetSession() != n.GetSession()
	if !sameNode(old, n) {
		if _, err := t.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_PutNode{PutNode: &vftv1.PutNode{Node: n}}}); err != nil {
			return nil, err
		}
		if old == nil || old.GetState() == vftv1.NodeState_NODE_STATE_LOST || restarted {
			t.c.log.Info("node is there", "node", n.GetId(), "address", n.GetAddress(), "session", n.GetSession())
		}
		if was, is := old.GetHealth().GetState(), n.GetHealth().GetState(); was != is {
			t.c.log.Info("node health", "node", n.GetId(), "from", fsm.HealthWord(was), "to", fsm.HealthWord(is), "confidence", n.GetHealth().GetConfidence())
		}
	}
	resp := &vftv1.HeartbeatResponse{Lease: int64(t.c.cfg.Lease), Applied: t.c.store.applied(), Expelled: t.c.store.expelled()}
	if replicas, err := t.c.replicas(); err == nil {
		for _, r := range replicas {
			resp.Coordinators = append(resp.Coordinators, r.GetAddress())
		}
	}
	var placed []*vftv1.Job
	named := map[string]bool{}
	for _, j := range t.c.store.jobs() {
		if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED && placedOn(j, n.GetId()) {
			placed = append(placed, j)
			named[j.GetSpec().GetId()] = true
			w := wantedJob(j.GetSpec().GetId(), j)
			w.Gateway = gatewayOn(j, n.GetId())
			resp.Jobs = append(resp.Jobs, w)
		}
	}
	for _, g := range req.GetGuests() {
		if !named[g.GetJob()] {
			named[g.GetJob()] = true
			resp.Jobs = append(resp.Jobs, wantedJob(g.GetJob(), t.c.store.job(g.GetJob())))
		}
	}
	for _, id := range t.leases.beat(now, n.GetId(), req, restarted, placed) {
		t.wake.notify(id)
	}
	return resp, nil
}

func wantedJob(id string, j *vftv1.Job) *vftv1.WantedJob {
	return &vftv1.WantedJob{
		Job: id, Incarnation: j.GetIncarnation(),
		Ended: j == nil || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED,
	}
}

func placedOn(j *vftv1.Job, node string) bool {
	return slices.ContainsFunc(j.GetGuests(), func(g *vftv1.Guest) bool { return g.GetNode() == node })
}

// sameNode says that a heartbeat brings nothing new about a node.
func sameNode(old, n *vftv1.Node) bool {
	if old == nil || old.GetState() != vftv1.NodeState_NODE_STATE_ALIVE {
		return false
	}
	m := proto.CloneOf(n)
	m.State, m.Since, m.Drained = old.GetState(), old.GetSince(), old.GetDrained()
	return proto.Equal(old, m)
}

// watchLeases judges nodes and clients that went silent.
func (t *term) watchLeases(ctx context.Context) error {
	for {
		if err := sleep(ctx, t.c.cfg.Lease/10); err != nil {
			return nil
		}
		now := t.c.cfg.Now()
		for _, n := range t.c.store.nodes() {
			silent := now.Sub(t.leases.seen(n.GetId()))
			if n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE || silent <= t.c.cfg.Lease {
				continue
			}
			_, err := t.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_LoseNode{LoseNode: &vftv1.LoseNode{
				Node: n.GetId(), Session: n.GetSession(), Since: n.GetSince(), Silent: int64(silent),
			}}})
			switch {
			case err == nil:
				t.c.log.Warn("node lost", "node", n.GetId(), "silent", silent)
			case !errors.Is(err, fsm.ErrStale):
				t.c.log.Warn("could not record a lost node", "node", n.GetId(), "err", err)
			}
		}
		for _, j := range t.c.store.jobs() {
			id := j.GetSpec().GetId()
			if !j.GetSpec().GetClientBound() || j.GetStopRequested() || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
				continue
			}
			if gone := now.Sub(t.leases.clientSeen(id, now)); gone > t.c.cfg.ClientLease {
				t.c.log.Warn("client gone", "job", id, "silent", gone)
				reason := fmt.Sprintf("its client has not been heard of for %s", gone.Round(time.Second))
				_, err := t.c.apply(ctx, requestStop(id, reason, vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE, 1, true))
				if err != nil {
					t.c.log.Warn("could not stop a job without client", "job", id, "err", err)
				}
			}
		}
		t.leases.forget(func(id string) bool { return t.c.store.job(id) != nil })
	}
}

func requestStop(job, reason string, cause vftv1.ExitCause, code int32, now bool) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_RequestStop{RequestStop: &vftv1.RequestStop{
		Job: job, Reason: reason, Now: now,
		Exit: &vftv1.Exit{Cause: cause, Code: code, Message: reason},
	}}}
}
