package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// fakeSidecar models one node: guests with incarnations, a network that is
// held or not, parts. Tests script it by hooks that run at the start of a call.
type fakeSidecar struct {
	vftv1connect.SidecarServiceClient // streams: not used by the coordinator

	id      string
	node    *vftv1.Node
	peers   map[string]*fakeSidecar
	outside *fakeOutside

	mu       sync.Mutex
	down     bool                   // partitioned or dead: calls hang, no heartbeats
	fence    map[string]uint64      // newest incarnation seen
	guests   map[string]*fakeGuest  // job/index
	held     map[string]uint64      // job → epoch
	poisoned map[string]bool        // job/epoch released by time-out
	aborted  map[string]bool        // job/epoch
	parts    map[string]*vftv1.Part // job/epoch/guest: whole copies here
	shards   map[string]*vftv1.Part // the same and the level
	started  map[string]int         // job/incarnation → StartProgram that did something
	restored map[string]uint64      // job/index → epoch it was loaded from
	sources  []*vftv1.PartSource    // of the last restore
	hooks    map[string]hook        // by call
	calls    []string
	signals  []int32
	cut      []string // peers it says it cannot reach
	onSignal func(job string, incarnation uint64)
	forgot   map[string]bool
	coming   map[string]bool // guests that were loaded and do not run yet
	lazy     bool            // guests are restored without their memory, see fill
	faults   []string        // against the invariants
}

type hook func(ctx context.Context, job string) error

type fakeGuest struct {
	job         string
	index       uint32
	incarnation uint64
	state       vftv1.GuestState
	detail      string
	dataLost    bool
	filling     bool
}

func newFake(id, domain string) *fakeSidecar {
	return &fakeSidecar{
		id: id,
		node: &vftv1.Node{
			Id: id, Address: id + ":1", FailureDomain: domain, Cpus: 4, MemoryMib: 8192, Session: 1,
			Images: []string{"img"}, Accelerator: "kvm", Levels: []string{"rs", "s3", "dir:/d"},
		},
		fence: map[string]uint64{}, guests: map[string]*fakeGuest{}, held: map[string]uint64{}, poisoned: map[string]bool{},
		aborted: map[string]bool{}, parts: map[string]*vftv1.Part{}, shards: map[string]*vftv1.Part{}, started: map[string]int{},
		restored: map[string]uint64{}, hooks: map[string]hook{}, forgot: map[string]bool{}, coming: map[string]bool{},
	}
}

// enter records a call, runs its hook, and refuses older incarnations.
func (f *fakeSidecar) enter(ctx context.Context, call string, c *vftv1.Context) error {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf("%s %d", call, c.GetIncarnation()))
	down, h := f.down, f.hooks[call]
	f.mu.Unlock()
	if down {
		<-ctx.Done()
		return connect.NewError(connect.CodeUnavailable, errors.New("no route"))
	}
	if h != nil {
		if err := h(ctx, c.GetJob()); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return connect.NewError(connect.CodeUnavailable, errors.New("no route"))
	}
	if call != "KillGuests" && call != "AbortEpoch" {
		if c.GetIncarnation() < f.fence[c.GetJob()] {
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("incarnation %d after %d", c.GetIncarnation(), f.fence[c.GetJob()]))
		}
		f.raise(c.GetJob(), c.GetIncarnation())
	}
	return nil
}

func (f *fakeSidecar) raise(job string, incarnation uint64) {
	if incarnation <= f.fence[job] {
		return
	}
	f.fence[job] = incarnation
	for k, g := range f.guests {
		if g.job == job && g.incarnation < incarnation {
			delete(f.guests, k)
		}
	}
	delete(f.held, job)
}

func key(parts ...any) string {
	s := ""
	for _, p := range parts {
		s += fmt.Sprint("/", p)
	}
	return s
}

func (f *fakeSidecar) mine(members []*vftv1.Member) []uint32 {
	var out []uint32
	for _, m := range members {
		if m.GetNode() == f.id {
			out = append(out, m.GetGuest())
		}
	}
	return out
}

