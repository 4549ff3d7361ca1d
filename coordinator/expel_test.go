package coordinator

import (
	"slices"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/access"
)

func TestExpelledNode(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var refused []string
	c := newCluster(t, 1, 3, func(cfg *Config) {
		cfg.Refuse = func(nodes []string) {
			mu.Lock()
			defer mu.Unlock()
			refused = nodes
		}
	})
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	require.Equal(t, committed, c.checkpoint("j").GetState())
	bad, good := nodeOf(j, 1), nodeOf(j, 0)
	l := c.leader()
	expel := func(node string) error {
		_, err := l.ExpelNode(access.With(c.ctx, root), connect.NewRequest(&vftv1.ExpelNodeRequest{Node: node}))
		return err
	}
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(expel("n9")))
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(expel(l.cfg.ID)), "the leader itself")
	require.NoError(t, expel(bad))
	require.NoError(t, expel(bad), "asked again")
	c.eventually("the leader refuses the node's connections", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(refused, []string{bad})
	})
	beat := func(node string) (*vftv1.HeartbeatResponse, error) {
		r, err := l.Heartbeat(c.ctx, connect.NewRequest(c.nodes[node].heartbeat()))
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	_, err := beat(bad)
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%v", err)
	resp, err := beat(good)
	require.NoError(t, err)
	assert.Equal(t, []string{bad}, resp.GetExpelled())
	j = c.running("j", 2)
	for g := range j.GetGuests() {
		assert.NotEqual(t, bad, nodeOf(j, g))
		assert.EqualValues(t, 1, c.restoredFrom(j)[g])
	}
}
