package sidecar

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/object"
)

func blobOf(data []byte) *vftv1.Blob {
	sum := blake3.Sum256(data)
	return &vftv1.Blob{Digest: hex.EncodeToString(sum[:]), Size: int64(len(data))}
}

func TestDropBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := idle(t, testConfig(t, "n1", &leader{}))
		data := []byte("staged files")
		b := blobOf(data)
		has := func() bool {
			t.Helper()
			has, err := s.blobs.Has(b.GetDigest())
			require.NoError(t, err)
			return has
		}
		s.noteUpload(b.GetDigest())
		_, err := s.blobs.Put(t.Context(), b.GetDigest(), b.GetSize(), bytes.NewReader(data))
		require.NoError(t, err)
		require.NoError(t, s.dropBlob(b.GetDigest()))
		assert.True(t, has(), "it was sent just now: its job may not be submitted yet")

		time.Sleep(uploadGrace + time.Second)
		create := func() *incarnation {
			return s.newIncarnation(&vftv1.Context{Job: "job", Incarnation: 1}, &vftv1.JobSpec{Stage: b}, nil, phaseRunning)
		}
		_, err = s.enter("job", 1, create)
		require.NoError(t, err)
		require.NoError(t, s.dropBlob(b.GetDigest()))
		assert.True(t, has(), "a job here needs it")

		s.killUpTo("job", 1)
		require.NoError(t, s.dropBlob(""))
		assert.True(t, has())
		require.NoError(t, s.dropBlob(b.GetDigest()))
		assert.False(t, has())

		s.noteUpload("another")
		assert.Len(t, s.uploads, 1, "old uploads are remembered for ever")
	})
}

// serving makes a sidecar that others reach by RPC, and its address.
func serving(t *testing.T, node string) (*Sidecar, string) {
	t.Helper()
	s := idle(t, testConfig(t, node, &leader{}))
	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewSidecarServiceHandler(NewService(s)))
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	client := srv.Client() // trusts all servers of httptest
	t.Cleanup(client.CloseIdleConnections)
	s.cfg.Node.Address = srv.Listener.Addr().String()
	s.cfg.Peer = func(address string) vftv1connect.SidecarServiceClient {
		return vftv1connect.NewSidecarServiceClient(client, "https://"+address)
	}
	return s, s.cfg.Node.GetAddress()
}

func TestFetchBlob(t *testing.T) {
	a, addressA := serving(t, "a")
	b, addressB := serving(t, "b")
	data := bytes.Repeat([]byte("staged "), chunkSize/3) // more than one message
	blob := blobOf(data)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := b.fetchBlob(ctx, blob, []string{addressA, addressB})
	require.ErrorContains(t, err, "no node has the job's staged files")

	up := b.cfg.Peer(addressA).PutBlob(ctx)
	require.NoError(t, up.Send(&vftv1.PutBlobRequest{Blob: blob, Data: data[:10]}))
	w := &messageWriter{send: func(p []byte) error { return up.Send(&vftv1.PutBlobRequest{Data: p}) }}
	_, err = w.Write(data[10:])
	require.NoError(t, err)
	put, err := up.CloseAndReceive()
	require.NoError(t, err)
	assert.False(t, put.Msg.GetExisted())
	assert.Contains(t, a.uploads, blob.GetDigest())

	dead := "127.0.0.1:1" // one that does not answer is passed over
	require.NoError(t, b.fetchBlob(ctx, blob, []string{addressB, dead, addressA}))
	r, err := b.blobs.Open(ctx, blob.GetDigest())
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.True(t, bytes.Equal(data, got))
	require.NoError(t, b.fetchBlob(ctx, blob, nil), "it is here")
	require.NoError(t, b.fetchBlob(ctx, &vftv1.Blob{}, nil), "a job without staged files")

	// What does not match its digest is refused.
	up = b.cfg.Peer(addressA).PutBlob(ctx)
	require.NoError(t, up.Send(&vftv1.PutBlobRequest{Blob: blobOf([]byte("good")), Data: []byte("evil")}))
	_, err = up.CloseAndReceive()
	assert.Error(t, err)
	_, err = b.cfg.Peer(addressA).PutBlob(ctx).CloseAndReceive()
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
}

