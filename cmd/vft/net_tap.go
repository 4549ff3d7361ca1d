package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/internal/version"
)

func newNetTap(g *globals) *cobra.Command {
	var (
		path string
		snap uint32
		most uint64
	)
	cmd := &cobra.Command{
		Use: "tap JOB --pcap FILE", Short: "Capture what the guests send, for Wireshark", Args: exactly("JOB"),
		Long: `Writes what the guests of a job send as a pcapng file, each frame once, with the
time at which its node's switch read it and an interface per guest and node.
It goes on until it is interrupted or the job ends, across restarts of the job.
A capture that cannot keep up loses frames, which it counts; the guests do not
notice it. To look on: vft net tap JOB --pcap - | wireshark -k -i -`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if path == "" {
				return usageError{errors.New("say where to write the capture: --pcap FILE, or --pcap - for standard output")}
			}
			c, nodes, done, err := g.connectNodes()
			if err != nil {
				return err
			}
			defer done()
			out := cmd.OutOrStdout()
			if path != "-" {
				f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
				if err != nil {
					return fmt.Errorf("creating the capture: %w", err)
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				out = f
			}
			capture := newCapture(out, snap, most)
			t := &tapper{client: c, nodes: nodes, capture: capture, snap: snap}
			err = t.run(cmd.Context(), args[0])
			frames, dropped, ferr := capture.finish()
			if _, perr := fmt.Fprintf(cmd.ErrOrStderr(), "vft: %d frames captured, %d lost by the capture\n", frames, dropped); perr != nil {
				return perr
			}
			return errors.Join(err, ferr)
		},
	}
	cmd.Flags().StringVar(&path, "pcap", "", "`FILE` to write, - for standard output")
	cmd.Flags().Uint32Var(&snap, "snap", 0, "`BYTES` kept of each frame (default: all)")
	cmd.Flags().Uint64Var(&most, "count", 0, "end after this many frames (default: do not)")
	return cmd
}

// errEnough ends a capture that has as many frames as were asked for.
var errEnough = errors.New("enough frames")

// capture writes one pcapng file.
type capture struct {
	mu         sync.Mutex
	buffer     *bufio.Writer
	w          *pcapgo.NgWriter // nil until the first interface is known
	snap       uint32
	most       uint64
	interfaces map[source]*captured
	frames     uint64
}

// source is where frames come from: a port, for as long as one tap lasts.
type source struct {
	guest uint32
	node  string
	tap   uint64
}

type captured struct {
	id       int
	received uint64
	dropped  uint64
}

func newCapture(w io.Writer, snap uint32, most uint64) *capture {
	return &capture{buffer: bufio.NewWriterSize(w, 1<<20), snap: snap, most: most, interfaces: map[source]*captured{}}
}

// begin writes the interfaces of a tap that has begun, so that a reader sees
// them, and that the file is one, before the first frame comes.
func (c *capture) begin(node string, tap uint64, guests []uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, guest := range guests {
		if _, err := c.from(source{guest, node, tap}); err != nil {
			return err
		}
	}
	return c.flush()
}

func interfaceName(s source) string {
	if s.guest == guest.GatewayIndex {
		return "gateway@" + s.node
	}
	return fmt.Sprintf("guest%d@%s", s.guest, s.node)
}

// from returns the interface of a source.
func (c *capture) from(s source) (*captured, error) {
	if known := c.interfaces[s]; known != nil {
		return known, nil
	}
	intf := pcapgo.NgInterface{
		Name: interfaceName(s), LinkType: layers.LinkTypeEthernet,
		SnapLength: c.snap, TimestampResolution: 9,
	}
	fresh := &captured{}
	var err error
	if c.w == nil {
		c.w, err = pcapgo.NewNgWriterInterface(c.buffer, intf, pcapgo.NgWriterOptions{
			SectionInfo: pcapgo.NgSectionInfo{Application: "vft " + version.String()},
		})
	} else {
		fresh.id, err = c.w.AddInterface(intf)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the capture: %w", err)
	}
	c.interfaces[s] = fresh
	return fresh, nil
}

// write appends one message of a tap, and shows it to whoever reads the file.
func (c *capture) write(node string, tap uint64, msg *vftv1.TapNetworkResponse) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range msg.GetDropped() {
		s, err := c.from(source{d.GetGuest(), node, tap})
		if err != nil {
			return err
		}
		s.dropped = d.GetFrames()
	}
	for _, f := range msg.GetFrames() {
		if c.most > 0 && c.frames >= c.most {
			return errEnough
		}
		s, err := c.from(source{f.GetGuest(), node, tap})
		if err != nil {
			return err
		}
		if err := c.w.WritePacket(gopacket.CaptureInfo{
			Timestamp: time.Unix(0, f.GetAt()), CaptureLength: len(f.GetData()), Length: int(f.GetLength()), InterfaceIndex: s.id,
		}, f.GetData()); err != nil {
			return fmt.Errorf("writing the capture: %w", err)
		}
		s.received++
		c.frames++
	}
	if c.most > 0 && c.frames >= c.most {
		return errEnough
	}
	return c.flush()
}

