package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/guest"
)

// sidecars returns the client of the sidecar at an address.
type sidecars func(address string) vftv1connect.SidecarServiceClient

// nodeTimeout bounds what is asked of one node.
const nodeTimeout = 5 * time.Second

func newNet(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "net", Short: "Look into the guests' networks, and publish ports",
		Long: `Looks into the private networks of jobs, and publishes ports of guests. JOB is any unique beginning of a job's id.`,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "show JOB", Short: "Show ports, links and gateway of a job's network: traffic, drops, queues, holds", Args: exactly("JOB"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, nodes, done, err := g.connectNodes()
				if err != nil {
					return err
				}
				defer done()
				shown, err := showNetwork(cmd.Context(), c, nodes, args[0])
				if perr := printNetwork(cmd.OutOrStdout(), g.json, shown); perr != nil {
					return perr
				}
				return err
			},
		},
		newNetTap(g), newNetPublish(g), newNetUnpublish(g),
	)
	return cmd
}

// carriers returns the nodes that have guests of the job, with their addresses.
func carriers(ctx context.Context, c *client.Client, j *vftv1.Job) (map[string]string, error) {
	known, err := c.ListNodes(ctx)
	if err != nil {
		return nil, err
	}
	address := map[string]string{}
	for _, n := range known.GetNodes() {
		address[n.GetId()] = n.GetAddress()
	}
	nodes := map[string]string{}
	for _, placed := range j.GetGuests() {
		nodes[placed.GetNode()] = address[placed.GetNode()]
	}
	return nodes, nil
}

// errNoNetwork says that there is nothing to look into.
var errNoNetwork = errors.New("the job has no network now; `vft job show` tells its phase")

// showNetwork asks all nodes that carry the job. What some of them answered is
// returned also with an error, which names the others.
func showNetwork(ctx context.Context, c *client.Client, nodes sidecars, id string) ([]*vftv1.ShowNetworkResponse, error) {
	j, err := c.GetJob(ctx, id)
	if err != nil {
		return nil, err
	}
	carry, err := carriers(ctx, c, j)
	if err != nil {
		return nil, err
	}
	if len(carry) == 0 || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return nil, fmt.Errorf("job %s: %w", j.GetSpec().GetId(), errNoNetwork)
	}
	names := slices.Sorted(maps.Keys(carry))
	shown, failed := make([]*vftv1.ShowNetworkResponse, len(names)), make([]error, len(names))
	var all errgroup.Group
	for i, name := range names {
		all.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
			defer cancel()
			r, err := nodes(carry[name]).ShowNetwork(ctx, connect.NewRequest(&vftv1.ShowNetworkRequest{
				Job: j.GetSpec().GetId(), Incarnation: j.GetIncarnation(),
			}))
			if err != nil {
				failed[i] = fmt.Errorf("node %s does not show its part of the network: %w", name, err)
				return nil
			}
			shown[i] = r.Msg
			return nil
		})
	}
	_ = all.Wait() // the errors are in failed
	return slices.DeleteFunc(shown, func(r *vftv1.ShowNetworkResponse) bool { return r == nil }), errors.Join(failed...)
}

func printNetwork(w io.Writer, asJSON bool, shown []*vftv1.ShowNetworkResponse) error {
	if asJSON {
		return printProtos(w, shown)
	}
	if len(shown) == 0 {
		return nil
	}
	if err := table(w, "guest\tnode\tnetwork\tfrom guest\t\tto guest\t\tdropped\tqueued\theld\treconnects", func(row func(...any)) {
		for _, n := range shown {
			for _, p := range n.GetPorts() {
				state := networkWord(n)
				if !p.GetConnected() {
					state += ", unplugged"
				}
				row(portName(p.GetGuest()), n.GetNode(), state, p.GetFramesIn(), size(int64(p.GetBytesIn())), p.GetFramesOut(), size(int64(p.GetBytesOut())),
					reasons(p.GetDropped()), size(int64(p.GetQueued())), size(int64(p.GetHeld())), p.GetReconnects())
			}
		}
	}); err != nil {
		return err
	}
	for _, n := range shown {
		if err := printGateway(w, n); err != nil {
			return err
		}
	}
	links := 0
	for _, n := range shown {
		links += len(n.GetLinks())
	}
	if links == 0 {
		return nil
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	return table(w, "from\tto\tpath\tlink\tframes\tbytes\tdropped\tqueued\tlate\tresumed", func(row func(...any)) {
		for _, n := range shown {
			for _, l := range n.GetLinks() {
				up := "up"
				switch {
				case !l.GetUp() && !l.GetAccepted():
					up = "down"
				case !l.GetUp():
					up = "down, only from there"
				case !l.GetAccepted():
					up = "up, not from there"
				}
				row(n.GetNode(), l.GetPeer(), l.GetPath()+" "+l.GetAddress(), up, l.GetFrames(), size(int64(l.GetBytes())),
					reasons(l.GetDropped()), size(int64(l.GetQueued())), size(int64(l.GetLate())), fmt.Sprintf("%d of %d", l.GetResumed(), l.GetMade()))
			}
		}
	})
}

// portName names a port by whose it is.
func portName(of uint32) string {
	if of == guest.GatewayIndex {
		return "gateway"
	}
	return fmt.Sprint(of)
}

// networkWord is the state of a node's part of a network.
func networkWord(n *vftv1.ShowNetworkResponse) string {
	if n.GetState() == vftv1.NetworkState_NETWORK_STATE_HELD {
		return fmt.Sprintf("held for checkpoint %d", n.GetEpoch())
	}
	return word(n.GetState())
}

// reasons lists dropped frames by reason.
func reasons(dropped map[string]uint64) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(dropped)) {
		out = append(out, fmt.Sprintf("%d %s", dropped[reason], reason))
	}
	return orDash(strings.Join(out, ", "))
}