// putPart stores a part of a few pages that epoch and guest decide.
func putPart(t *testing.T, s *Sidecar, id ckpt.PartID, pages int) ckpt.Info {
	t.Helper()
	w, err := s.parts.Create(t.Context(), id)
	require.NoError(t, err)
	defer w.Abort()
	require.NoError(t, w.Head([]byte("head"), []ckpt.Block{{Name: "pc.ram", Length: uint64(pages) * object.PageSize}}))
	random := rand.NewChaCha8([32]byte{byte(id.Epoch), byte(id.Guest)})
	page := make([]byte, object.PageSize)
	for n := range uint64(pages) {
		_, _ = random.Read(page)
		require.NoError(t, w.Page(0, n, page))
	}
	require.NoError(t, w.Tail([]byte("tail")))
	info, err := w.Commit(t.Context(), ckpt.Meta{Incarnation: 2, Engine: "pre-copy", ChannelState: [][]byte{make([]byte, 60)}})
	require.NoError(t, err)
	return info
}

func TestPartsTravel(t *testing.T) {
	a, addressA := serving(t, "a")
	b, addressB := serving(t, "b")
	c, _ := serving(t, "c")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := ckpt.PartID{Job: "job", Epoch: 3, Guest: 1}
	info := putPart(t, a, id, 300)

	secure := &vftv1.SecurePartRequest{Job: "job", Level: "partner", Part: &vftv1.PartSource{
		Guest: 1, Epoch: 3, Manifest: info.Manifest, Nodes: []*vftv1.Member{{Node: "a", Address: addressA}},
	}}
	resp, err := a.cfg.Peer(addressB).SecurePart(ctx, connect.NewRequest(secure))
	require.NoError(t, err)
	assert.Greater(t, resp.Msg.GetBytes(), int64(300*object.PageSize))
	at, _, err := b.parts.Verify(ctx, id, info.Manifest, nil)
	require.NoError(t, err)
	assert.Equal(t, info, at)
	resp, err = a.cfg.Peer(addressB).SecurePart(ctx, connect.NewRequest(secure))
	require.NoError(t, err, "may be repeated")
	assert.Zero(t, resp.Msg.GetBytes())
	list, err := a.cfg.Peer(addressB).ListParts(ctx, connect.NewRequest(&vftv1.ListPartsRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetParts(), 1)
	assert.Equal(t, info.Manifest, list.Msg.GetParts()[0].GetManifest())
	assert.Equal(t, uint64(3), list.Msg.GetParts()[0].GetEpoch())
	secure.Level = "tape"
	_, err = a.cfg.Peer(addressB).SecurePart(ctx, connect.NewRequest(secure))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))

	// What a holder has lost or damaged is asked for at the next one.
	damage(t, filepath.Join(b.cfg.Data, "store"))
	src := &vftv1.PartSource{Guest: 1, Epoch: 3, Manifest: info.Manifest, Nodes: []*vftv1.Member{
		{Node: "d", Address: "127.0.0.1:1"}, {Node: "b", Address: addressB}, {Node: "a", Address: addressA},
	}}
	_, err = c.fetchPart(ctx, id, src, 0)
	require.NoError(t, err)
	at, _, err = c.parts.Verify(ctx, id, info.Manifest, nil)
	require.NoError(t, err)
	assert.Equal(t, info, at)

	// A damaged copy is found by reading it, and repaired from another.
	verify := &vftv1.VerifyPartRequest{Job: "job", Level: "local", Part: &vftv1.PartSource{
		Guest: 1, Epoch: 3, Manifest: info.Manifest, Nodes: []*vftv1.Member{{Node: "b", Address: addressB}},
	}}
	_, err = a.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(verify))
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "no other node has it: %v", err)
	verify.Part = src
	verified, err := a.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(verify))
	require.NoError(t, err)
	assert.Positive(t, verified.Msg.GetRepaired())
	verified, err = a.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(verify))
	require.NoError(t, err)
	assert.Zero(t, verified.Msg.GetRepaired())
	assert.Greater(t, verified.Msg.GetBytes(), int64(300*object.PageSize))
	verify.Level = "dir:/x"
	_, err = a.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(verify))
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "the node may not use that directory")

	for _, s := range []*Sidecar{a, b, c} {
		require.NoError(t, s.parts.Delete(ctx, id))
	}
	_, err = c.fetchPart(ctx, id, src, 0)
	assert.ErrorContains(t, err, "no node gave a good copy of epoch 3 of guest 1")
	assert.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "one of them did not answer")
	_, err = c.parts.Stat(ctx, id)
	assert.Error(t, err, "a bad copy was kept")
	src.Nodes = src.Nodes[1:]
	_, err = c.fetchPart(ctx, id, src, 0)
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "all answered that they do not have it")
	_, err = c.fetchPart(ctx, id, &vftv1.PartSource{Manifest: info.Manifest}, 0)
	assert.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "nobody was asked")
}

