package wrapper

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/zeebo/blake3"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// fakeCluster answers as two coordinators and two sidecars would. Tests play
// the part of what happens in it.
type fakeCluster struct {
	vftv1connect.UnimplementedSidecarServiceHandler
	t *testing.T

	coordinators [2]*httptest.Server
	sidecars     [2]*httptest.Server

	mu       sync.Mutex
	changed  chan struct{}
	leader   int
	job      *vftv1.Job
	events   []*vftv1.Event
	program  *fakeProgram
	saved    *fakeProgram // at the last checkpoint
	blobs    map[string]int
	files    map[uint32][]fakeFile // of guests
	refuse   int                   // FinishJob calls to refuse
	finished *vftv1.Exit
	stops    []bool // StopJob calls: now
	signals  []int32
	renewals int
	drops    int // attached streams to break
	collects int
}

// fakeProgram is mpirun and its streams in guest 0.
type fakeProgram struct {
	out, err         []byte
	outBase, errBase int64 // bytes below were acknowledged
	in               []byte
	inEnd            bool
	takes            int64 // input bytes wanted at most
	exit             *vftv1.AttachExit
}

func (p *fakeProgram) clone() *fakeProgram {
	c := *p
	c.out, c.err, c.in = slices.Clone(p.out), slices.Clone(p.err), slices.Clone(p.in)
	return &c
}

type fakeFile struct {
	name, text string
	link       bool
}

