package sidecar

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/internal/access"
)

// gatekeeper is a leader that says who may have what.
type gatekeeper struct {
	*leader
	export  *vftv1.AdmitExportResponse
	callers []string
	refuse  error
}

func (g *gatekeeper) AdmitExport(_ context.Context, req *vftv1.AdmitExportRequest) (*vftv1.AdmitExportResponse, error) {
	g.callers = append(g.callers, req.GetCaller())
	return g.export, g.refuse
}

func (g *gatekeeper) AdmitImport(_ context.Context, req *vftv1.AdmitImportRequest) (*vftv1.AdmitImportResponse, error) {
	g.callers = append(g.callers, req.GetCaller())
	return &vftv1.AdmitImportResponse{}, g.refuse
}

// The parts of a job are on two nodes; a third one, which has none, sends the
// file, and a node of another cluster takes it.
func TestEpochsTravelAsFiles(t *testing.T) {
	a, addressA := serving(t, "a")
	b, addressB := serving(t, "b")
	via, _ := serving(t, "via")
	to, _ := serving(t, "to")
	ctx, cancel := context.WithTimeout(access.With(t.Context(), access.Identity{Kind: access.User, Name: "alice"}), time.Minute)
	defer cancel()
	archive := bytes.Repeat([]byte("staged "), 1000)
	stage := blobOf(archive)
	_, err := a.blobs.Put(ctx, stage.GetDigest(), stage.GetSize(), bytes.NewReader(archive))
	require.NoError(t, err)
	first, second := putPart(t, a, ckpt.PartID{Job: "job", Epoch: 3, Guest: 0}, 100), putPart(t, b, ckpt.PartID{Job: "job", Epoch: 3, Guest: 1}, 100)
	source := func(guest uint32, manifest, node, address string) *vftv1.PartSource {
		return &vftv1.PartSource{Guest: guest, Epoch: 3, Manifest: manifest, Nodes: []*vftv1.Member{{Node: node, Address: address}}}
	}
	keeper := &gatekeeper{leader: &leader{}, export: &vftv1.AdmitExportResponse{
		Export: &vftv1.Export{
			Spec:        &vftv1.JobSpec{Id: "job", Guests: []*vftv1.GuestSpec{{Slots: 1}, {Slots: 1}}, Stage: stage},
			Incarnation: 2,
			Epoch:       &vftv1.Epoch{Number: 3, Parts: []*vftv1.Part{{Guest: 0, Manifest: first.Manifest}, {Guest: 1, Manifest: second.Manifest}}},
		},
		Parts: []*vftv1.PartSource{source(0, first.Manifest, "a", addressA), source(1, second.Manifest, "b", addressB)},
		Peers: []string{addressB, addressA},
	}}
	via.cfg.Leader, to.cfg.Leader = keeper, keeper
	export := func() (file []byte, err error) {
		err = via.exportEpoch(ctx, &vftv1.ExportEpochRequest{Job: "job", Epoch: 3}, func(p []byte) error {
			assert.LessOrEqual(t, len(p), chunkSize)
			file = append(file, p...)
			return nil
		})
		return file, err
	}
	file, err := export()
	require.NoError(t, err)
	left, err := via.listParts(ctx)
	require.NoError(t, err)
	assert.Empty(t, left.GetParts(), "it was only to send them on")
	has, err := via.blobs.Has(stage.GetDigest())
	require.NoError(t, err)
	assert.False(t, has)

	refused := connect.NewError(connect.CodePermissionDenied, errors.New("not yours"))
	keeper.refuse = refused
	_, err = export()
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err))
	_, err = to.importFile(ctx, bytes.NewReader(file))
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(coded(err)))
	keeper.refuse = nil
	_, err = to.importFile(ctx, bytes.NewReader(file[:len(file)-1]))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(coded(err)), "%v", err)
	list, err := to.listParts(ctx)
	require.NoError(t, err)
	assert.Empty(t, list.GetParts(), "a file that is not complete left something")

	resp, err := to.importFile(ctx, bytes.NewReader(file))
	require.NoError(t, err)
	assert.Equal(t, "to", resp.GetNode())
	assert.Equal(t, uint64(2), resp.GetExport().GetIncarnation())
	list, err = to.listParts(ctx)
	require.NoError(t, err)
	require.Len(t, list.GetParts(), 2)
	for i, p := range list.GetParts() {
		assert.True(t, p.GetFresh(), "the leader may not have been told yet")
		assert.Equal(t, []string{first.Manifest, second.Manifest}[i], p.GetManifest())
	}
	has, err = to.blobs.Has(stage.GetDigest())
	require.NoError(t, err)
	assert.True(t, has)
	for _, caller := range keeper.callers {
		assert.Equal(t, "user:alice", caller)
	}

	// When no node has a part any more, the answer says so.
	require.NoError(t, b.parts.Delete(ctx, second.ID))
	_, err = export()
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
}

