package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func newCkptVerify(g *globals) *cobra.Command {
	var boot bool
	cmd := &cobra.Command{
		Use: "verify JOB CHECKPOINT", Short: "Read every byte of a checkpoint and repair what is damaged from another copy", Args: exactly("JOB", "CHECKPOINT"),
		Long: `Has every copy of every part read, byte by byte, and what is damaged repaired
from another copy. With --boot each guest is besides restored on a node that
holds it, into a guest without a network that never runs and is thrown away:
the node needs memory for one more guest.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, e, err := findEpoch(cmd, c, args)
			if err != nil {
				return err
			}
			verdicts, err := c.VerifyEpoch(cmd.Context(), j.GetSpec().GetId(), e.GetNumber(), boot)
			if err != nil {
				return err
			}
			if g.json {
				err = printProtos(cmd.OutOrStdout(), verdicts)
			} else {
				err = printVerdicts(cmd.OutOrStdout(), verdicts)
			}
			return errors.Join(err, faulty(e.GetNumber(), verdicts))
		}),
	}
	cmd.Flags().BoolVar(&boot, "boot", false, "also restore every guest into one that is thrown away")
	return cmd
}

// levelBoot stands in a verdict for a guest that was restored and thrown away.
const levelBoot = "boot"

// faulty is an error when some copy is not good.
func faulty(epoch uint64, verdicts []*vftv1.Verdict) error {
	bad := 0
	for _, v := range verdicts {
		if v.GetFault() != "" {
			bad++
		}
	}
	if bad == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d checks of checkpoint %d failed", bad, len(verdicts), epoch)
}

func printVerdicts(w io.Writer, verdicts []*vftv1.Verdict) error {
	return table(w, "guest\tlevel\tnode\tread\trepaired\ttook\tverdict", func(row func(...any)) {
		for _, v := range verdicts {
			verdict := "good"
			switch {
			case v.GetFault() != "" && !v.GetAsked():
				verdict = "not known: " + v.GetFault()
			case v.GetFault() != "" && v.GetLevel() == levelBoot:
				verdict = "does not load: " + v.GetFault()
			case v.GetFault() != "":
				verdict = "damaged: " + v.GetFault()
			case v.GetLevel() == levelBoot:
				verdict = "loads"
			case v.GetRepaired() > 0:
				verdict = "repaired"
			}
			row(v.GetGuest(), v.GetLevel(), v.GetNode(), size(v.GetBytes()), size(v.GetRepaired()), short(v.GetTook()), verdict)
		}
	})
}

func newCkptDu(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "du", Short: "Show what checkpoints take on each node", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, nodes, done, err := g.connectNodes()
			if err != nil {
				return err
			}
			defer done()
			usage, err := storeUsage(cmd.Context(), c, nodes)
			if g.json {
				return errors.Join(err, printProtos(cmd.OutOrStdout(), usage))
			}
			return errors.Join(err, printUsage(cmd.OutOrStdout(), usage))
		},
	}
}

// storeUsage asks all nodes, sorted by name. What some of them answered is
// returned also with an error, which names the others.
func storeUsage(ctx context.Context, c *client.Client, nodes sidecars) ([]*vftv1.StoreUsageResponse, error) {
	list, err := c.ListNodes(ctx)
	if err != nil {
		return nil, err
	}
	known := list.GetNodes()
	all, failed := make([]*vftv1.StoreUsageResponse, len(known)), make([]error, len(known))
	var calls errgroup.Group
	for i, n := range known {
		calls.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
			defer cancel()
			r, err := nodes(n.GetAddress()).StoreUsage(ctx, connect.NewRequest(&vftv1.StoreUsageRequest{}))
			if err != nil {
				failed[i] = fmt.Errorf("node %s does not say what its store takes: %w", n.GetId(), err)
				return nil
			}
			all[i] = r.Msg
			return nil
		})
	}
	_ = calls.Wait() // the errors are in failed
	all = slices.DeleteFunc(all, func(r *vftv1.StoreUsageResponse) bool { return r == nil })
	slices.SortFunc(all, func(a, b *vftv1.StoreUsageResponse) int { return strings.Compare(a.GetNode(), b.GetNode()) })
	return all, errors.Join(failed...)
}

func printUsage(w io.Writer, usage []*vftv1.StoreUsageResponse) error {
	if len(usage) == 0 {
		return nil
	}
	if err := table(w, "node\tparts\tpacks\tobjects\tuncompressed\ton disk\tstaged files\tfree", func(row func(...any)) {
		for _, u := range usage {
			row(u.GetNode(), u.GetParts(), u.GetPacks(), u.GetObjects(), size(u.GetRawBytes()), size(u.GetStoredBytes()), size(u.GetBlobBytes()), size(u.GetFree()))
		}
	}); err != nil {
		return err
	}
	if !slices.ContainsFunc(usage, func(u *vftv1.StoreUsageResponse) bool { return len(u.GetJobs()) > 0 }) {
		return nil
	}
	fmt.Fprintln(w) //nolint:errcheck // table reports it
	return table(w, "job\tnode\tparts\tconsist of\tnew in them", func(row func(...any)) {
		for _, u := range usage {
			for _, j := range u.GetJobs() {
				row(j.GetJob(), u.GetNode(), j.GetParts(), size(j.GetBytes()), size(j.GetChanged()))
			}
		}
	})
}

func newCkptGC(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "gc", Short: "Free what no checkpoint needs, on all nodes", Args: exactly(),
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			collections, err := c.CollectGarbage(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				err = printProtos(cmd.OutOrStdout(), collections)
			} else {
				err = printCollections(cmd.OutOrStdout(), collections)
			}
			for _, x := range collections {
				if x.GetFault() != "" {
					err = errors.Join(err, fmt.Errorf("node %s could not free what nothing needs: %s", x.GetNode(), x.GetFault()))
				}
			}
			return err
		}),
	}
}

func printCollections(w io.Writer, collections []*vftv1.Collection) error {
	return table(w, "node\tstore\tfreed\tfault", func(row func(...any)) {
		for _, x := range collections {
			store := "its own"
			if x.GetLevel() != "" {
				store = x.GetLevel()
			}
			row(x.GetNode(), store, size(x.GetFreed()), orDash(x.GetFault()))
		}
	})
}
