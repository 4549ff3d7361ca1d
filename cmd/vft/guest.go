package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
)

func newGuest(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "guest", Short: "Move guests of running jobs"}
	cmd.AddCommand(newGuestMigrate(g))
	return cmd
}

func newGuestMigrate(g *globals) *cobra.Command {
	var to, reason string
	var cold bool
	cmd := &cobra.Command{
		Use: "migrate JOB/GUEST", Short: "Move a guest of a running job to another node", Args: exactly("JOB/GUEST"),
		Long: `Moves a guest to another node while its job runs, and returns when it runs
there. When it cannot be moved the guest goes on where it was, and the command
says why and exits with 1.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			job, guest, err := parseGuest(args[0])
			if err != nil {
				return err
			}
			ev, err := c.MigrateGuest(cmd.Context(), job, guest, to, reason, cold)
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), ev)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), ev.GetText())
			return err
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "node to move to; without it the one with the most room")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people and for the job's events")
	cmd.Flags().BoolVar(&cold, "cold", false, "stop the guest before it is copied: longer still, less work")
	return cmd
}

// parseGuest reads JOB/GUEST.
func parseGuest(s string) (job string, guest uint32, err error) {
	i := strings.LastIndexByte(s, '/')
	if i > 0 {
		n, perr := strconv.ParseUint(s[i+1:], 10, 16)
		if perr == nil {
			return s[:i], uint32(n), nil
		}
	}
	return "", 0, usageError{fmt.Errorf("%q does not name a guest: it takes a job and the guest's number, such as %s/0", s, "JOB")}
}
