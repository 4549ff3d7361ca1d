package nodeconf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func node() Node {
	return Node{
		Version: Version, ID: "n1", FailureDomain: "rack1", Coordinator: true,
		Replicas: []Replica{{ID: "n1", Address: "127.0.0.1:7700"}}, Sidecar: "127.0.0.1:7701",
		Certificates: "certs", Data: "data", Raft: "raft", Run: "/run/vft", Images: "../images",
		Lease: Duration(3 * time.Second), Heartbeat: Duration(500 * time.Millisecond), CPUs: 2, LevelDirectories: []string{"/scratch//ckpt/"},
	}
}

func TestNodeRoundTrip(t *testing.T) {
	dir := t.TempDir()
	n := node()
	require.NoError(t, n.Save(dir))
	raw, err := os.ReadFile(filepath.Join(dir, NodeFile))
	require.NoError(t, err)
	var spelled map[string]any
	require.NoError(t, json.Unmarshal(raw, &spelled))
	assert.Equal(t, "3s", spelled["lease"])
	assert.Equal(t, "500ms", spelled["heartbeat"])

	back, err := LoadNode(filepath.Join(dir, NodeFile))
	require.NoError(t, err)
	n.Certificates, n.Data, n.Raft = filepath.Join(dir, "certs"), filepath.Join(dir, "data"), filepath.Join(dir, "raft")
	n.Images = filepath.Join(filepath.Dir(dir), "images")
	n.LevelDirectories = []string{"/scratch/ckpt"}
	assert.Equal(t, n, back, "relative paths are below the file's directory, absolute ones stay")
}

func TestPathsThatAreNotSetStayEmpty(t *testing.T) {
	dir := t.TempDir()
	n := node()
	n.Images = ""
	require.NoError(t, n.Save(dir))
	back, err := LoadNode(filepath.Join(dir, NodeFile))
	require.NoError(t, err)
	assert.Empty(t, back.Images)
}

func TestNodesThatAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Node)
		want   []string
	}{
		"newer":             {func(n *Node) { n.Version = 2 }, []string{"version 2", "version 1", "make the node anew"}},
		"without one":       {func(n *Node) { n.Version = 0 }, []string{"version 0"}},
		"no id":             {func(n *Node) { n.ID = "" }, []string{"id, sidecar and replicas must be set"}},
		"no sidecar":        {func(n *Node) { n.Sidecar = "" }, []string{"id, sidecar and replicas must be set"}},
		"a level elsewhere": {func(n *Node) { n.LevelDirectories = []string{"/ok", "ckpt"} }, []string{"level_directories", `"ckpt"`, "absolute"}},
		"no replicas":       {func(n *Node) { n.Replicas = nil }, []string{"id, sidecar and replicas must be set"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			n := node()
			test.change(&n)
			require.NoError(t, n.Save(dir))
			path := filepath.Join(dir, NodeFile)
			_, err := LoadNode(path)
			require.ErrorContains(t, err, path)
			for _, w := range test.want {
				assert.ErrorContains(t, err, w)
			}
		})
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, NodeFile)
	_, err := LoadNode(path)
	assert.ErrorIs(t, err, os.ErrNotExist)
	for name, text := range map[string]string{
		"no JSON":     "lease: 3s",
		"no duration": `{"version": 1, "lease": "soon"}`,
		"a number":    `{"version": 1, "lease": 3}`,
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := LoadNode(path)
			assert.ErrorContains(t, err, path)
		})
	}
}

func TestCluster(t *testing.T) {
	dir := t.TempDir()
	c := Cluster{Version: Version, Name: "lab", Coordinators: []string{"a:1", "b:1"}, Certificates: "client", Images: "/images"}
	require.NoError(t, c.Save(dir))
	c.Certificates = filepath.Join(dir, "client")
	for _, path := range []string{dir, filepath.Join(dir, ClusterFile)} {
		back, err := LoadCluster(path)
		require.NoError(t, err)
		assert.Equal(t, c, back)
	}
	_, err := c.Identity()
	assert.ErrorIs(t, err, os.ErrNotExist, "there are no certificates yet")

	c.Version = 7
	require.NoError(t, c.Save(dir))
	_, err = LoadCluster(dir)
	assert.ErrorContains(t, err, "is of version 7 and this vft reads version 1")
}

func TestClusterFileMissing(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "nowhere", ClusterFile)} {
		_, err := LoadCluster(path)
		require.ErrorIs(t, err, os.ErrNotExist)
		assert.ErrorContains(t, err, "vft lab up", "the message says what to do")
	}
}
