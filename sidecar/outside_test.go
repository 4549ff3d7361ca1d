package sidecar

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3/s3test"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// wipe removes everything that a node's store has.
func wipe(t *testing.T, s *Sidecar, job string) {
	t.Helper()
	require.NoError(t, s.parts.DeleteJob(t.Context(), job))
	_, err := s.collect(t.Context())
	require.NoError(t, err)
	u, err := s.parts.Usage(t.Context())
	require.NoError(t, err)
	require.Zero(t, u.StoredBytes)
}

func TestPartsOutlastTheNodes(t *testing.T) {
	a, addressA := serving(t, "a")
	b, addressB := serving(t, "b")
	dir := t.TempDir()
	for _, s := range []*Sidecar{a, b} {
		s.outside.dirs = []string{filepath.Dir(dir)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := ckpt.PartID{Job: "job", Epoch: 3, Guest: 1}
	info := putPart(t, a, id, 300)
	at := "dir:" + dir
	src := &vftv1.PartSource{
		Guest: 1, Epoch: 3, Manifest: info.Manifest,
		Nodes:  []*vftv1.Member{{Node: "a", Address: addressA}},
		Levels: []*vftv1.LevelSource{{Level: at}},
	}
	secure := func() int64 {
		t.Helper()
		resp, err := b.cfg.Peer(addressA).SecurePart(ctx, connect.NewRequest(&vftv1.SecurePartRequest{
			Job: "job", Level: at, Part: &vftv1.PartSource{Guest: 1, Epoch: 3, Manifest: info.Manifest, Nodes: src.Nodes},
		}))
		require.NoError(t, err)
		return resp.Msg.GetBytes()
	}
	verify := func() (*connect.Response[vftv1.VerifyPartResponse], error) {
		return a.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(&vftv1.VerifyPartRequest{Job: "job", Level: at, Part: src}))
	}
	assert.Greater(t, secure(), int64(300*object.PageSize))
	assert.Less(t, secure(), int64(object.PageSize), "may be repeated")
	verified, err := verify()
	require.NoError(t, err)
	assert.Greater(t, verified.Msg.GetBytes(), int64(300*object.PageSize))

	// Both nodes lose what they have: the level gives it back.
	wipe(t, a, "job")
	_, err = b.fetchPart(ctx, id, src, 0)
	require.NoError(t, err)
	got, _, err := b.parts.Verify(ctx, id, info.Manifest, nil)
	require.NoError(t, err)
	assert.Equal(t, info, got)

	// What is damaged at the level is found, and what gives nothing back named.
	wipe(t, b, "job")
	damage(t, filepath.Join(dir, "packs"))
	_, err = verify()
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
	_, err = b.fetchPart(ctx, id, src, 0)
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
	for _, word := range []string{"epoch 3 of guest 1", "a: ", at + ": ", "is corrupt"} {
		assert.ErrorContains(t, err, word)
	}
	src.Levels = append(src.Levels, &vftv1.LevelSource{Level: "dir:" + filepath.Join(dir, "unmounted")})
	_, err = b.fetchPart(ctx, id, src, 0)
	assert.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "a level that is not there may have it: %v", err)

	// It is put there anew, good this time, by a node that has it again.
	putPart(t, a, id, 300)
	secure()
	_, err = verify()
	require.NoError(t, err)

	remove := func(level string) error {
		_, err := a.cfg.Peer(addressB).RemoveEpochs(ctx, connect.NewRequest(&vftv1.RemoveEpochsRequest{Job: "job", Epochs: []uint64{3}, Level: level}))
		return err
	}
	require.NoError(t, remove(at))
	require.NoError(t, remove(at), "may be repeated")
	_, err = verify()
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
	collect, err := a.cfg.Peer(addressB).CollectStore(ctx, connect.NewRequest(&vftv1.CollectStoreRequest{Level: at}))
	require.NoError(t, err)
	assert.Zero(t, collect.Msg.GetFreed(), "packs stay for a day")
	yesterday := time.Now().Add(-25 * time.Hour)
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*"))
	require.NoError(t, err)
	for _, p := range packs {
		require.NoError(t, os.Chtimes(p, time.Time{}, yesterday))
	}
	collect, err = a.cfg.Peer(addressB).CollectStore(ctx, connect.NewRequest(&vftv1.CollectStoreRequest{Level: at}))
	require.NoError(t, err)
	assert.Greater(t, collect.Msg.GetFreed(), int64(300*object.PageSize))
}

