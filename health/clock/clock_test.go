package clock

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

// tracking is what chronyc 4.3 prints.
const tracking = "C0248F82,192.36.143.130,2,1795184964.572005501,-0.000263142,0.000012,0.000400,-12.5,0.001,0.02,0.005,0.0008,64.2,Normal\n"

func TestClock(t *testing.T) {
	root := t.TempDir()
	probetest.Absent(t, New(host.New(root)))
	treetest.Write(t, root, "-- recorded/clock.json --\n"+`{"synchronized": true, "max_error": 0.012, "offset": -0.5}`)
	assert.Equal(t, []string{"synchronized = 1", "max_error = 0.012 s", "offset = 0.5 s (kernel)"}, probetest.Read(t, New(host.New(root))))

	treetest.Write(t, root, "-- run/chrony/ --\n-- recorded/chronyc/-c_-n_tracking.out --\n"+tracking)
	assert.Contains(t, probetest.Read(t, New(host.New(root))), "offset = 0.000263142 s (chrony, from 192.36.143.130)")

	treetest.Write(t, root, "-- recorded/chronyc/-c_-n_tracking.out --\nbroken\n")
	readings, err := New(host.New(root)).Run(t.Context())
	require.ErrorContains(t, err, "chronyc")
	assert.Len(t, readings, 2)

	treetest.Write(t, root, "-- recorded/chronyc/-c_-n_tracking.out --\n506 Cannot talk to daemon\n-- recorded/chronyc/-c_-n_tracking.exit --\n1\n")
	assert.Contains(t, probetest.Read(t, New(host.New(root))), "offset = 0.5 s (kernel)", "chronyd does not run")

	treetest.Write(t, root, "-- recorded/clock.json --\n"+`{"max_error": 16}`)
	assert.Equal(t, []string{"synchronized = 0", "max_error = 16 s"}, probetest.Read(t, New(host.New(root))),
		"a clock that nobody keeps has no offset that means anything")
}

func TestSteps(t *testing.T) {
	p := New(host.New("/"))
	assert.Empty(t, p.step(), "the first run knows of none")
	got := probetest.Lines(p.step())
	require.Len(t, got, 1)
	assert.Regexp(t, `^step = 0|step = \d\.?\d*e-0[5-9] s`, got[0])
}

func FuzzTracking(f *testing.F) {
	f.Add(tracking)
	f.Add("7F7F0101,,5,1795184964.572005501,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,0.000000000,0.000000000,0.0,Normal")
	f.Add("a,b,c,d,NaN")
	f.Fuzz(func(t *testing.T, text string) {
		offset, from, err := parseTracking(text)
		if err == nil && from != "" && offset != offset {
			t.Fatalf("%q gives NaN", text)
		}
	})
}
