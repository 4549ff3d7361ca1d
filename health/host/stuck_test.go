package host

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// A program that the kernel does not let die, as a hung disk makes it do, does
// not hold us up and is not started again while it lives.
func TestAProgramThatCannotBeKilled(t *testing.T) {
	faults, err := faultpoint.Parse(PointReap + "=count:1:pause")
	require.NoError(t, err)
	h, path := program(t, `echo "$1"; [ "$1" = quick ] || sleep 1000`, WithFaults(faults))
	began := time.Now()
	_, err = h.Run(t.Context(), 100*time.Millisecond, path, "disk")
	var cut *TimeoutError
	require.ErrorAs(t, err, &cut)
	assert.True(t, cut.Stuck)
	assert.Less(t, time.Since(began), killGrace+5*time.Second)

	began = time.Now()
	_, err = h.Run(t.Context(), time.Minute, path, "disk")
	require.ErrorAs(t, err, &cut)
	assert.True(t, cut.Stuck)
	assert.Less(t, time.Since(began), time.Second, "it was started again")
	_, err = h.Run(t.Context(), time.Minute, path, "quick")
	require.NoError(t, err, "another disk is asked all the same")

	faults.Release(PointReap)
	live := h.programs.(*live)
	require.Eventually(t, func() bool {
		_, stuck := live.stuckSince(path + " disk")
		return !stuck
	}, 10*time.Second, time.Millisecond, "it is never started again")
}
