package overlay

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMetrics(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "b"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	g0.send(1)
	g1.receive()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c.switches["a"]))
	families, err := registry.Gather()
	require.NoError(t, err)
	found := map[string]bool{}
	for _, f := range families {
		found[f.GetName()] = true
		if f.GetName() == "vft_overlay_link_frames_total" {
			assert.InDelta(t, 1, f.GetMetric()[0].GetCounter().GetValue(), 0)
		}
	}
	assert.Len(t, found, len(newMetrics().all()))
	stats := c.switches["b"].Stats()
	assert.EqualValues(t, 1, stats.Ports[0].FramesOut)
	assert.True(t, stats.Ports[0].Connected)
	assert.True(t, stats.Links[0].Up)
}
