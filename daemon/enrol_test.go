package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/enrol"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
)

// coordinate runs the coordinator of a node's directory until the test ends.
func coordinate(t *testing.T, dir string) {
	t.Helper()
	conf, err := nodeconf.LoadNode(filepath.Join(dir, nodeconf.NodeFile))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- RunCoordinator(ctx, conf, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
}

// as returns a client of the cluster with what is in a directory.
func as(t *testing.T, dir string) *client.Client {
	t.Helper()
	conf, err := nodeconf.LoadCluster(dir)
	require.NoError(t, err)
	id, err := conf.Identity()
	require.NoError(t, err)
	ep, err := endpointOf(id, nil)
	require.NoError(t, err)
	t.Cleanup(ep.Close)
	return client.New(client.Config{Coordinators: conf.Coordinators, Dial: CoordinatorClient(ep), Patience: 20 * time.Second})
}

// A cluster is made, grows by a replica and gets a user; what should not enter
// does not.
func TestEnrolment(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	subnet := fmt.Sprintf("127.%d.%d", 100+rand.IntN(100), rand.IntN(250)) // addresses of our own, as the lab's
	node := func(id string, host int) enrol.Node {
		return enrol.Node{Dir: filepath.Join(dir, id), ID: id, Address: fmt.Sprintf("%s.%d", subnet, host), Run: "/run/none", Images: dir}
	}
	n1 := node("n1", 1)
	require.NoError(t, enrol.Init(n1, "house", "root", time.Now()))
	assert.ErrorContains(t, enrol.Init(n1, "house", "root", time.Now()), "holds a node already")
	coordinate(t, n1.Dir)
	admin := as(t, filepath.Join(n1.Dir, enrol.AdminDir))
	ca, err := os.ReadFile(filepath.Join(n1.Dir, "certs", pki.CAFile))
	require.NoError(t, err)
	fingerprint, err := pki.FingerprintOf(ca)
	require.NoError(t, err)
	token := func(kind vftv1.EnrolKind, name string) enrol.Token {
		t.Helper()
		tok, err := enrol.NewToken(fingerprint, nil)
		require.NoError(t, err)
		resp, err := admin.CreateToken(ctx, &vftv1.CreateTokenRequest{Id: tok.ID, Secret: tok.Digest(), Ttl: int64(time.Minute), Kind: kind, Name: name})
		require.NoError(t, err)
		for _, r := range resp.GetReplicas() {
			tok.Addresses = append(tok.Addresses, r.GetAddress())
		}
		return tok
	}
	refused := func(err error) {
		t.Helper()
		assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%v", err)
	}

	// A user.
	forAlice := token(vftv1.EnrolKind_ENROL_KIND_USER, "alice")
	alice := filepath.Join(dir, "alice")
	who, err := enrol.JoinPerson(ctx, forAlice, alice, "")
	require.NoError(t, err)
	assert.Equal(t, "user:alice", who.String())
	_, err = as(t, alice).ListJobs(ctx)
	require.NoError(t, err)
	_, err = as(t, alice).DrainNode(ctx, "n1", "")
	refused(err)
	_, err = as(t, alice).CreateToken(ctx, &vftv1.CreateTokenRequest{Id: "x"})
	refused(err)
	require.NoError(t, os.Remove(filepath.Join(alice, nodeconf.ClusterFile))) // the answer was lost
	_, err = enrol.JoinPerson(ctx, forAlice, alice, "")
	require.NoError(t, err, "asked again with the same key")
	_, err = enrol.JoinPerson(ctx, forAlice, filepath.Join(dir, "thief"), "")
	refused(err)
	assert.NoFileExists(t, filepath.Join(dir, "thief", nodeconf.ClusterFile))

	// Another cluster that answers at the address.
	elsewhere := forAlice
	elsewhere.Authority[0] ^= 1
	_, err = enrol.JoinPerson(ctx, elsewhere, filepath.Join(dir, "pinned"), "")
	assert.ErrorIs(t, err, pki.ErrOtherCluster)

	// A node gets no key of the authority, a replica does and becomes a voter.
	_, err = enrol.JoinNode(ctx, token(vftv1.EnrolKind_ENROL_KIND_NODE, ""), node("n2", 2))
	require.NoError(t, err)
	assert.NoFileExists(t, filepath.Join(dir, "n2", "certs", pki.AuthorityKeyFile))
	_, err = enrol.JoinNode(ctx, token(vftv1.EnrolKind_ENROL_KIND_NODE, ""), node("n1", 4)) // in another directory
	assert.Error(t, err)
	n3 := node("", 3)
	n3.Dir = filepath.Join(dir, "n3")
	id, err := enrol.JoinNode(ctx, token(vftv1.EnrolKind_ENROL_KIND_REPLICA, "n3"), n3)
	require.NoError(t, err)
	assert.Equal(t, "n3", id, "the token names it")
	info, err := os.Stat(filepath.Join(n3.Dir, "certs", pki.AuthorityKeyFile))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	// A node that is no replica does not become one by asking.
	n2id, err := pki.Load(filepath.Join(dir, "n2", "certs"))
	require.NoError(t, err)
	n2end, err := endpointOf(n2id, nil)
	require.NoError(t, err)
	defer n2end.Close()
	for _, replica := range []string{"n2", "n3"} {
		_, err = CoordinatorClient(n2end)(forAlice.Addresses[0]).AddReplica(ctx, connect.NewRequest(&vftv1.AddReplicaRequest{Id: replica, RaftAddress: "127.0.0.1:1"}))
		refused(err)
	}
	_, err = CoordinatorClient(n2end)(forAlice.Addresses[0]).Heartbeat(ctx, connect.NewRequest(&vftv1.HeartbeatRequest{Node: &vftv1.Node{Id: "n1", Address: "x:1"}}))
	refused(err)

	coordinate(t, n3.Dir)
	require.Eventually(t, func() bool {
		st, err := admin.Status(ctx, "")
		return err == nil && len(st.GetReplicas()) == 2
	}, 20*time.Second, 50*time.Millisecond, "n3 is a voter")

	// n2 is expelled: its open connection ends, a new one is not made, its id is gone.
	_, err = CoordinatorClient(n2end)(forAlice.Addresses[0]).ListNodes(ctx, connect.NewRequest(&vftv1.ListNodesRequest{}))
	require.NoError(t, err)
	refused(as(t, alice).ExpelNode(ctx, "n2", ""))
	require.NoError(t, admin.ExpelNode(ctx, "n2", "stolen"))
	for _, address := range []string{forAlice.Addresses[0], fmt.Sprintf("%s.3:%d", subnet, enrol.CoordinatorPort)} { // leader and follower
		assert.Eventually(t, func() bool {
			_, err := CoordinatorClient(n2end)(address).Status(ctx, connect.NewRequest(&vftv1.StatusRequest{}))
			return err != nil && !connect.IsWireError(err)
		}, time.Second, 20*time.Millisecond, address)
	}
	_, err = admin.CreateToken(ctx, &vftv1.CreateTokenRequest{Id: "x", Secret: forAlice.Digest(), Ttl: 1, Kind: vftv1.EnrolKind_ENROL_KIND_NODE, Name: "n2"})
	refused(err)

	// Without a certificate there is enrolment and nothing else.
	stranger := pki.Pinned(fingerprint)
	ep := transport.New(stranger, nil)
	defer ep.Close()
	for _, proto := range []string{transport.ProtoRPC, transport.ProtoRaft} {
		if conn, err := ep.Dial(ctx, forAlice.Addresses[0], proto); err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Read(make([]byte, 1))
			assert.ErrorContains(t, err, "certificate", proto)
			_ = conn.Close()
		}
	}
	both := stranger.Clone()
	both.NextProtos = []string{transport.ProtoEnrol, transport.ProtoRPC}
	conn, err := (&tls.Dialer{Config: both}).DialContext(ctx, "tcp", forAlice.Addresses[0])
	if err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	assert.ErrorContains(t, err, "certificate", "who offers both must have one")
	web := &http.Transport{DialTLSContext: httpDial(ep)}
	defer web.CloseIdleConnections()
	_, err = vftv1connect.NewCoordinatorServiceClient(&http.Client{Transport: web}, "https://"+forAlice.Addresses[0]).
		ListJobs(ctx, connect.NewRequest(&vftv1.ListJobsRequest{}))
	assert.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)
}

// httpDial connects as those do who enrol.
func httpDial(ep *transport.Endpoint) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		return ep.Dial(ctx, address, transport.ProtoEnrol)
	}
}
