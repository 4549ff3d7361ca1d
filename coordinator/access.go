package coordinator

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/internal/access"
)

// Access is who may call what of CoordinatorService (docs/CLUSTER.md).
func (c *Coordinator) Access() access.Table {
	everybody := access.Only(access.Node, access.User, access.Admin)
	people := access.Only(access.User, access.Admin)
	admins := access.Only(access.Admin)
	owner := c.ownerOf
	return access.Table{
		"Status":         everybody,
		"ListNodes":      everybody,
		"ListScores":     everybody,
		"ListJobs":       people,
		"SubmitJob":      people,
		"ImportEpoch":    c.mayImport,
		"AdmitExport":    access.Only(access.Node), // for somebody who is named
		"AdmitImport":    access.Only(access.Node), // likewise
		"GetJob":         owner,
		"WatchJob":       owner,
		"StopJob":        owner,
		"RestartJob":     owner,
		"FinishJob":      owner,
		"RenewClient":    owner,
		"TakeCheckpoint": owner,
		"DeleteEpoch":    owner,
		"PinEpoch":       owner,
		"VerifyEpoch":    owner,
		"ResumeJob":      owner,
		"SuspendJob":     owner,
		"ContinueJob":    owner,
		"MigrateGuest":   owner,
		"PublishPort":    owner,
		"CollectGarbage": admins,
		"DrainNode":      admins,
		"AddReplica":     c.mayAdd,
		"ExpelNode":      admins,
		"CreateToken":    admins,
		"Heartbeat":      ownHeartbeat,
	}
}

// ownerOf lets in the owner of the job that the request's field id names, or
// begins to name, and admins. It completes the id.
func (c *Coordinator) ownerOf(ctx context.Context, who access.Identity, request proto.Message) error {
	if err := access.Only(access.User, access.Admin)(ctx, who, request); err != nil {
		return err
	}
	m := request.ProtoReflect()
	field := m.Descriptor().Fields().ByName("id")
	if field == nil || field.Kind() != protoreflect.StringKind {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("%s names no job", m.Descriptor().FullName()))
	}
	job, err := c.find(m.Get(field).String())
	if err != nil {
		return c.fault(err)
	}
	if err := mayUse(who, job); err != nil {
		return err
	}
	m.Set(field, protoreflect.ValueOfString(job.GetSpec().GetId()))
	return nil
}

// mayUse tells whether somebody may see a job and act on it.
func mayUse(who access.Identity, job *vftv1.Job) error {
	if who.Kind == access.Admin || who.Kind == access.User && job.GetSpec().GetOwner() == who.String() {
		return nil
	}
	return access.NotOwner(who, job.GetSpec().GetId(), job.GetSpec().GetOwner())
}

func (c *Coordinator) mayImport(ctx context.Context, who access.Identity, request proto.Message) error {
	if err := access.Only(access.User, access.Admin)(ctx, who, request); err != nil {
		return err
	}
	req, ok := request.(*vftv1.ImportEpochRequest)
	if !ok {
		return connect.NewError(connect.CodeInternal, errors.New("not a request to import"))
	}
	if _, err := c.leader(); err != nil { // others may not know the job yet
		return c.fault(err)
	}
	if job := c.store.job(req.GetSpec().GetId()); job != nil {
		return mayUse(who, job)
	}
	return nil
}

// ownHeartbeat lets a node speak for itself only.
func ownHeartbeat(_ context.Context, who access.Identity, request proto.Message) error {
	req, ok := request.(*vftv1.HeartbeatRequest)
	if !ok || who.Kind != access.Node || who.Name != req.GetNode().GetId() {
		return access.Denied(who, fmt.Sprintf("node %q renews its lease itself", req.GetNode().GetId()))
	}
	return nil
}

// owned is a specification as it is taken from who: the owner is not for the
// client to say. A job that is known stays with its owner.
func (c *Coordinator) owned(ctx context.Context, spec *vftv1.JobSpec, known *vftv1.Job) *vftv1.JobSpec {
	spec = proto.CloneOf(spec)
	spec.Owner = ""
	switch who := access.From(ctx); {
	case known != nil:
		spec.Owner = known.GetSpec().GetOwner()
	case who != access.Identity{}:
		spec.Owner = who.String()
	}
	return spec
}

// listed is what somebody sees of a job in a list: of other people's that it
// is there and where, so that a busy cluster can be understood.
func listed(who access.Identity, job *vftv1.Job) *vftv1.Job {
	if who == (access.Identity{}) || mayUse(who, job) == nil {
		return fsm.Without(job, 0, true)
	}
	s := job.GetSpec()
	out := &vftv1.Job{
		Spec:  &vftv1.JobSpec{Id: s.GetId(), Owner: s.GetOwner(), MemoryMib: s.GetMemoryMib(), Cpus: s.GetCpus()},
		Phase: job.GetPhase(), Incarnation: job.GetIncarnation(), Restarts: job.GetRestarts(),
		SubmittedAt: job.GetSubmittedAt(), StartedAt: job.GetStartedAt(), EndedAt: job.GetEndedAt(),
	}
	for _, g := range s.GetGuests() {
		out.Spec.Guests = append(out.Spec.Guests, &vftv1.GuestSpec{Slots: g.GetSlots()})
	}
	for _, g := range job.GetGuests() {
		out.Guests = append(out.Guests, &vftv1.Guest{Index: g.GetIndex(), Node: g.GetNode()})
	}
	if e := job.GetExit(); e != nil {
		out.Exit = &vftv1.Exit{Cause: e.GetCause(), Code: e.GetCode()}
	}
	return out
}
