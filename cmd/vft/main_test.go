package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
)

// coordinator knows one job and two nodes.
type coordinator struct {
	vftv1connect.UnimplementedCoordinatorServiceHandler
	address string
}

func (c *coordinator) ListJobs(context.Context, *connect.Request[vftv1.ListJobsRequest]) (*connect.Response[vftv1.ListJobsResponse], error) {
	return connect.NewResponse(&vftv1.ListJobsResponse{Jobs: []*vftv1.Job{testJob()}}), nil
}

func (c *coordinator) GetJob(_ context.Context, req *connect.Request[vftv1.GetJobRequest]) (*connect.Response[vftv1.GetJobResponse], error) {
	if req.Msg.GetId() != "j1" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such job"))
	}
	return connect.NewResponse(&vftv1.GetJobResponse{Job: testJob()}), nil
}

func (c *coordinator) ListNodes(context.Context, *connect.Request[vftv1.ListNodesRequest]) (*connect.Response[vftv1.ListNodesResponse], error) {
	return connect.NewResponse(&vftv1.ListNodesResponse{
		Nodes:  []*vftv1.Node{{Id: "n1", State: vftv1.NodeState_NODE_STATE_ALIVE, Accelerator: "tcg"}, {Id: "n2", State: vftv1.NodeState_NODE_STATE_LOST}},
		Guests: map[string]uint32{"n1": 2},
	}), nil
}

func (c *coordinator) Status(context.Context, *connect.Request[vftv1.StatusRequest]) (*connect.Response[vftv1.StatusResponse], error) {
	return connect.NewResponse(&vftv1.StatusResponse{
		Leader: "n1", Term: 4, State: "leader", Version: "test",
		Replicas: []*vftv1.ReplicaStatus{{Id: "n1", Address: c.address, Voter: true}, {Id: "n2", Address: "127.0.0.1:1", Voter: true}},
	}), nil
}

// cluster starts a coordinator and returns its client's cluster file.
func cluster(t *testing.T) string {
	t.Helper()
	a, err := pki.NewAuthority("test", time.Now())
	require.NoError(t, err)
	dir := t.TempDir()
	endpoint := func(name, save string) *transport.Endpoint {
		id, err := a.Issue(name, time.Now())
		require.NoError(t, err)
		if save != "" {
			require.NoError(t, id.Save(save))
		}
		conf, err := id.TLS()
		require.NoError(t, err)
		return transport.New(conf, nil)
	}
	endpoint("admin:test", filepath.Join(dir, "client"))
	ln, err := endpoint("node:n1", "").Listen(t.Context(), "127.0.0.1:0", (&globals{}).logger(false), transport.ProtoRPC)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewCoordinatorServiceHandler(&coordinator{address: ln.Addr().String()}))
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln.Lane(transport.ProtoRPC)) }()
	t.Cleanup(func() { _, _ = srv.Close(), ln.Close(); <-done })
	conf := nodeconf.Cluster{Version: nodeconf.Version, Name: "test", Coordinators: []string{ln.Addr().String()}, Certificates: "client"}
	require.NoError(t, conf.Save(dir))
	return dir
}

// quiet keeps what a command prints out of the test's output.
func quiet(t *testing.T) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	out, errOut := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = null, null
	t.Cleanup(func() {
		os.Stdout, os.Stderr = out, errOut
		_ = null.Close()
	})
}