func TestOnlyWhatIsMissingTravels(t *testing.T) {
	a, addressA := serving(t, "a")
	b, _ := serving(t, "b")
	ctx := t.Context()
	first, second := ckpt.PartID{Job: "job", Epoch: 1}, ckpt.PartID{Job: "job", Epoch: 2}
	src := func(info ckpt.Info) *vftv1.PartSource {
		return &vftv1.PartSource{Manifest: info.Manifest, Nodes: []*vftv1.Member{{Node: "a", Address: addressA}}}
	}
	_, err := b.fetchPart(ctx, first, src(putPart(t, a, first, 500)), 0)
	require.NoError(t, err)

	w, err := a.parts.Create(ctx, second)
	require.NoError(t, err)
	require.NoError(t, w.Head([]byte("head"), []ckpt.Block{{Name: "pc.ram", Length: 500 * object.PageSize}}))
	p, err := a.parts.Open(first, putPart(t, a, first, 500).Manifest)
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.Each(ctx, 0, func(n uint64, data []byte) error {
		if n == 7 {
			data = bytes.Repeat([]byte("changed!"), object.PageSize/8)
		}
		return w.Page(0, n, data)
	}))
	info, err := w.Commit(ctx, ckpt.Meta{})
	require.NoError(t, err)
	moved, err := b.fetchPart(ctx, second, src(info), 0)
	require.NoError(t, err)
	assert.Less(t, moved, int64(4*object.PageSize))
}

