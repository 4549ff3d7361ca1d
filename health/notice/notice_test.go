package notice

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
	"github.com/mpirun-vft/vft/internal/treetest"
)

func TestParse(t *testing.T) {
	at := time.Date(2026, 9, 18, 8, 22, 0, 0, time.UTC)
	for text, want := range map[string]*Announcement{
		"":        nil,
		" none\n": nil,
		"FALSE":   nil,
		"{}":      nil,
		`{"DocumentIncarnation": 1, "Events": []}`:                nil,
		`{"action": "terminate", "time": "2026-09-18T08:22:00Z"}`: {"preemption", at, "terminate"},
		"TRUE":                            {"preemption", time.Time{}, ""},
		"TERMINATE_ON_HOST_MAINTENANCE\n": {"maintenance", time.Time{}, "TERMINATE_ON_HOST_MAINTENANCE"},
		`{"kind": "maintenance", "at": "1789719720", "reason": "new firmware"}`: {"maintenance", time.Unix(1789719720, 0), "new firmware"},
		`{"kind": "maintenance"}`:                                           {"maintenance", time.Time{}, ""},
		"node is going down\nat noon":                                       {"notice", time.Time{}, "node is going down"},
		`{"Events": [{"EventType": "Freeze", "NotBefore": ""}]}`:            nil,
		`{"Events": [{"EventType": "Reboot", "EventStatus": "Completed"}]}`: nil,
		`{"Events": [{"EventType": "Reboot", "NotBefore": "Mon, 19 Oct 2026 18:29:47 GMT"}, {"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": "Fri, 18 Sep 2026 08:22:00 GMT"}]}`: {"preemption", at, "Preempt"},
	} {
		got, err := Parse([]byte(text))
		require.NoError(t, err, text)
		if want != nil && got != nil {
			assert.True(t, want.At.Equal(got.At), "%s: %v", text, got.At)
			got.At = want.At
		}
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"{", `{"action": "stop", "time": "soon"}`, `{"Events": [{"EventType": "Reboot", "NotBefore": "x"}]}`, `{"kind": 5}`} {
		_, err := Parse([]byte(text))
		assert.Error(t, err, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"action": "terminate", "time": "2026-09-18T08:22:00Z"}`))
	f.Add([]byte(`{"Events": [{"EventType": "Preempt", "NotBefore": "Fri, 18 Sep 2026 08:22:00 GMT"}]}`))
	f.Add([]byte("MIGRATE_ON_HOST_MAINTENANCE"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := Parse(data); err == nil && a != nil && a.Kind == "" {
			t.Fatalf("%q is announced as nothing", data)
		}
	})
}

// none checks that a place is not there, and that nothing is announced then.
func none(t *testing.T, p *Probe) {
	t.Helper()
	readings, err := p.Run(t.Context())
	require.ErrorIs(t, err, health.ErrAbsent)
	assert.Equal(t, []string{"announced = 0"}, probetest.Lines(readings))
}

func TestAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		p := File(host.New(root), "drain", "run/vft/notice", time.Minute)
		assert.Equal(t, "notice/drain", p.Name())
		none(t, p)

		treetest.Write(t, root, "-- run/vft/notice --\n")
		assert.Equal(t, []string{"announced = 1 (notice)", "seconds_left = 60 s (notice)"}, probetest.Read(t, p))
		time.Sleep(20 * time.Second)
		assert.Contains(t, probetest.Read(t, p), "seconds_left = 40 s (notice)", "the grace time runs from when the notice was first seen")
		time.Sleep(time.Hour)
		assert.Contains(t, probetest.Read(t, p), "seconds_left = 0 s (notice)")

		at := time.Now().Add(90 * time.Second).Unix()
		treetest.Write(t, root, "-- run/vft/notice --\n"+`{"kind": "maintenance", "at": "`+strconv.FormatInt(at, 10)+`", "reason": "x"}`)
		assert.Equal(t, []string{"announced = 1 (maintenance: x)", "seconds_left = 90 s (maintenance: x)"}, probetest.Read(t, p))

		treetest.Write(t, root, "-- run/vft/notice --\n{")
		_, err := p.Run(t.Context())
		require.ErrorContains(t, err, "no JSON")
	})
}

func TestTheEndOfAnAllocation(t *testing.T) {
	p := Environment("allocation", "SLURM_JOB_END_TIME")
	none(t, p)
	t.Setenv("SLURM_JOB_END_TIME", strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10))
	readings, err := p.Run(t.Context())
	require.NoError(t, err)
	assert.InDelta(t, 3600, readings[1].Value, 5)
	t.Setenv("SLURM_JOB_END_TIME", "soon")
	_, err = p.Run(t.Context())
	require.ErrorContains(t, err, "SLURM_JOB_END_TIME")
	assert.NotErrorIs(t, err, health.ErrAbsent)
}

func TestAURL(t *testing.T) {
	answer := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata-Flavor") != "Google" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		answer(w, r)
	}))
	defer server.Close()
	p := URL(server.Client(), "spot", server.URL, map[string]string{"Metadata-Flavor": "Google"}, 30*time.Second)
	assert.Equal(t, []string{"announced = 0"}, probetest.Read(t, p))
	answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("TRUE")) }
	assert.Equal(t, "announced = 1 (preemption)", probetest.Read(t, p)[0])
	answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(strings.Repeat("x", 3*maxBody))) }
	readings, err := p.Run(t.Context())
	require.NoError(t, err)
	assert.LessOrEqual(t, len(readings[0].Text), maxBody+20)
	answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
	_, err = p.Run(t.Context())
	require.ErrorContains(t, err, "500")

	answer = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	server.Close()
	_, err = p.Run(t.Context())
	require.Error(t, err)
	assert.NotErrorIs(t, err, health.ErrAbsent)
}

func TestASignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSignal("signal")
		assert.Equal(t, []string{"announced = 0"}, probetest.Read(t, s))
		s.Announce(syscall.SIGTERM, time.Now(), 30*time.Second)
		time.Sleep(10 * time.Second)
		s.Announce(syscall.SIGTERM, time.Now(), 30*time.Second) // an impatient sender gives no more time
		assert.Equal(t, []string{"announced = 1 (signal: terminated)", "seconds_left = 20 s (signal: terminated)"}, probetest.Read(t, s))
	})
}
