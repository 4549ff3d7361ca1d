package coordinator

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/access/accesstest"
)

var (
	alice = access.Identity{Kind: access.User, Name: "alice"}
	bob   = access.Identity{Kind: access.User, Name: "bob"}
	root  = access.Identity{Kind: access.Admin, Name: "root"}
)

// callers of the tables: alice owns the job, n1 is the node that is meant.
func callers() map[string]access.Identity {
	return map[string]access.Identity{
		"owner": alice, "other": bob, "admin": root,
		"node":   {Kind: access.Node, Name: "n1"},
		"node 2": {Kind: access.Node, Name: "n2"},
		"nobody": {},
	}
}

func submitAs(t *testing.T, c *cluster, who access.Identity, s *vftv1.JobSpec) *vftv1.Job {
	t.Helper()
	c.nodesAlive(len(c.nodes))
	resp, err := c.leader().SubmitJob(access.With(c.ctx, who), connect.NewRequest(&vftv1.SubmitJobRequest{Spec: s}))
	require.NoError(t, err)
	return resp.Msg.GetJob()
}

func TestWhoMayCallTheCoordinator(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	submitAs(t, c, alice, spec("job-of-alice", 1))
	everybody := []string{"owner", "other", "admin", "node", "node 2"}
	people := []string{"owner", "other", "admin"}
	owner := []string{"owner", "admin"}
	admin := []string{"admin"}
	want := map[string][]string{
		"Status": everybody, "ListNodes": everybody, "ListScores": everybody,
		"ListJobs": people, "SubmitJob": people, "ImportEpoch": owner,
		"GetJob": owner, "WatchJob": owner, "StopJob": owner, "RestartJob": owner, "FinishJob": owner, "RenewClient": owner,
		"TakeCheckpoint": owner, "DeleteEpoch": owner, "PinEpoch": owner, "VerifyEpoch": owner, "ResumeJob": owner, "SuspendJob": owner, "ContinueJob": owner, "MigrateGuest": owner, "PublishPort": owner,
		"CollectGarbage": admin, "DrainNode": admin, "AddReplica": admin, "CreateToken": admin, "ExpelNode": admin,
		"AdmitExport": {"node", "node 2"}, "AdmitImport": {"node", "node 2"},
		"Heartbeat": {"node"},
	}
	service := vftv1.File_vft_v1_coordinator_proto.Services().ByName("CoordinatorService")
	accesstest.Check(t, service, c.leader().Access(), callers(), want, func(_ string, request proto.Message) {
		switch r := request.(type) {
		case *vftv1.ImportEpochRequest:
			r.Spec = spec("job-of-alice", 1)
		case *vftv1.HeartbeatRequest:
			r.Node = &vftv1.Node{Id: "n1"}
		default:
			if id := r.ProtoReflect().Descriptor().Fields().ByName("id"); id != nil {
				r.ProtoReflect().Set(id, protoreflect.ValueOfString("job-of-alice"))
			}
		}
	})
}

func TestOwnerIsNotForTheClientToSay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	s := spec("j1", 1)
	s.Owner = "user:bob"
	require.Equal(t, "user:alice", submitAs(t, c, alice, s).GetSpec().GetOwner())
	require.Equal(t, "user:alice", submitAs(t, c, alice, s).GetSpec().GetOwner(), "asked again")
	_, err := c.leader().SubmitJob(access.With(c.ctx, bob), connect.NewRequest(&vftv1.SubmitJobRequest{Spec: s}))
	assert.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err), "somebody else's job of this id: %v", err)
	c.eventually("guests booted for the owner", func() bool {
		n := c.nodes["n1"]
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.calls) > 0
	})
}

func TestRefusalSaysWhoseTheJobIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	submitAs(t, c, alice, spec("j1", 1))
	rule := c.leader().Access()["GetJob"]
	err := rule(c.ctx, bob, &vftv1.GetJobRequest{Id: "j"})
	assert.ErrorContains(t, err, "permission denied: you are user:bob, and job j1 belongs to user:alice")
	err = rule(c.ctx, bob, &vftv1.GetJobRequest{Id: "nothing"})
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	req := &vftv1.GetJobRequest{Id: "j"}
	require.NoError(t, rule(c.ctx, alice, req))
	assert.Equal(t, "j1", req.GetId(), "the method acts on the job that the rule has looked at")
}

func TestListHidesCommandsOfOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	s := spec("j1", 1)
	s.Argv, s.Env, s.Dir, s.User = []string{"mpirun", "./secret"}, []string{"SECRET=1"}, "/secret", "secret"
	s.Name, s.Image = "secret", "img"
	submitAs(t, c, alice, s)
	seen := func(who access.Identity) *vftv1.Job {
		resp, err := c.leader().ListJobs(access.With(c.ctx, who), connect.NewRequest(&vftv1.ListJobsRequest{}))
		require.NoError(t, err)
		require.Len(t, resp.Msg.GetJobs(), 1)
		return resp.Msg.GetJobs()[0]
	}
	for _, who := range []access.Identity{alice, root} {
		assert.Equal(t, s.GetArgv(), seen(who).GetSpec().GetArgv())
	}
	got := seen(bob)
	assert.Equal(t, "j1", got.GetSpec().GetId())
	assert.Equal(t, "user:alice", got.GetSpec().GetOwner())
	assert.Len(t, got.GetSpec().GetGuests(), 1)
	assert.NotContains(t, got.String(), "secret")
	assert.NotContains(t, got.String(), "SECRET")
	assert.Empty(t, got.GetEvents())
}
