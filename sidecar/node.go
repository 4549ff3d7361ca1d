package sidecar

import (
	"errors"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/images"
)

// describe is the node as the leader shall know it.
func (s *Sidecar) describe() *vftv1.Node {
	n := proto.Clone(s.cfg.Node).(*vftv1.Node)
	caps := s.cfg.Capabilities
	n.Session = s.cfg.Session
	n.Accelerator, n.AcceleratorWhy, n.QemuVersion = string(caps.Accel), caps.AccelWhy, caps.QEMUVersion
	for _, e := range caps.Engines {
		n.Engines = append(n.Engines, &vftv1.EngineSupport{Engine: protoEngine(e.Engine), Works: e.OK, Why: e.Why})
	}
	for _, r := range caps.RestoreWays {
		n.Restores = append(n.Restores, &vftv1.RestoreSupport{Restore: protoRestore(r.Way), Works: r.OK, Why: r.Why})
	}
	n.Images = s.imageIDs()
	n.Levels = s.outside.names()
	if s.watch != nil {
		n.Health = s.watch.now()
	}
	return n
}

// Healthy says what keeps the node from doing its part, nil when nothing does.
func (s *Sidecar) Healthy() error {
	if s.suspended.Load() {
		return errors.New("the lease could not be renewed; guests stand still")
	}
	return nil
}

// imageIDs lists the images in the node's cache.
func (s *Sidecar) imageIDs() []string {
	list, err := images.List(s.cfg.Images)
	if err != nil {
		s.log.Warn("listing images", "err", err)
	}
	var ids []string
	for _, e := range list {
		ids = append(ids, e.ID)
	}
	return ids
}

// copyChunks copies r to w in pieces that fit a message.
func copyChunks(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, chunkSize))
	return err
}

// collector reports the node's guests; the switch reports itself.
type collector struct{ s *Sidecar }

var (
	guestsDesc    = prometheus.NewDesc("vft_sidecar_guests", "Guests on this node by job and state.", []string{"job", "state"}, nil)
	suspendedDesc = prometheus.NewDesc("vft_sidecar_suspended", "1 while the lease is in doubt and guests stand still.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- guestsDesc
	ch <- suspendedDesc
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	type key struct{ job, state string }
	counts := map[key]float64{}
	for _, inc := range c.s.incarnations() {
		for _, g := range inc.all() {
			state, _ := g.get()
			counts[key{inc.job, state.String()}]++
		}
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(guestsDesc, prometheus.GaugeValue, n, k.job, k.state)
	}
	suspended := 0.0
	if c.s.suspended.Load() {
		suspended = 1
	}
	ch <- prometheus.MustNewConstMetric(suspendedDesc, prometheus.GaugeValue, suspended)
}
