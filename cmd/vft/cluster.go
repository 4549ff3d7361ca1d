package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/enrol"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
)

func newCluster(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Make a cluster and let nodes and people into it"}
	cmd.AddCommand(newClusterInit(), newClusterToken(g))
	return cmd
}

// nodeFlags are those of commands that make a node's files.
func nodeFlags(cmd *cobra.Command, n *enrol.Node) {
	f := cmd.Flags()
	f.StringVar(&n.Dir, "dir", "", "the node's directory")
	f.StringVar(&n.Address, "address", "", "name or IP address, without port, at which other nodes reach this one")
	f.StringVar(&n.FailureDomain, "failure-domain", "", "what fails together with this node: a rack, a power supply (default: the node alone)")
	f.StringVar(&n.Run, "run", "", "directory of sockets, a short path (default DIR/run)")
	f.StringVar(&n.Images, "images", defaultImages(), "image cache")
	f.StringVar(&n.QEMU, "qemu", "", "QEMU binary")
	required(cmd, "dir", "address")
}

func required(cmd *cobra.Command, flags ...string) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, f := range flags {
			if v := cmd.Flags().Lookup(f); v == nil || v.Value.String() == "" {
				return usageError{fmt.Errorf("`%s` needs --%s; see --help", cmd.CommandPath(), f)}
			}
		}
		return run(cmd, args)
	}
}

// absolute makes paths independent of where the command was typed.
func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		a, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("finding %s: %w", *p, err)
		}
		*p = a
	}
	return nil
}

func newClusterInit() *cobra.Command {
	n := enrol.Node{}
	var name, admin string
	cmd := &cobra.Command{
		Use: "init", Short: "Make a cluster with one node", Args: exactly(),
		Long: `Makes the cluster's authority, the files of its first node, which runs a
coordinator replica, and DIR/admin with what its first administrator needs.
DIR/certs/ca-key.pem is the key of the authority: whoever reads it can be anybody.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := absolute(&n.Dir, &n.Run, &n.Images); err != nil {
				return err
			}
			if admin == "" {
				u, err := user.Current()
				if err != nil {
					return fmt.Errorf("finding your name: %w; give --admin", err)
				}
				admin = u.Username
			}
			if err := enrol.Init(n, name, admin, time.Now()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), `cluster %s is made; admin:%s is its administrator
run its first node:    vft node run --dir %s
use it:                export VFT_CLUSTER=%s
let others in:         vft cluster token --help
`, name, admin, n.Dir, filepath.Join(n.Dir, enrol.AdminDir, nodeconf.ClusterFile))
			return err
		},
	}
	cmd.Flags().StringVar(&n.ID, "id", "n1", "the node's id")
	cmd.Flags().StringVar(&name, "name", "vft", "the cluster's name")
	cmd.Flags().StringVar(&admin, "admin", "", "the first administrator's name (default: yours)")
	nodeFlags(cmd, &n)
	return cmd
}

func newClusterToken(g *globals) *cobra.Command {
	var ttl time.Duration
	names := map[vftv1.EnrolKind]*string{}
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token that lets one node or person in", Args: exactly(),
		Long: `Prints a token that can be used once, for ` + "`vft node join` or `vft user join`" + `.
Without a name it lets in one node, which chooses its id.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			req := &vftv1.CreateTokenRequest{Ttl: int64(ttl), Kind: vftv1.EnrolKind_ENROL_KIND_NODE}
			for kind, name := range names {
				if *name != "" {
					req.Kind, req.Name = kind, *name
				}
			}
			fingerprint, err := g.authority()
			if err != nil {
				return err
			}
			token, err := enrol.NewToken(fingerprint, nil)
			if err != nil {
				return err
			}
			req.Id, req.Secret = token.ID, token.Digest()
			resp, err := c.CreateToken(cmd.Context(), req)
			if err != nil {
				return err
			}
			for _, r := range resp.GetReplicas() {
				token.Addresses = append(token.Addresses, r.GetAddress())
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"token": token.String(), "expires": time.Unix(0, resp.GetExpires()), "kind": word(req.GetKind()), "name": req.GetName()})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token can be used, up to a week")
	for flag, k := range map[string]struct {
		kind vftv1.EnrolKind
		help string
	}{
		"node":    {vftv1.EnrolKind_ENROL_KIND_NODE, "for the node of this `ID`, even if there is or was one: its keys may be lost"},
		"replica": {vftv1.EnrolKind_ENROL_KIND_REPLICA, "for the node of this `ID`, which gets the authority's key and runs a coordinator replica"},
		"user":    {vftv1.EnrolKind_ENROL_KIND_USER, "for the user called `NAME`"},
		"admin":   {vftv1.EnrolKind_ENROL_KIND_ADMIN, "for the administrator called `NAME`"},
	} {
		names[k.kind] = f.String(flag, "", k.help)
	}
	cmd.MarkFlagsMutuallyExclusive("node", "replica", "user", "admin")
	return cmd
}