func (c *capture) flush() error {
	if c.w == nil {
		return nil
	}
	if err := errors.Join(c.w.Flush(), c.buffer.Flush()); err != nil {
		return fmt.Errorf("writing the capture: %w", err)
	}
	return nil
}

// sums returns the frames written, and those that the taps dropped.
func (c *capture) sums() (frames, dropped uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.interfaces {
		dropped += s.dropped
	}
	return c.frames, dropped
}

// finish writes each interface's figures and returns the sums.
func (c *capture) finish() (frames, dropped uint64, err error) {
	frames, dropped = c.sums()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.interfaces {
		if err := c.w.WriteInterfaceStats(s.id, pcapgo.NgInterfaceStatistics{
			LastUpdate: time.Now(), PacketsReceived: s.received + s.dropped, PacketsDropped: s.dropped,
		}); err != nil {
			return frames, dropped, fmt.Errorf("writing the capture: %w", err)
		}
	}
	return frames, dropped, c.flush()
}

// tapper keeps a tap open at every node that carries the job.
type tapper struct {
	client  *client.Client
	nodes   sidecars
	capture *capture
	snap    uint32
	taps    atomic.Uint64
	wg      sync.WaitGroup
}

// tapRetry is the wait before a tap that broke is opened again.
const tapRetry = 200 * time.Millisecond

// run captures until ctx ends, the job ends, or enough was captured.
func (t *tapper) run(ctx context.Context, id string) error {
	j, err := t.client.GetJob(ctx, id)
	if err != nil {
		return err
	}
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return fmt.Errorf("job %s: %w", j.GetSpec().GetId(), errNoNetwork)
	}
	interrupted := ctx
	ctx, fail := context.WithCancelCause(ctx)
	defer t.wg.Wait()
	defer fail(nil)
	var incarnation uint64
	stop := func() {}
	defer func() { stop() }()
	err = t.client.WatchJob(ctx, j.GetSpec().GetId(), ^uint64(0), func(r *vftv1.WatchJobResponse) error {
		j := r.GetJob()
		if j == nil || j.GetIncarnation() == incarnation || len(j.GetGuests()) == 0 {
			return nil
		}
		carry, err := carriers(ctx, t.client, j)
		if err != nil {
			return err
		}
		stop()
		t.wg.Wait()
		incarnation = j.GetIncarnation()
		var lifetime context.Context
		lifetime, stop = context.WithCancel(ctx)
		guests := map[string][]uint32{}
		for _, guest := range j.GetGuests() {
			guests[guest.GetNode()] = append(guests[guest.GetNode()], guest.GetIndex())
		}
		for node, address := range carry {
			req := &vftv1.TapNetworkRequest{Job: j.GetSpec().GetId(), Incarnation: incarnation, Snap: t.snap}
			t.wg.Go(func() {
				if err := t.keep(lifetime, node, address, guests[node], req); err != nil {
					fail(err)
				}
			})
		}
		return nil
	})
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errEnough), interrupted.Err() != nil:
		return nil
	case cause != nil:
		return cause
	}
	return err
}

// keep reads one node's tap for as long as the incarnation lasts, and opens it
// again when it breaks. It returns what ends the whole capture.
func (t *tapper) keep(ctx context.Context, node, address string, guests []uint32, req *vftv1.TapNetworkRequest) error {
	for {
		err := t.read(ctx, node, address, guests, req)
		var remote *connect.Error
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.As(err, &remote):
			return err
		case remote.Code() == connect.CodeResourceExhausted:
			return fmt.Errorf("node %s: %w", node, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tapRetry):
		}
	}
}

// read reads a tap until it breaks, which is a connect.Error, or until the
// capture takes no more.
func (t *tapper) read(ctx context.Context, node, address string, guests []uint32, req *vftv1.TapNetworkRequest) error {
	stream, err := t.nodes(address).TapNetwork(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	tap := t.taps.Add(1)
	for first := true; stream.Receive(); first = false {
		if first {
			if err := t.capture.begin(node, tap, guests); err != nil {
				return err
			}
		}
		if err := t.capture.write(node, tap, stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, io.ErrUnexpectedEOF)
}