func (f *fakeSidecar) guestsOf(job string) []uint32 {
	var out []uint32
	for _, g := range f.guests {
		if g.job == job {
			out = append(out, g.index)
		}
	}
	slices.Sort(out)
	return out
}

func (f *fakeSidecar) setState(job string, s vftv1.GuestState) {
	for _, g := range f.guests {
		if g.job == job {
			g.state = s
		}
	}
}

func (f *fakeSidecar) BootGuests(ctx context.Context, r *connect.Request[vftv1.BootGuestsRequest]) (*connect.Response[vftv1.BootGuestsResponse], error) {
	if err := f.enter(ctx, "BootGuests", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job := r.Msg.GetContext().GetJob()
	for _, g := range f.mine(r.Msg.GetMembers()) {
		if f.guests[key(job, g)] == nil {
			f.guests[key(job, g)] = &fakeGuest{job: job, index: g, incarnation: r.Msg.GetContext().GetIncarnation(), state: vftv1.GuestState_GUEST_STATE_READY}
		}
	}
	return connect.NewResponse(&vftv1.BootGuestsResponse{Boot: 1000, Stage: 10}), nil
}

func (f *fakeSidecar) StartProgram(ctx context.Context, r *connect.Request[vftv1.StartProgramRequest]) (*connect.Response[vftv1.StartProgramResponse], error) {
	if err := f.enter(ctx, "StartProgram", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := key(r.Msg.GetContext().GetJob(), r.Msg.GetContext().GetIncarnation())
	if f.started[k] == 0 {
		f.started[k] = 1
	}
	f.setState(r.Msg.GetContext().GetJob(), vftv1.GuestState_GUEST_STATE_RUNNING)
	return connect.NewResponse(&vftv1.StartProgramResponse{}), nil
}

func (f *fakeSidecar) RestoreGuests(ctx context.Context, r *connect.Request[vftv1.RestoreGuestsRequest]) (*connect.Response[vftv1.RestoreGuestsResponse], error) {
	if err := f.enter(ctx, "RestoreGuests", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job := r.Msg.GetContext().GetJob()
	f.sources = r.Msg.GetParts()
	sources := map[uint32]*vftv1.PartSource{}
	for _, p := range r.Msg.GetParts() {
		sources[p.GetGuest()] = p
	}
	for _, g := range f.mine(r.Msg.GetMembers()) {
		src := sources[g]
		if src == nil || len(src.GetNodes())+len(src.GetLevels()) == 0 {
			return nil, connect.NewError(connect.CodeDataLoss, fmt.Errorf("no source of part %d", g))
		}
		if f.guests[key(job, g)] == nil {
			f.guests[key(job, g)] = &fakeGuest{job: job, index: g, incarnation: r.Msg.GetContext().GetIncarnation(), state: vftv1.GuestState_GUEST_STATE_PAUSED, filling: f.lazy}
			f.restored[key(job, g)] = src.GetEpoch()
		}
	}
	return connect.NewResponse(&vftv1.RestoreGuestsResponse{Fetch: 5, Load: 7}), nil
}

func (f *fakeSidecar) ContinueGuests(ctx context.Context, r *connect.Request[vftv1.ContinueGuestsRequest]) (*connect.Response[vftv1.ContinueGuestsResponse], error) {
	if err := f.enter(ctx, "ContinueGuests", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setState(r.Msg.GetContext().GetJob(), vftv1.GuestState_GUEST_STATE_RUNNING)
	resp := &vftv1.ContinueGuestsResponse{}
	for _, g := range f.guests {
		if g.job == r.Msg.GetContext().GetJob() && g.filling {
			resp.Filling = append(resp.Filling, g.index)
		}
	}
	return connect.NewResponse(resp), nil
}

func (f *fakeSidecar) KillGuests(ctx context.Context, r *connect.Request[vftv1.KillGuestsRequest]) (*connect.Response[vftv1.KillGuestsResponse], error) {
	if err := f.enter(ctx, "KillGuests", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.raise(r.Msg.GetContext().GetJob(), r.Msg.GetContext().GetIncarnation()+1)
	if r.Msg.GetForget() {
		f.forgot[r.Msg.GetContext().GetJob()] = true
	}
	return connect.NewResponse(&vftv1.KillGuestsResponse{}), nil
}

func (f *fakeSidecar) Prepare(ctx context.Context, r *connect.Request[vftv1.PrepareRequest]) (*connect.Response[vftv1.PrepareResponse], error) {
	if err := f.enter(ctx, "Prepare", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.guests {
		if g.filling {
			f.faults = append(f.faults, fmt.Sprintf("checkpoint of guest %d, which lacks memory", g.index))
		}
	}
	return connect.NewResponse(&vftv1.PrepareResponse{}), nil
}

func (f *fakeSidecar) Hold(ctx context.Context, r *connect.Request[vftv1.HoldRequest]) (*connect.Response[vftv1.HoldResponse], error) {
	if err := f.enter(ctx, "Hold", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, epoch := r.Msg.GetContext().GetJob(), r.Msg.GetEpoch()
	if f.aborted[key(job, epoch)] {
		return nil, connect.NewError(connect.CodeAborted, errors.New("epoch aborted"))
	}
	f.held[job] = epoch
	return connect.NewResponse(&vftv1.HoldResponse{Pairs: []*vftv1.PairCount{{Source: 0, Destination: 1, Sent: 7, Delivered: 7}}}), nil
}

func (f *fakeSidecar) Cut(ctx context.Context, r *connect.Request[vftv1.CutRequest]) (*connect.Response[vftv1.CutResponse], error) {
	if err := f.enter(ctx, "Cut", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, epoch := r.Msg.GetContext().GetJob(), r.Msg.GetEpoch()
	if f.held[job] != epoch {
		return nil, connect.NewError(connect.CodeAborted, errors.New("not held"))
	}
	resp := &vftv1.CutResponse{}
	for _, g := range f.guestsOf(job) {
		k := key(job, epoch, g)
		p := &vftv1.Part{Guest: g, Manifest: "m" + k, Size: 1 << 20, Pause: 4e6, CutAt: time.Now().UnixNano(), Engine: vftv1.Engine_ENGINE_BACKGROUND}
		f.parts[k] = p
		resp.Parts = append(resp.Parts, &vftv1.Part{Guest: p.GetGuest(), Pause: p.GetPause(), CutAt: p.GetCutAt()})
	}
	return connect.NewResponse(resp), nil
}

func (f *fakeSidecar) Release(ctx context.Context, r *connect.Request[vftv1.ReleaseRequest]) (*connect.Response[vftv1.ReleaseResponse], error) {
	if err := f.enter(ctx, "Release", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job := r.Msg.GetContext().GetJob()
	ordered := f.held[job] == r.Msg.GetEpoch() && !f.poisoned[key(job, r.Msg.GetEpoch())]
	delete(f.held, job)
	return connect.NewResponse(&vftv1.ReleaseResponse{ByOrder: ordered, Hold: 9e6}), nil
}

func (f *fakeSidecar) WaitParts(ctx context.Context, r *connect.Request[vftv1.WaitPartsRequest]) (*connect.Response[vftv1.WaitPartsResponse], error) {
	if err := f.enter(ctx, "WaitParts", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, epoch := r.Msg.GetContext().GetJob(), r.Msg.GetEpoch()
	resp := &vftv1.WaitPartsResponse{}
	for _, g := range f.guestsOf(job) {
		p := f.parts[key(job, epoch, g)]
		if p == nil {
			return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no part of guest %d", g))
		}
		p = proto.CloneOf(p)
		p.Nodes = []string{f.id}
		resp.Parts = append(resp.Parts, p)
	}
	return connect.NewResponse(resp), nil
}

// reach is what happens to a call on no incarnation's behalf.
func (f *fakeSidecar) reach(ctx context.Context, call, job string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call+" "+job)
	down, h := f.down, f.hooks[call]
	f.mu.Unlock()
	if down {
		<-ctx.Done()
		return connect.NewError(connect.CodeUnavailable, errors.New("no route"))
	}
	if h != nil {
		return h(ctx, job)
	}
	return nil
}

func (f *fakeSidecar) AbortEpoch(ctx context.Context, r *connect.Request[vftv1.AbortEpochRequest]) (*connect.Response[vftv1.AbortEpochResponse], error) {
	if err := f.enter(ctx, "AbortEpoch", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, epoch := r.Msg.GetContext().GetJob(), r.Msg.GetEpoch()
	f.aborted[key(job, epoch)] = true
	if f.held[job] == epoch {
		delete(f.held, job)
	}
	f.drop(job, epoch)
	return connect.NewResponse(&vftv1.AbortEpochResponse{}), nil
}

func (f *fakeSidecar) drop(job string, epoch uint64) {
	for _, m := range []map[string]*vftv1.Part{f.parts, f.shards} {
		for k := range m {
			if strings.HasPrefix(k, key(job, epoch)+"/") {
				delete(m, k)
			}
		}
	}
}

func (f *fakeSidecar) DeleteParts(ctx context.Context, r *connect.Request[vftv1.DeletePartsRequest]) (*connect.Response[vftv1.DeletePartsResponse], error) {
	f.mu.Lock()
	down := f.down
	f.calls = append(f.calls, fmt.Sprintf("DeleteParts %v", r.Msg.GetEpochs()))
	f.mu.Unlock()
	if down {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range r.Msg.GetEpochs() {
		f.drop(r.Msg.GetJob(), e)
	}
	if r.Msg.GetAll() {
		for e := range uint64(100) {
			if !slices.Contains(r.Msg.GetKeep(), e) {
				f.drop(r.Msg.GetJob(), e)
			}
		}
	}
	return connect.NewResponse(&vftv1.DeletePartsResponse{}), nil
}

func (f *fakeSidecar) SignalProgram(_ context.Context, r *connect.Request[vftv1.SignalProgramRequest]) (*connect.Response[vftv1.SignalProgramResponse], error) {
	f.mu.Lock()
	f.signals = append(f.signals, r.Msg.GetSignal())
	then := f.onSignal
	f.mu.Unlock()
	if then != nil {
		then(r.Msg.GetJob(), r.Msg.GetIncarnation())
	}
	return connect.NewResponse(&vftv1.SignalProgramResponse{}), nil
}

// heartbeat builds the report, or nil when the node is down.
func (f *fakeSidecar) heartbeat() *vftv1.HeartbeatRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil
	}
	req := &vftv1.HeartbeatRequest{Node: f.node, Unreachable: f.cut}
	for _, k := range slices.Sorted(maps.Keys(f.guests)) {
		g := f.guests[k]
		req.Guests = append(req.Guests, &vftv1.GuestStatus{Job: g.job, Incarnation: g.incarnation, Index: g.index, State: g.state, Detail: g.detail, DataLost: g.dataLost, Filling: g.filling, Fill: &vftv1.Fill{Demanded: 3, Wait: 1e6}})
	}
	return req
}

// told obeys a heartbeat's answer: guests of older incarnations and of ended jobs die.
func (f *fakeSidecar) told(resp *vftv1.HeartbeatResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range resp.GetJobs() {
		f.raise(w.GetJob(), w.GetIncarnation())
		if w.GetEnded() {
			f.raise(w.GetJob(), w.GetIncarnation()+1)
			f.forgot[w.GetJob()] = true
		}
	}
}

func (f *fakeSidecar) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fakeSidecar) hook(call string, h hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h == nil {
		delete(f.hooks, call)
		return
	}
	f.hooks[call] = h
}

// fill gives the guests here all of their memory.
func (f *fakeSidecar) fill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.guests {
		g.filling = false
	}
}

func (f *fakeSidecar) do(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}