func newFakeCluster(t *testing.T) *fakeCluster {
	f := &fakeCluster{t: t, changed: make(chan struct{}), blobs: map[string]int{}, files: map[uint32][]fakeFile{}}
	start := func(path string, h http.Handler) *httptest.Server {
		mux := http.NewServeMux()
		mux.Handle(path, h)
		s := httptest.NewUnstartedServer(mux)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	for i := range f.coordinators {
		path, h := vftv1connect.NewCoordinatorServiceHandler(&fakeReplica{cluster: f, index: i})
		f.coordinators[i] = start(path, h)
	}
	for i := range f.sidecars {
		path, h := vftv1connect.NewSidecarServiceHandler(&fakeSidecar{fakeCluster: f, node: fmt.Sprintf("node%d", i)})
		f.sidecars[i] = start(path, h)
	}
	return f
}

func (f *fakeCluster) connection() *Connection {
	client := f.coordinators[0].Client() // trusts all of them: httptest has one certificate
	c := &Connection{
		Coordinator: func(a string) vftv1connect.CoordinatorServiceClient {
			return vftv1connect.NewCoordinatorServiceClient(client, "https://"+a)
		},
		Sidecar: func(a string) vftv1connect.SidecarServiceClient {
			return vftv1connect.NewSidecarServiceClient(client, "https://"+a)
		},
	}
	for _, s := range f.coordinators {
		c.Coordinators = append(c.Coordinators, s.Listener.Addr().String())
	}
	return c
}

// locked runs change and wakes everybody who waits.
func (f *fakeCluster) locked(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits for ready, which is called locked.
func (f *fakeCluster) until(what string, ready func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		f.mu.Lock()
		ok, change := ready(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			f.t.Errorf("waited in vain for %s", what)
			return
		}
	}
}

func (f *fakeCluster) event(kind, text string) {
	f.events = append(f.events, &vftv1.Event{Number: uint64(len(f.events) + 1), At: time.Now().UnixNano(), Kind: kind, Text: text})
}

// begin waits for the job and starts the program on node (0 or 1).
func (f *fakeCluster) begin(node int) {
	f.until("a job", func() bool { return f.job != nil })
	f.locked(func() {
		f.program = &fakeProgram{}
		f.place(node)
		f.job.StartedAt = time.Now().UnixNano()
		f.event("booted", "booted 2 guests in 3.1 s")
	})
}

func (f *fakeCluster) place(node int) {
	f.job.Incarnation++
	f.job.Phase = vftv1.JobPhase_JOB_PHASE_RUNNING
	f.job.Guests = nil
	for i := range f.job.GetSpec().GetGuests() {
		f.job.Guests = append(f.job.Guests, &vftv1.Guest{Index: uint32(i), Node: fmt.Sprintf("node%d", (node+i)%2)})
	}
}

func (f *fakeCluster) print(text string) {
	f.locked(func() { f.program.out = append(f.program.out, text...) })
}

func (f *fakeCluster) printErr(text string) {
	f.locked(func() { f.program.err = append(f.program.err, text...) })
}

// shown waits until everything printed on stdout was acknowledged.
func (f *fakeCluster) shown() {
	f.t.Helper()
	f.until("output to be shown", func() bool { return f.program.outBase == int64(len(f.program.out)) })
}

func (f *fakeCluster) exit(code int32) {
	f.locked(func() { f.exitLocked(code, 0) })
}

func (f *fakeCluster) exitLocked(code, signal int32) {
	f.program.exit = &vftv1.AttachExit{Code: code, Signal: signal, StdoutTotal: int64(len(f.program.out)), StderrTotal: int64(len(f.program.err))}
}

// checkpoint commits an epoch.
func (f *fakeCluster) checkpoint() {
	f.locked(func() {
		f.saved = f.program.clone()
		n := uint64(len(f.job.Epochs) + 1)
		f.job.Epochs = append(f.job.Epochs, &vftv1.Epoch{Number: n, Incarnation: f.job.Incarnation, State: vftv1.EpochState_EPOCH_STATE_COMMITTED, EndedAt: time.Now().UnixNano()})
		f.job.NextEpoch = n + 1
		f.event("checkpoint", fmt.Sprintf("checkpoint %d committed in 40 ms", n))
	})
}

// restart goes back to the last checkpoint, on node.
func (f *fakeCluster) restart(node int) {
	f.locked(func() {
		f.program = &fakeProgram{}
		if f.saved != nil {
			f.program = f.saved.clone()
		}
		f.place(node)
		f.job.Restarts++
		f.event("restarted", "restarted from checkpoint")
	})
}

// end waits for FinishJob and ends the job.
func (f *fakeCluster) end() {
	f.until("the program's end to be reported", func() bool { return f.finished != nil })
	f.locked(func() {
		f.job.Phase, f.job.Exit = vftv1.JobPhase_JOB_PHASE_ENDED, f.finished
		f.event("ended", "ended")
	})
}

func (f *fakeCluster) address(node string) string {
	i := 0
	if node == "node1" {
		i = 1
	}
	return f.sidecars[i].Listener.Addr().String()
}

// fakeReplica is one of the coordinators.
type fakeReplica struct {
	vftv1connect.UnimplementedCoordinatorServiceHandler
	cluster *fakeCluster
	index   int
}

// led returns the hint that goes with every answer of a follower. Call locked.
func (r *fakeReplica) led() error {
	f := r.cluster
	if f.leader == r.index {
		return nil
	}
	err := connect.NewError(connect.CodeUnavailable, errors.New("not the leader"))
	if f.leader >= 0 {
		d, derr := connect.NewErrorDetail(&vftv1.LeaderHint{Id: "x", Address: f.coordinators[f.leader].Listener.Addr().String()})
		if derr == nil {
			err.AddDetail(d)
		}
	}
	return err
}

// lead runs act if this replica leads.
func (r *fakeReplica) lead(act func()) error {
	r.cluster.mu.Lock()
	err := r.led()
	r.cluster.mu.Unlock()
	if err == nil {
		r.cluster.locked(act)
	}
	return err
}

func (r *fakeReplica) ListNodes(context.Context, *connect.Request[vftv1.ListNodesRequest]) (*connect.Response[vftv1.ListNodesResponse], error) {
	resp := &vftv1.ListNodesResponse{}
	for i := range r.cluster.sidecars {
		id := fmt.Sprintf("node%d", i)
		resp.Nodes = append(resp.Nodes, &vftv1.Node{Id: id, Address: r.cluster.address(id), Cpus: 2, State: vftv1.NodeState_NODE_STATE_ALIVE, Images: []string{"img"}})
	}
	return connect.NewResponse(resp), r.lead(func() {})
}

func (r *fakeReplica) SubmitJob(_ context.Context, req *connect.Request[vftv1.SubmitJobRequest]) (*connect.Response[vftv1.SubmitJobResponse], error) {
	err := r.lead(func() {
		if r.cluster.job == nil {
			r.cluster.job = &vftv1.Job{Spec: req.Msg.GetSpec(), Phase: vftv1.JobPhase_JOB_PHASE_PENDING, NextEpoch: 1}
			r.cluster.event("submitted", "submitted")
		}
	})
	return connect.NewResponse(&vftv1.SubmitJobResponse{}), err
}

func (r *fakeReplica) GetJob(context.Context, *connect.Request[vftv1.GetJobRequest]) (*connect.Response[vftv1.GetJobResponse], error) {
	resp := &vftv1.GetJobResponse{}
	err := r.lead(func() { resp.Job = proto.CloneOf(r.cluster.job) })
	return connect.NewResponse(resp), err
}

func (r *fakeReplica) WatchJob(ctx context.Context, req *connect.Request[vftv1.WatchJobRequest], stream *connect.ServerStream[vftv1.WatchJobResponse]) error {
	f := r.cluster
	since := req.Msg.GetSince()
	for {
		f.mu.Lock()
		if err := r.led(); err != nil {
			f.mu.Unlock()
			return err
		}
		change := f.changed
		m := &vftv1.WatchJobResponse{Job: proto.CloneOf(f.job), NodeAddresses: map[string]string{}}
		for _, g := range m.GetJob().GetGuests() {
			m.NodeAddresses[g.GetNode()] = f.address(g.GetNode())
		}
		for _, e := range f.events[min(since, uint64(len(f.events))):] {
			m.Job.Events = append(m.Job.Events, proto.CloneOf(e))
		}
		since = uint64(len(f.events))
		f.mu.Unlock()
		if err := stream.Send(m); err != nil || m.GetJob().GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			return err
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *fakeReplica) StopJob(_ context.Context, req *connect.Request[vftv1.StopJobRequest]) (*connect.Response[vftv1.StopJobResponse], error) {
	err := r.lead(func() { r.cluster.stops = append(r.cluster.stops, req.Msg.GetNow()) })
	return connect.NewResponse(&vftv1.StopJobResponse{}), err
}

func (r *fakeReplica) RenewClient(context.Context, *connect.Request[vftv1.RenewClientRequest]) (*connect.Response[vftv1.RenewClientResponse], error) {
	err := r.lead(func() { r.cluster.renewals++ })
	return connect.NewResponse(&vftv1.RenewClientResponse{Lease: int64(time.Second)}), err
}

func (r *fakeReplica) FinishJob(_ context.Context, req *connect.Request[vftv1.FinishJobRequest]) (*connect.Response[vftv1.FinishJobResponse], error) {
	resp := &vftv1.FinishJobResponse{}
	f := r.cluster
	err := r.lead(func() {
		if f.refuse > 0 || req.Msg.GetIncarnation() != f.job.GetIncarnation() {
			f.refuse--
			return
		}
		resp.Accepted, f.finished = true, req.Msg.GetExit()
	})
	return connect.NewResponse(resp), err
}

func (f *fakeCluster) PutBlob(_ context.Context, stream *connect.ClientStream[vftv1.PutBlobRequest]) (*connect.Response[vftv1.PutBlobResponse], error) {
	var blob *vftv1.Blob
	h := blake3.New()
	size := int64(0)
	for stream.Receive() {
		if b := stream.Msg().GetBlob(); b != nil {
			blob = b
		}
		_, _ = h.Write(stream.Msg().GetData())
		size += int64(len(stream.Msg().GetData()))
	}
	if hex.EncodeToString(h.Sum(nil)) != blob.GetDigest() || size != blob.GetSize() {
		return nil, connect.NewError(connect.CodeDataLoss, errors.New("digest"))
	}
	f.locked(func() { f.blobs[blob.GetDigest()]++ })
	return connect.NewResponse(&vftv1.PutBlobResponse{}), stream.Err()
}

func (f *fakeCluster) SignalProgram(_ context.Context, req *connect.Request[vftv1.SignalProgramRequest]) (*connect.Response[vftv1.SignalProgramResponse], error) {
	f.locked(func() { f.signals = append(f.signals, req.Msg.GetSignal()) })
	return connect.NewResponse(&vftv1.SignalProgramResponse{}), nil
}

func (f *fakeCluster) Attach(ctx context.Context, stream *connect.BidiStream[vftv1.AttachRequest, vftv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	f.mu.Lock()
	p, incarnation := f.program, f.job.GetIncarnation()
	f.mu.Unlock()
	if first.GetIncarnation() != incarnation {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("another incarnation"))
	}
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil {
				return
			}
			f.locked(func() {
				if a := m.GetAck(); a != nil {
					p.outBase, p.errBase = max(p.outBase, a.GetStdout()), max(p.errBase, a.GetStderr())
				}
				in := m.GetInput()
				if end := int64(len(p.in)); in != nil && in.GetOffset() <= end {
					fresh := in.GetData()[min(end-in.GetOffset(), int64(len(in.GetData()))):]
					room := max(0, p.takes-end)
					if int64(len(fresh)) <= room {
						p.inEnd = p.inEnd || in.GetEof()
					}
					p.in = append(p.in, fresh[:min(int64(len(fresh)), room)]...)
				}
			})
		}
	}()
	out, errs := first.GetStdoutOffset(), first.GetStderrOffset()
	wanted := int64(-1)
	for {
		f.mu.Lock()
		change := f.changed
		if f.drops > 0 {
			f.drops--
			f.mu.Unlock()
			return connect.NewError(connect.CodeUnavailable, errors.New("broken"))
		}
		if f.program != p || f.job.GetIncarnation() != incarnation {
			f.mu.Unlock()
			return connect.NewError(connect.CodeUnavailable, errors.New("gone"))
		}
		var send []*vftv1.AttachResponse
		add := func(kind vftv1.StreamKind, at *int64, base int64, data []byte) {
			*at = max(*at, base)
			for *at < int64(len(data)) {
				n := min(int64(len(data))-*at, 1000)
				send = append(send, &vftv1.AttachResponse{Message: &vftv1.AttachResponse_Output{Output: &vftv1.AttachOutput{
					Stream: kind, Offset: *at, Data: slices.Clone(data[*at : *at+n]),
				}}})
				*at += n
			}
		}
		add(vftv1.StreamKind_STREAM_KIND_STDOUT, &out, p.outBase, p.out)
		add(vftv1.StreamKind_STREAM_KIND_STDERR, &errs, p.errBase, p.err)
		if at := int64(len(p.in)); p.takes > 0 && at != wanted && !p.inEnd {
			wanted = at
			send = append(send, &vftv1.AttachResponse{Message: &vftv1.AttachResponse_Want{Want: &vftv1.AttachWant{Offset: at}}})
		}
		exit := p.exit
		f.mu.Unlock()
		if exit != nil {
			send = append(send, &vftv1.AttachResponse{Message: &vftv1.AttachResponse_Exit{Exit: exit}})
		}
		for _, m := range send {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if exit != nil {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fakeSidecar is one of the sidecars.
type fakeSidecar struct {
	*fakeCluster
	node string
}

// Collect gives the files of a guest that is here.
func (s *fakeSidecar) Collect(_ context.Context, req *connect.Request[vftv1.CollectRequest], stream *connect.ServerStream[vftv1.CollectResponse]) error {
	f := s.fakeCluster
	f.mu.Lock()
	if at := f.job.GetGuests()[req.Msg.GetGuest()].GetNode(); at != s.node {
		f.mu.Unlock()
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("guest %d is not on %s", req.Msg.GetGuest(), s.node))
	}
	files := f.files[req.Msg.GetGuest()]
	dir := strings.TrimPrefix(f.job.GetSpec().GetDir(), "/")
	f.mu.Unlock()
	f.locked(func() { f.collects++ })
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, x := range files {
		h := &tar.Header{Name: dir + "/" + x.name, Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(x.text)), ModTime: time.Unix(1e9, 0)}
		if x.link {
			h = &tar.Header{Name: dir + "/" + x.name, Typeflag: tar.TypeSymlink, Linkname: x.text}
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if !x.link {
			if _, err := io.WriteString(w, x.text); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	for data := buf.Bytes(); len(data) > 0; {
		n := min(len(data), 700)
		if err := stream.Send(&vftv1.CollectResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return stream.Send(&vftv1.CollectResponse{Token: "t"})
}