func TestContentsOfAFile(t *testing.T) {
	digest := ckpt.Digest(nil)
	good := func() *vftv1.Export {
		return &vftv1.Export{
			Spec:  &vftv1.JobSpec{Id: "j", Guests: []*vftv1.GuestSpec{{}}},
			Epoch: &vftv1.Epoch{Number: 1, Parts: []*vftv1.Part{{Manifest: digest}}},
		}
	}
	c, err := contentsOf(good())
	require.NoError(t, err)
	assert.Equal(t, map[ckpt.PartID]string{{Job: "j", Epoch: 1}: digest}, c.Parts)
	for name, change := range map[string]func(*vftv1.Export){
		"a job that names a file elsewhere": func(e *vftv1.Export) { e.Spec.Id = "../x" },
		"a guest without a part":            func(e *vftv1.Export) { e.Spec.Guests = append(e.Spec.Guests, &vftv1.GuestSpec{}) },
		"no guests":                         func(e *vftv1.Export) { e.Spec.Guests, e.Epoch.Parts = nil, nil },
		"a part of another guest":           func(e *vftv1.Export) { e.Epoch.Parts[0].Guest = 7 },
		"no digest":                         func(e *vftv1.Export) { e.Epoch.Parts[0].Manifest = "m" },
		"an archive without a digest":       func(e *vftv1.Export) { e.Spec.Stage = &vftv1.Blob{Digest: "m"} },
		"nothing":                           func(e *vftv1.Export) { e.Spec, e.Epoch = nil, nil },
	} {
		e := good()
		change(e)
		_, err := contentsOf(e)
		assert.Error(t, err, name)
	}
}

// A guest is not tried where there is no memory for it.
func TestTrialNeedsMemory(t *testing.T) {
	s, _ := serving(t, "a")
	info := putPart(t, s, ckpt.PartID{Job: "job", Epoch: 3}, 10)
	free := uint64(287)
	s.cfg.FreeMemory = func() (uint64, error) { return free, nil }
	req := &vftv1.VerifyPartRequest{Job: "job", Part: &vftv1.PartSource{Epoch: 3, Manifest: info.Manifest}, Boot: &vftv1.JobSpec{MemoryMib: 256, Image: "image-x"}}
	_, err := s.verifyPart(t.Context(), req)
	assert.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	assert.ErrorContains(t, err, "node a has no memory for a guest to try the checkpoint in: 287 MiB are free, a guest of 256 MiB needs 288")
	free++
	_, err = s.verifyPart(t.Context(), req)
	require.ErrorContains(t, err, "image-x", "there is no such image")
	assert.NotEqual(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	broken := errors.New("broken")
	s.cfg.FreeMemory = func() (uint64, error) { return 0, broken }
	_, err = s.verifyPart(t.Context(), req)
	assert.ErrorIs(t, err, broken)
}