func TestDeletedPartsStayDeleted(t *testing.T) {
	s, address := serving(t, "a")
	ctx := t.Context()
	for epoch := range uint64(4) {
		putPart(t, s, ckpt.PartID{Job: "job", Epoch: epoch + 1}, 300)
	}
	left := func() (epochs []uint64) {
		list, err := s.cfg.Peer(address).ListParts(ctx, connect.NewRequest(&vftv1.ListPartsRequest{}))
		require.NoError(t, err)
		for _, p := range list.Msg.GetParts() {
			epochs = append(epochs, p.GetEpoch())
		}
		return epochs
	}
	del := func(req *vftv1.DeletePartsRequest) error {
		_, err := s.cfg.Peer(address).DeleteParts(ctx, connect.NewRequest(req))
		return err
	}
	usage := func() *vftv1.StoreUsageResponse {
		u, err := s.cfg.Peer(address).StoreUsage(ctx, connect.NewRequest(&vftv1.StoreUsageRequest{}))
		require.NoError(t, err)
		return u.Msg
	}
	collect := func() int64 {
		c, err := s.cfg.Peer(address).CollectStore(ctx, connect.NewRequest(&vftv1.CollectStoreRequest{}))
		require.NoError(t, err)
		return c.Msg.GetFreed()
	}
	u := usage()
	assert.Equal(t, int64(4), u.GetParts())
	require.Len(t, u.GetJobs(), 1)
	assert.Greater(t, u.GetJobs()[0].GetBytes(), int64(4*300*object.PageSize))
	assert.Greater(t, u.GetStoredBytes(), int64(4*300*object.PageSize), "the pages are random")
	assert.Zero(t, collect())

	require.NoError(t, os.WriteFile(filepath.Join(s.cfg.Data, "store", "parts", "job", "2.0"), []byte("damaged"), 0o600))
	require.NoError(t, del(&vftv1.DeletePartsRequest{Job: "job", Epochs: []uint64{2, 77}}))
	assert.NoFileExists(t, filepath.Join(s.cfg.Data, "store", "parts", "job", "2.0"))
	assert.Equal(t, []uint64{1, 3, 4}, left())
	assert.Greater(t, collect(), int64(300*object.PageSize))
	require.NoError(t, del(&vftv1.DeletePartsRequest{Job: "job", All: true, Keep: []uint64{3}}))
	assert.Equal(t, []uint64{3}, left())
	require.NoError(t, del(&vftv1.DeletePartsRequest{Job: "job", All: true}))
	assert.Empty(t, left())
	assert.Positive(t, collect())
	assert.Zero(t, usage().GetStoredBytes())
	assert.Empty(t, usage().GetJobs())
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(del(&vftv1.DeletePartsRequest{Job: "../x", All: true})))
	_, err := s.cfg.Peer(address).CollectStore(ctx, connect.NewRequest(&vftv1.CollectStoreRequest{Level: "rs:2+1"}))
	assert.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err))
}

// damage turns a byte in the largest file below dir.
func damage(t *testing.T, dir string) {
	t.Helper()
	var path string
	var size int64
	require.NoError(t, filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			path, size = p, info.Size()
		}
		return err
	}))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// run runs a sidecar until the returned function is called.
func run(t *testing.T, cfg Config) (*Sidecar, func()) {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		cancel()
		assert.NoError(t, <-done)
	}
}

func TestNextProcessTakesOver(t *testing.T) {
	l := &leader{answer: good}
	cfg := testConfig(t, "n1", l)
	first, stop := run(t, cfg)
	require.Eventually(t, func() bool { return len(l.requests()) > 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, place(t, first, "running", 3).save())
	half := place(t, first, "half", 2)
	half.phase = phaseBooting
	require.NoError(t, half.save())
	require.NoError(t, os.WriteFile(first.statePath("future"), []byte(`{"version": 9}`), 0o600))
	stop()

	asked := len(l.requests())
	second, stop := run(t, cfg)
	defer stop()
	var guests []*vftv1.GuestStatus
	require.Eventually(t, func() bool {
		if r := l.requests(); len(r) > asked {
			guests = r[len(r)-1].GetGuests()
			return len(guests) > 0
		}
		return false
	}, 5*time.Second, time.Millisecond)
	require.Len(t, guests, 1)
	assert.Equal(t, "running", guests[0].GetJob())
	assert.Equal(t, vftv1.GuestState_GUEST_STATE_DEAD, guests[0].GetState(), "its QEMU is not there")
	assert.Contains(t, guests[0].GetDetail(), "not adopted")
	create, _ := making(second, "running", 2)
	_, err := second.enter("running", 2, create)
	assert.ErrorIs(t, err, errFenced, "the fence did not outlive the process")
	create, made := making(second, "half", 2)
	_, err = second.enter("half", 2, create)
	assert.NoError(t, err)
	assert.Equal(t, 1, *made, "half-made guests are made anew")
	assert.FileExists(t, second.statePath("future"), "the record of another version is not ours to remove")
}