// authority is the fingerprint of the cluster's authority.
func (g *globals) authority() (pki.Fingerprint, error) {
	path := g.cluster
	if path == "" {
		path = defaultLabDir()
	}
	conf, err := nodeconf.LoadCluster(path)
	if err != nil {
		return pki.Fingerprint{}, usageError{err}
	}
	id, err := conf.Identity()
	if err != nil {
		return pki.Fingerprint{}, err
	}
	return pki.FingerprintOf(id.CA)
}

func newNodeJoin(g *globals) *cobra.Command {
	n := enrol.Node{}
	var text string
	cmd := &cobra.Command{
		Use: "join", Short: "Make this machine a node of a cluster", Args: exactly(),
		Long: `Makes a key, has the cluster certify it in exchange for a token, and writes the
node's files. Run the node with ` + "`vft node run --dir DIR`" + ` then. May be repeated.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := absolute(&n.Dir, &n.Run, &n.Images); err != nil {
				return err
			}
			token, err := parseToken(text)
			if err != nil {
				return err
			}
			id, err := enrol.JoinNode(cmd.Context(), token, n)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"id": id, "dir": n.Dir})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "this is node %s now; run it with: vft node run --dir %s\n", id, n.Dir)
			return err
		},
	}
	tokenFlag(cmd, &text)
	cmd.Flags().StringVar(&n.ID, "id", "", "the node's id (default: the token's)")
	nodeFlags(cmd, &n)
	return cmd
}

func newNodeExpel(g *globals) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "expel NODE", Short: "End a node's membership for ever", Args: exactly("NODE"),
		Long: `Has all coordinators, sidecars and links refuse a node from now on, whatever
certificate it shows, and restarts the jobs of its guests elsewhere. The machine may join
again under another id. A node that only needs rest is drained instead. A
replica has the authority's key: when that may have been read, make a new cluster.`,
		RunE: withClient(g, func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.ExpelNode(cmd.Context(), args[0], reason); err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"expelled": args[0]})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "node %s is expelled\n", args[0])
			return err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people and for the jobs' events")
	return cmd
}

func newUser(g *globals) *cobra.Command {
	var text, dir, images string
	join := &cobra.Command{
		Use: "join", Short: "Get a certificate for a token", Args: exactly(),
		Long: `Makes a key, has the cluster certify it in exchange for a token, and writes what
vft and mpirun-vft need into a directory. May be repeated.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := absolute(&dir, &images); err != nil {
				return err
			}
			token, err := parseToken(text)
			if err != nil {
				return err
			}
			who, err := enrol.JoinPerson(cmd.Context(), token, dir, images)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"name": who.String(), "dir": dir})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "you are %s\nexport VFT_CLUSTER=%s\n", who, filepath.Join(dir, nodeconf.ClusterFile))
			return err
		},
	}
	tokenFlag(join, &text)
	join.Flags().StringVar(&dir, "dir", "", "directory for the certificate and the cluster's file")
	join.Flags().StringVar(&images, "images", defaultImages(), "image cache")
	required(join, "dir")
	cmd := &cobra.Command{Use: "user", Short: "Become a user of a cluster"}
	cmd.AddCommand(join)
	return cmd
}

func tokenFlag(cmd *cobra.Command, text *string) {
	cmd.Flags().StringVar(text, "token", os.Getenv("VFT_TOKEN"), "what `vft cluster token` printed (default: VFT_TOKEN)")
}

func parseToken(text string) (enrol.Token, error) {
	if text == "" {
		return enrol.Token{}, usageError{errors.New("no token: give --token or set VFT_TOKEN")}
	}
	token, err := enrol.ParseToken(text)
	if err != nil {
		return token, usageError{err}
	}
	return token, nil
}
