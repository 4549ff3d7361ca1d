package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/vm"
	"github.com/mpirun-vft/vft/vm/qmp"
)

// bare is a guest like one of a job, outside vft, that is migrated from QEMU to
// QEMU as anybody would: one unix socket, QEMU's own defaults. It is idle after
// its boot, which favours the baseline.
type bare struct {
	spec    vm.Spec
	dir     string
	moves   int
	machine *vm.Machine
}

// newBare boots a guest with the machine of guest 1 of a job.
func newBare(ctx context.Context, job, dir string) (*bare, error) {
	spec, err := specOf(fmt.Sprintf("vft-%s-1", job))
	if err != nil {
		return nil, err
	}
	b := &bare{spec: spec, dir: dir}
	b.spec.KillWithParent, b.spec.Name = true, "bare"
	if b.machine, err = b.start(ctx, false); err != nil {
		return nil, err
	}
	agent := guest.DialUnix(b.machine.Spec().AgentSocket)
	defer agent.Close() //nolint:errcheck // the guest has booted
	if _, err := agent.WaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the bare guest did not boot: %w", err), b.close())
	}
	return b, nil
}

// specOf reads how a running guest's machine was made.
func specOf(name string) (vm.Spec, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return vm.Spec{}, fmt.Errorf("looking for guests: %w", err)
	}
	for _, l := range lines {
		data, err := os.ReadFile(l) //nolint:gosec // of /proc
		if err != nil || !strings.Contains(string(data), name) || !strings.Contains(string(data), "qemu") {
			continue
		}
		for _, word := range strings.FieldsFunc(string(data), func(r rune) bool { return r == 0 || r == '=' || r == ',' }) {
			if filepath.Base(word) != "net.sock" {
				continue
			}
			var record struct {
				Spec vm.Spec `json:"spec"`
			}
			raw, err := os.ReadFile(filepath.Join(filepath.Dir(word), "machine.json")) //nolint:gosec // named by a guest's command line
			if err == nil {
				err = json.Unmarshal(raw, &record)
			}
			return record.Spec, err
		}
	}
	return vm.Spec{}, fmt.Errorf("no guest %s runs on this machine", name)
}

func (b *bare) start(ctx context.Context, incoming bool) (*vm.Machine, error) {
	spec := b.spec
	spec.Dir = filepath.Join(b.dir, fmt.Sprint(b.moves))
	spec.NetSocket, spec.AgentSocket, spec.QMPSocket = "", "", ""
	spec.Incoming = incoming
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	return vm.Start(ctx, spec, vm.Options{})
}

// migrate moves the guest to another QEMU.
func (b *bare) migrate(ctx context.Context) (bareMove, error) {
	b.moves++
	begun := time.Now()
	to, err := b.start(ctx, true)
	if err != nil {
		return bareMove{}, err
	}
	var stopped time.Time
	events := b.machine.Events()
	defer events.Close()
	uri := map[string]any{"uri": "unix:" + filepath.Join(b.dir, "socket")}
	err = errors.Join(
		to.QMP().Execute(ctx, "migrate-incoming", uri, nil),
		b.machine.QMP().Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 0}, nil),
		b.machine.QMP().Execute(ctx, "migrate", uri, nil),
	)
	for err == nil {
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err = to.QMP().Execute(ctx, "query-migrate", nil, &info); err != nil || info.Status == "completed" {
			break
		}
		if info.Status == "failed" {
			err = fmt.Errorf("the bare migration failed: %s", info.Error)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		err = to.Cont(ctx)
	}
	ran := time.Now()
	if err != nil {
		return bareMove{}, errors.Join(err, to.Close())
	}
	for stopped.IsZero() {
		select {
		case e := <-events.C:
			if e.Event == "STOP" {
				stopped = qmp.EventTime(e)
			}
		case <-ctx.Done():
			return bareMove{}, errors.Join(ctx.Err(), to.Close())
		}
	}
	old := b.machine
	b.machine = to
	return bareMove{down: ran.Sub(stopped), total: ran.Sub(begun)}, old.Close()
}

func (b *bare) close() error { return b.machine.Close() }
