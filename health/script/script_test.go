package script

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/internal/probetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func script(t *testing.T, text string, c Convention) *Probe {
	t.Helper()
	path := filepath.Join(t.TempDir(), "check")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700)) //nolint:gosec // a program
	return New(host.New("/"), "own", []string{path}, c, 2*time.Second)
}

func TestConventions(t *testing.T) {
	for name, test := range map[string]struct {
		convention Convention
		text       string
		want       string // empty: it could not tell
	}{
		"nhc, well":             {NHC, "exit 0", "problem = 0"},
		"nhc, fails":            {NHC, "echo 'ERROR:  nhc:  Health check failed:  check_fs_mount:  /scratch not mounted' >&2; exit 1", "problem = 2 (ERROR:  nhc:  Health check failed:  check_fs_mount:  /scratch not mounted)"},
		"nhc, any status":       {NHC, "exit 17", "problem = 2"},
		"npd, well":             {NPD, "echo all is well; exit 0", "problem = 0 (all is well)"},
		"npd, a problem":        {NPD, "echo NTP is down; exit 1", "problem = 2 (NTP is down)"},
		"npd, unknown":          {NPD, "exit 2", ""},
		"nagios, well":          {Nagios, "echo 'DISK OK - free 50% | /=5GB'; exit 0", "problem = 0 (DISK OK - free 50%)"},
		"nagios, warning":       {Nagios, "echo WARNING; exit 1", "problem = 1 (WARNING)"},
		"nagios, critical":      {Nagios, "echo; echo CRITICAL; exit 2", "problem = 2 (CRITICAL)"},
		"nagios, unknown":       {Nagios, "exit 3", ""},
		"nagios, not a plug-in": {Nagios, "exit 127", ""},
		"killed":                {NHC, "kill -9 $$", ""},
	} {
		t.Run(name, func(t *testing.T) {
			readings, err := script(t, test.text, test.convention).Run(t.Context())
			if test.want == "" {
				require.Error(t, err)
				assert.NotErrorIs(t, err, health.ErrAbsent)
				assert.Empty(t, readings, "a script that could not tell is no reading")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []string{test.want}, probetest.Lines(readings))
		})
	}
}

func TestNoScript(t *testing.T) {
	p := New(host.New("/"), "own", []string{"/no/such/script"}, NHC, time.Second)
	assert.Equal(t, "script/own", p.Name())
	assert.Contains(t, probetest.Absent(t, p), "/no/such/script")
}

func TestAScriptThatHangs(t *testing.T) {
	p := script(t, "sleep 1000", NHC)
	p.limit = 200 * time.Millisecond
	_, err := p.Run(t.Context())
	var cut *host.TimeoutError
	require.ErrorAs(t, err, &cut)
}
