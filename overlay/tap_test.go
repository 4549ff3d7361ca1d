package overlay

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTapSeesEachFrameOnceAtItsSource(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "b"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	tap, err := nets["a"].Tap(1<<20, 1<<20)
	require.NoError(t, err)
	defer tap.Close()

	before := time.Now()
	g0.write(testFrame(0, 1, 1, 60), testFrame(1, 0, 2, 60), testFrame(0, -1, 3, 9000)) // the second is spoofed
	g1.write(testFrame(1, 0, 4, 60))
	assert.EqualValues(t, 1, frameNumber(g1.receive()))
	assert.EqualValues(t, 3, frameNumber(g1.receive()))
	assert.EqualValues(t, 4, frameNumber(g0.receive()))
	require.NoError(t, nets["a"].Hold(t.Context(), 1))
	g0.write(testFrame(0, 1, 5, 60))

	var numbers []uint64
	for len(numbers) < 4 {
		frames, dropped, err := tap.Next(t.Context())
		require.NoError(t, err)
		assert.Empty(t, dropped)
		for _, f := range frames {
			assert.Equal(t, 0, f.Guest, "what guest 1 sent is seen on its own node")
			assert.WithinRange(t, f.At, before, time.Now())
			assert.Len(t, f.Data, f.Length)
			numbers = append(numbers, frameNumber(f.Data))
		}
	}
	assert.Equal(t, []uint64{1, 2, 3, 5}, numbers, "also what is refused or held")
}

func TestTapThatIsNotReadDropsAndCounts(t *testing.T) {
	c := newCluster(t, Limits{}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1)
	tap, err := nets["a"].Tap(32, 3*32)
	require.NoError(t, err)
	for range 5 {
		g0.send(1)
		g1.receive() // the tap does not keep the guests from talking
	}
	frames, dropped, err := tap.Next(t.Context())
	require.NoError(t, err)
	require.Len(t, frames, 3)
	assert.Len(t, frames[0].Data, 32)
	assert.Greater(t, frames[0].Length, 32)
	assert.Equal(t, map[int]uint64{0: 2}, dropped)

	g0.send(1)
	g1.receive()
	frames, _, err = tap.Next(t.Context())
	require.NoError(t, err)
	assert.Len(t, frames, 1, "what was read makes room")

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _, err = tap.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	tap.Close()
	tap.Close()
	_, _, err = tap.Next(t.Context())
	require.ErrorIs(t, err, ErrClosed)
	assert.Empty(t, nets["a"].tapped())
}

func TestTapsEndWithTheirNetwork(t *testing.T) {
	c := newCluster(t, Limits{}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	tap, err := nets["a"].Tap(100, 100)
	require.NoError(t, err)
	for range maxTaps - 1 {
		_, err := nets["a"].Tap(100, 100)
		require.NoError(t, err)
	}
	_, err = nets["a"].Tap(100, 100)
	require.ErrorIs(t, err, ErrTooManyTaps)
	nets["a"].Close()
	_, _, err = tap.Next(t.Context())
	require.ErrorIs(t, err, ErrClosed)
	_, err = nets["a"].Tap(100, 100)
	require.ErrorIs(t, err, ErrClosed)
}