// The credentials of a bucket are those of the daemon's environment; the level
// that a job names has none.
func TestBucketOfTheEnvironment(t *testing.T) {
	cfg := s3test.Start(t).Bucket(t, "bucket")
	t.Setenv("AWS_ACCESS_KEY_ID", cfg.Credentials.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", cfg.Credentials.SecretKey)
	t.Setenv("AWS_SESSION_TOKEN", cfg.Credentials.SessionToken)
	a, b := idle(t, testConfig(t, "a", &leader{})), idle(t, testConfig(t, "b", &leader{}))
	at := "s3:" + cfg.Endpoint + "/bucket/jobs?region=" + cfg.Region
	id := ckpt.PartID{Job: "job", Epoch: 3, Guest: 1}
	info := putPart(t, a, id, 300)
	src := &vftv1.PartSource{Guest: 1, Epoch: 3, Manifest: info.Manifest}
	secured, err := a.securePart(t.Context(), &vftv1.SecurePartRequest{Job: "job", Level: at, Part: src})
	require.NoError(t, err)
	assert.Greater(t, secured.GetBytes(), int64(300*object.PageSize))
	src.Levels = []*vftv1.LevelSource{{Level: at}}
	moved, err := b.fetchPart(t.Context(), id, src, 0)
	require.NoError(t, err)
	assert.Greater(t, moved, int64(300*object.PageSize))
	got, _, err := b.parts.Verify(t.Context(), id, info.Manifest, nil)
	require.NoError(t, err)
	assert.Equal(t, info, got)

	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	stranger := idle(t, testConfig(t, "c", &leader{}))
	_, err = stranger.verifyPart(t.Context(), &vftv1.VerifyPartRequest{Job: "job", Level: at, Part: src})
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(coded(err)), "%v", err)
}

// A node whose copy is damaged mends it from another before it goes to a level.
func TestDamagedCopiesAreMendedFirst(t *testing.T) {
	a, addressA := serving(t, "a")
	b, addressB := serving(t, "b")
	dir := t.TempDir()
	a.outside.dirs, b.outside.dirs = []string{dir}, []string{dir}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := ckpt.PartID{Job: "job", Epoch: 3, Guest: 1}
	info := putPart(t, a, id, 300)
	src := &vftv1.PartSource{Guest: 1, Epoch: 3, Manifest: info.Manifest, Nodes: []*vftv1.Member{{Node: "a", Address: addressA}}}
	_, err := b.fetchPart(ctx, id, src, 0)
	require.NoError(t, err)
	damage(t, filepath.Join(a.cfg.Data, "store"))
	secure := func() error {
		_, err := b.cfg.Peer(addressA).SecurePart(ctx, connect.NewRequest(&vftv1.SecurePartRequest{Job: "job", Level: "dir:" + dir, Part: src}))
		return err
	}
	err = secure()
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "nobody else is known to have it: %v", err)
	src.Nodes = append(src.Nodes, &vftv1.Member{Node: "b", Address: addressB})
	require.NoError(t, secure())
	_, err = b.cfg.Peer(addressB).VerifyPart(ctx, connect.NewRequest(&vftv1.VerifyPartRequest{Job: "job", Level: "dir:" + dir, Part: src}))
	require.NoError(t, err)
}

func TestLevelsThatANodeRefuses(t *testing.T) {
	s, address := serving(t, "a")
	top := t.TempDir()
	allowed, other := filepath.Join(top, "allowed"), filepath.Join(top, "allowed-not")
	for _, d := range []string{allowed, other} {
		require.NoError(t, os.Mkdir(d, 0o700))
	}
	require.NoError(t, os.Symlink(other, filepath.Join(allowed, "link")))
	info := putPart(t, s, ckpt.PartID{Job: "job", Epoch: 1}, 5)
	secure := func(level string) error {
		_, err := s.cfg.Peer(address).SecurePart(t.Context(), connect.NewRequest(&vftv1.SecurePartRequest{
			Job: "job", Level: level, Part: &vftv1.PartSource{Epoch: 1, Manifest: info.Manifest},
		}))
		return err
	}
	err := secure("dir:" + allowed)
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "nothing is allowed unless somebody says so")
	assert.ErrorContains(t, err, "node a cannot keep level dir:"+allowed)
	assert.ErrorContains(t, err, "level_directories")

	s.outside.dirs = []string{allowed}
	assert.Equal(t, []string{"s3", "dir:" + allowed}, s.describe().GetLevels())
	require.NoError(t, secure("dir:"+allowed))
	for level, code := range map[string]connect.Code{
		"dir:" + other:                          connect.CodeFailedPrecondition,
		"dir:" + filepath.Join(allowed, "link"): connect.CodeFailedPrecondition,
		"dir:" + top:                            connect.CodeFailedPrecondition,
		"dir:" + filepath.Join(allowed, "gone"): connect.CodeUnavailable,
		"rs:2+1":                                connect.CodeUnimplemented,
		"tape":                                  connect.CodeInvalidArgument,
	} {
		err := secure(level)
		assert.Equal(t, code, connect.CodeOf(err), "%s: %v", level, err)
	}
	for _, d := range []string{other, top} {
		names, err := os.ReadDir(d)
		require.NoError(t, err)
		for _, n := range names {
			assert.Contains(t, []string{"allowed", "allowed-not"}, n.Name(), "something was made in %s", d)
		}
	}
	s.outside.dirs = []string{"/"}
	require.NoError(t, secure("dir:"+other))
}

func TestLevelIsOpenedOnce(t *testing.T) {
	s := idle(t, testConfig(t, "a", &leader{}))
	s.outside.dirs = []string{"/"}
	spec := level.Spec{Kind: level.KindDir, Path: t.TempDir()}
	first, err := s.outside.get(spec)
	require.NoError(t, err)
	again, err := s.outside.get(spec)
	require.NoError(t, err)
	assert.Same(t, first, again)
}
