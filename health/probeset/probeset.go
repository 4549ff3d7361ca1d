// Package probeset makes the probes that a rules file asks for.
package probeset

import (
	"net/http"
	"slices"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/clock"
	"github.com/mpirun-vft/vft/health/edac"
	"github.com/mpirun-vft/vft/health/fabric"
	"github.com/mpirun-vft/vft/health/filesystem"
	"github.com/mpirun-vft/vft/health/host"
	"github.com/mpirun-vft/vft/health/hwevent"
	"github.com/mpirun-vft/vft/health/ipmi"
	"github.com/mpirun-vft/vft/health/mdraid"
	"github.com/mpirun-vft/vft/health/memory"
	"github.com/mpirun-vft/vft/health/notice"
	"github.com/mpirun-vft/vft/health/pcie"
	"github.com/mpirun-vft/vft/health/pressure"
	"github.com/mpirun-vft/vft/health/script"
	"github.com/mpirun-vft/vft/health/smart"
	"github.com/mpirun-vft/vft/health/thermal"
)

// New returns the probes of a machine, each with its times. Scripts run last;
// notices do not wait for the budget. What only this machine can tell (URLs,
// environment) is left out for a recorded one.
func New(h *host.Host, rules *health.Rules) []health.Scheduled {
	var list []health.Scheduled
	for _, p := range []health.Probe{
		edac.New(h), hwevent.New(h), smart.New(h), mdraid.New(h), thermal.New(h), ipmi.New(h), fabric.New(h),
		pcie.New(h), pressure.New(h), memory.New(h), filesystem.New(h), clock.New(h),
	} {
		conf := rules.Probes[p.Name()]
		if conf.Off {
			continue
		}
		every, limit := conf.Schedule()
		list = append(list, health.Scheduled{Probe: p, Every: every, Limit: limit})
	}
	for _, c := range rules.Notices {
		if p := newNotice(h, c); p != nil {
			every, limit := c.Schedule()
			list = append(list, health.Scheduled{Probe: p, Every: every, Limit: limit, Urgent: true})
		}
	}
	for _, c := range rules.Scripts {
		every, limit := c.Schedule()
		p := script.New(h, c.Name, slices.Clone(c.Run), script.Convention(c.Convention), limit)
		list = append(list, health.Scheduled{Probe: p, Every: every, Limit: limit})
	}
	return list
}

func newNotice(h *host.Host, c health.NoticeConf) health.Probe {
	grace := time.Duration(c.Grace)
	switch {
	case c.File != "":
		return notice.File(h, c.Name, c.File, grace)
	case !h.Live():
		return nil
	case c.URL != "":
		return notice.URL(http.DefaultClient, c.Name, c.URL, c.Headers, grace)
	default:
		return notice.Environment(c.Name, c.Environment)
	}
}
