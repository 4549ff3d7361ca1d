package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/probeset"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/sidecar"
)

// machineWatch is a node's probes and rules, which are read again on SIGHUP.
type machineWatch struct {
	health *sidecar.Health
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// watchMachine prepares the probes of a node. A rules file with errors is an
// error now; later it changes nothing.
func watchMachine(ctx context.Context, conf nodeconf.Node, log *slog.Logger) (*machineWatch, error) {
	rules, err := health.LoadRules(conf.HealthRules)
	if err != nil {
		return nil, err
	}
	machine := host.New(conf.HealthRoot)
	reload := make(chan *health.Rules)
	ctx, cancel := context.WithCancel(ctx)
	w := &machineWatch{cancel: cancel, health: &sidecar.Health{
		Probes: probeset.New(machine, rules), Rules: rules, Uptime: machine.Uptime(), Boot: machine.Boot(), Reload: reload,
	}}
	w.wg.Go(func() {
		onHangup(ctx, func() {
			rules, err := health.LoadRules(conf.HealthRules)
			if err != nil {
				log.Error("the health rules stay as they are", "err", err)
				return
			}
			select {
			case reload <- rules:
			case <-ctx.Done():
			}
		})
	})
	return w, nil
}

// onHangup calls f for every SIGHUP until ctx ends.
func onHangup(ctx context.Context, f func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			f()
		case <-ctx.Done():
			return
		}
	}
}

func (w *machineWatch) stop() {
	w.cancel()
	w.wg.Wait()
}
