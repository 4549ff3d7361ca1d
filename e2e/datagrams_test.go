//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
)

// TestDatagrams: a checkpoint is as consistent for datagrams as for TCP. The
// guests number all they send to each other; after each of two restarts
// nobody remembers a datagram that its sender never sent, and none comes twice.
func TestDatagrams(t *testing.T) {
	const rounds, report = 8000, 100 // many more than are made while a checkpoint is taken
	m := start(t, options{cluster: shared, args: []string{
		"--vft-interval", "0", "--vft-nodes", "2", "-np", "2",
		filepath.Join(bin, "datagrams.openmpi"), fmt.Sprint(rounds), fmt.Sprint(report),
	}})
	e := m.await("started")
	for cycle := range 2 {
		m.awaitOutput(fmt.Sprintf("round %d\n", (1+10*cycle)*report))
		shared.vft(t, "ckpt", "take", e.Job)
		m.awaitOutput(fmt.Sprintf("round %d\n", (3+10*cycle)*report)) // more is sent, and forgotten
		shared.vft(t, "job", "restart", e.Job)
		m.await("restarted")
	}
	if code := m.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, line := range []string{"never sent 0", "twice 0", "foreign 0"} {
		m.awaitOutput(line)
	}
}
