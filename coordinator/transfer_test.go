package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func (c *cluster) admitExport(job string, epoch uint64, caller string) (*vftv1.AdmitExportResponse, error) {
	r, err := c.leader().AdmitExport(c.ctx, connect.NewRequest(&vftv1.AdmitExportRequest{Id: job, Epoch: epoch, Caller: caller}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

func (c *cluster) admitImport(e *vftv1.Export, caller string) error {
	_, err := c.leader().AdmitImport(c.ctx, connect.NewRequest(&vftv1.AdmitImportRequest{Export: e, Caller: caller}))
	return err
}

// An epoch leaves the cluster for its owner only, without what is known of this
// cluster alone, and comes back for its owner only, when the job has ended.
func TestAdmitTransfers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("job-of-alice", 2)
	s.Guests[0].Node = "n1"
	submitAs(t, c, alice, s)
	c.running("job-of-alice", 1)
	_, err := c.admitExport("job-of-alice", 1, "user:alice")
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "there is no epoch yet: %v", err)
	c.checkpoint("job-of-alice")
	require.NoError(t, c.pin("job-of-alice", 1, "keep"))

	_, err = c.admitExport("job-of-alice", 1, "user:bob")
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%v", err)
	_, err = c.admitExport("job-of-alice", 1, "node:n1")
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%v", err)
	_, err = c.admitExport("nothing", 1, "user:alice")
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	for _, caller := range []string{"user:alice", "admin:root", ""} {
		r, err := c.admitExport("job-of-alice", 1, caller)
		require.NoError(t, err, caller)
		x := r.GetExport()
		assert.Empty(t, x.GetSpec().GetOwner()+x.GetSpec().GetGuests()[0].GetNode()+x.GetEpoch().GetPin())
		assert.Empty(t, x.GetEpoch().GetLevels())
		assert.Equal(t, uint64(1), x.GetIncarnation())
		assert.NotEmpty(t, r.GetPeers())
		require.Len(t, r.GetParts(), 2)
		for i, p := range r.GetParts() {
			assert.Equal(t, x.GetEpoch().GetParts()[i].GetManifest(), p.GetManifest())
			assert.NotEmpty(t, p.GetNodes(), "where it can be read")
			assert.Empty(t, x.GetEpoch().GetParts()[i].GetNodes())
		}
	}
	assert.Equal(t, "user:alice", c.job("job-of-alice").GetSpec().GetOwner(), "the state itself was changed")

	r, err := c.admitExport("job-of-alice", 1, "user:alice")
	require.NoError(t, err)
	x := r.GetExport()
	require.NoError(t, c.admitImport(x, "user:alice"), "it is here already")
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(c.admitImport(x, "user:bob")))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(c.admitImport(x, "bob")))
	later := proto.CloneOf(x)
	later.Epoch.Number = 50
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(c.admitImport(later, "user:alice")), "the job runs")
	other := proto.CloneOf(x)
	other.Spec.Argv = append(other.Spec.Argv, "more")
	assert.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(c.admitImport(other, "user:alice")))
	other.Spec.Id = "another"
	require.NoError(t, c.admitImport(other, "user:bob"))
	other.Spec.Image = "elsewhere"
	err = c.admitImport(other, "user:bob")
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	assert.ErrorContains(t, err, "no node holds image elsewhere")

	c.finish("job-of-alice", 1, 0)
	c.waitPhase("job-of-alice", ended)
	require.NoError(t, c.admitImport(later, "user:alice"))
}

// Nodes that are named with a resumption count in place of those of before.
func TestResumeOnOtherNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	s := spec("j", 1)
	s.Guests[0].Node = "n1"
	c.submit(s)
	c.running("j", 1)
	c.checkpoint("j")
	require.NoError(t, c.pin("j", 1, "p"))
	c.finish("j", 1, 0)
	c.waitPhase("j", ended)
	resume := func(node, token string) error {
		_, err := c.leader().ResumeJob(c.ctx, connect.NewRequest(&vftv1.ResumeJobRequest{Id: "j", Epoch: 1, Token: token, Nodes: []string{node}}))
		return err
	}
	err := resume("n9", "x")
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	assert.True(t, strings.Contains(err.Error(), "node n9"), "%v", err)
	require.NoError(t, resume("n3", "x"))
	if j := c.running("j", 2); nodeOf(j, 0) != "n3" {
		t.Errorf("on %s\n%s", nodeOf(j, 0), c.describe())
	}
}

// What a trial restore says of a part is a verdict, but the bytes are good: the
// epoch is not damaged.
func TestTrialThatDoesNotLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 1))
	j := c.running("j", 1)
	c.checkpoint("j")
	boot := func(code connect.Code) *vftv1.Verdict {
		t.Helper()
		for _, n := range c.nodes {
			asked := 0
			n.hook("VerifyPart", func(context.Context, string) error {
				if asked++; n.id != nodeOf(j, 0) || asked == 1 { // its own copy comes first
					return nil
				}
				return connect.NewError(code, errors.New("device x"))
			})
		}
		r, err := c.leader().VerifyEpoch(c.ctx, connect.NewRequest(&vftv1.VerifyEpochRequest{Id: "j", Epoch: 1, Boot: true}))
		require.NoError(t, err)
		for _, v := range r.Msg.GetVerdicts() {
			if v.GetLevel() == levelBoot {
				return v
			}
			assert.Empty(t, v.GetFault(), "%v", v)
		}
		t.Fatalf("nothing was tried: %v", r.Msg.GetVerdicts())
		return nil
	}
	v := boot(connect.CodeFailedPrecondition)
	assert.True(t, v.GetAsked() && strings.Contains(v.GetFault(), "device x"), "%v", v)
	v = boot(connect.CodeResourceExhausted)
	assert.True(t, !v.GetAsked() && strings.Contains(v.GetFault(), "device x"), "%v", v)
	assert.Empty(t, c.epoch("j", 1).GetDamaged())
}
