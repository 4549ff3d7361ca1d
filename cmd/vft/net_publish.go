package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/publish"
)

const (
	publishPoll    = 100 * time.Millisecond
	publishTimeout = 10 * time.Second // for the gateway to hear of it
)

func newNetPublish(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "publish JOB [ADDRESS:]PORT:guestN:PORT", Short: "Lead a port of a node to a port of a guest", Args: exactly("JOB", "[ADDRESS:]PORT:guestN:PORT"),
		Long: `Leads a TCP port of the node that guest 0 runs on to a port of a guest, until
` + "`vft net unpublish`" + ` or the job's end, also after a restart or migration, then on
guest 0's new node. Without an address the port is open on all of the node's.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := publish.Parse(args[1])
			if err != nil {
				return usageError{err}
			}
			c, nodes, done, err := g.connectNodes()
			if err != nil {
				return err
			}
			defer done()
			job, err := c.PublishPort(cmd.Context(), args[0], port, false)
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), job)
			}
			return awaitPublished(cmd.Context(), cmd.OutOrStdout(), c, nodes, job.GetSpec().GetId(), port)
		},
	}
}

// awaitPublished waits until the job's gateway has the port, or says why it has not.
func awaitPublished(ctx context.Context, w io.Writer, c *client.Client, nodes sidecars, job string, port *vftv1.PublishedPort) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	problem := errors.New("the job's gateway has not heard of it")
	for {
		shown, err := showNetwork(ctx, c, nodes, job)
		if err != nil && ctx.Err() == nil {
			problem = err
		}
		for _, n := range shown {
			for _, p := range n.GetGateway().GetPorts() {
				if publish.Outer(p.GetPort()) != publish.Outer(port) {
					continue
				}
				if p.GetError() == "" {
					_, err := fmt.Fprintf(w, "port %s of node %s leads to %s\n", publish.Outer(port), n.GetNode(), publish.Inner(port))
					return err
				}
				problem = fmt.Errorf("node %s: %s", n.GetNode(), p.GetError())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("port %s is published but not open yet, and is tried again (`vft net show`): %w", publish.Outer(port), problem)
		case <-time.After(publishPoll):
		}
	}
}

func newNetUnpublish(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "unpublish JOB [ADDRESS:]PORT", Short: "Close a published port, and its connections", Args: exactly("JOB", "[ADDRESS:]PORT"),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			port, err := publish.ParseOuter(args[1])
			if err != nil {
				return usageError{err}
			}
			job, err := c.PublishPort(cmd.Context(), args[0], port, true)
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), job)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "port %s is not published any more\n", publish.Outer(port))
			return err
		}),
	}
}

// printGateway shows the gateway of a job, on the node that carries it.
func printGateway(w io.Writer, n *vftv1.ShowNetworkResponse) error {
	gw := n.GetGateway()
	if gw == nil {
		return nil
	}
	way := "closed"
	switch {
	case gw.GetOut() && gw.GetHost():
		way = "open, also to the node's own services"
	case gw.GetOut():
		way = "open"
	case gw.GetHost():
		way = "only to the node's own services"
	}
	if _, err := fmt.Fprintf(w, "\ngateway on %s: way out %s, %d TCP connections and %d UDP flows of guests, %d refused\n",
		n.GetNode(), way, gw.GetTcp(), gw.GetUdp(), gw.GetRefused()); err != nil {
		return err
	}
	if len(gw.GetPorts()) == 0 {
		return nil
	}
	return table(w, "published\tleads to\tstate\topen\tso far", func(row func(...any)) {
		for _, p := range gw.GetPorts() {
			state := "open"
			if p.GetError() != "" {
				state = p.GetError()
			}
			row(publish.Outer(p.GetPort()), publish.Inner(p.GetPort()), state, p.GetOpen(), p.GetAccepted())
		}
	})
}