func TestExitCodes(t *testing.T) {
	t.Setenv("VFT_CLUSTER", "")
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	here := cluster(t)
	nowhere := filepath.Join(t.TempDir(), "nowhere")
	for name, test := range map[string]struct {
		args []string
		want int
	}{
		"help":                    {[]string{"--help"}, 0},
		"good":                    {[]string{"--cluster", here, "job", "show", "j1"}, 0},
		"job missing":             {[]string{"job", "show"}, exitUsage},
		"too many":                {[]string{"job", "show", "a", "b"}, exitUsage},
		"unknown flag":            {[]string{"job", "ls", "--frobnicate"}, exitUsage},
		"flag without its value":  {[]string{"lab", "up", "--nodes"}, exitUsage},
		"unknown command":         {[]string{"frobnicate"}, exitUsage},
		"unknown subcommand":      {[]string{"job", "frobnicate"}, exitUsage},
		"a group alone":           {[]string{"job"}, 0},
		"too many images":         {[]string{"image", "verify", "a", "b"}, exitUsage},
		"a pin that is none":      {[]string{"--cluster", here, "ckpt", "show", "j1", "better"}, exitFailure},
		"a pin like a number":     {[]string{"--cluster", here, "ckpt", "pin", "j1", "1", "--name", "77"}, exitUsage},
		"no cluster named":        {[]string{"job", "ls"}, exitUsage},
		"no cluster there":        {[]string{"--cluster", nowhere, "job", "ls"}, exitUsage},
		"no such job":             {[]string{"--cluster", here, "job", "show", "j2"}, exitFailure},
		"no such checkpoint":      {[]string{"--cluster", here, "ckpt", "show", "j1", "7"}, exitFailure},
		"no lab":                  {[]string{"lab", "kill", "--dir", nowhere, "n1"}, exitFailure},
		"a node without its file": {[]string{"node", "run", "--config", nowhere}, exitFailure},
	} {
		t.Run(name, func(t *testing.T) {
			quiet(t)
			assert.Equal(t, test.want, run(t.Context(), test.args))
		})
	}
}

// output runs a command and returns what it prints.
func output(t *testing.T, args ...string) []byte {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(args)
	require.NoError(t, root.ExecuteContext(t.Context()))
	return out.Bytes()
}

func TestJSON(t *testing.T) {
	here := cluster(t)
	object := func(args ...string) map[string]any {
		t.Helper()
		var v map[string]any
		require.NoError(t, json.Unmarshal(output(t, append([]string{"--cluster", here, "--json"}, args...)...), &v))
		return v
	}
	array := func(args ...string) []any {
		t.Helper()
		var v []any
		require.NoError(t, json.Unmarshal(output(t, append([]string{"--cluster", here, "--json"}, args...)...), &v))
		return v
	}
	// The demo and scripts look for the guests of a job here.
	guests := object("job", "show", "j1")["guests"].([]any)
	require.Len(t, guests, 2)
	assert.Equal(t, map[string]any{"index": 1.0, "node": "n2", "ip": "10.0.0.2"}, pick(guests[1], "index", "node", "ip"))
	assert.Equal(t, 0.0, guests[0].(map[string]any)["index"], "fields that are zero are there")

	assert.Len(t, array("job", "ls"), 1)
	assert.Len(t, array("ckpt", "ls", "j1"), 2)
	assert.Len(t, array("node", "ls"), 2)
	assert.Equal(t, "EPOCH_STATE_COMMITTED", object("ckpt", "show", "j1", "1")["state"])
	assert.Equal(t, "1", object("ckpt", "show", "j1", "last")["number"])
	status := object("status")
	assert.Equal(t, "n1", status["leader"])
	replicas := status["replicas"].([]any)
	require.Len(t, replicas, 2)
	assert.Equal(t, map[string]any{"id": "n1", "state": "leader", "voter": true}, pick(replicas[0], "id", "state", "voter"))
	assert.Equal(t, "unreachable", pick(replicas[1], "state")["state"])
	assert.Contains(t, status, "nodes")
	assert.Contains(t, status, "jobs")
}

func pick(v any, keys ...string) map[string]any {
	picked := map[string]any{}
	for _, k := range keys {
		picked[k] = v.(map[string]any)[k]
	}
	return picked
}

func TestTextForPeople(t *testing.T) {
	here := cluster(t)
	assert.Regexp(t, `(?m)^j1 +a.out +alice +running +2 +2 +1 +1 `, string(output(t, "--cluster", here, "job", "ls")))
	show := string(output(t, "--cluster", here, "job", "show", "j1"))
	assert.Regexp(t, `(?m)^guests +2 of 512 MiB`, show)
	assert.Regexp(t, `(?m)^1 +n2 +10.0.0.2 +1$`, show)
	assert.Regexp(t, `(?m)^n1 +alive `, string(output(t, "--cluster", here, "node", "ls")))
	assert.Contains(t, string(output(t, "--cluster", here, "status")), "leader n1, term 4")
}

func TestClusterFromTheEnvironment(t *testing.T) {
	t.Setenv("VFT_CLUSTER", cluster(t))
	assert.NotEmpty(t, output(t, "job", "ls"))
}

func TestUnknownCommandHelps(t *testing.T) {
	root := newRoot()
	root.SetArgs([]string{"job", "shwo"})
	assert.ErrorContains(t, root.ExecuteContext(t.Context()), "did you mean show?")
}
