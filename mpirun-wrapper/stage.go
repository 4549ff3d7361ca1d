package wrapper

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest/launch"
)

// stageRequest lists what a command needs in its guests.
func (c *Command) stageRequest(image string) (StageRequest, error) {
	req := StageRequest{Flavour: c.Flavour, Image: image, Files: slices.Clone(c.Files), Env: c.Env}
	dirs := []string{}
	for _, x := range c.Contexts {
		req.Programs = append(req.Programs, x.Path)
		dirs = append(dirs, x.Dir)
	}
	for _, pattern := range c.Stage {
		found, err := filepath.Glob(under(c.Dir, pattern))
		if err != nil {
			return req, failf(ExitUsage, "--vft-stage %q is not a pattern: %w", pattern, err)
		}
		if len(found) == 0 {
			return req, failf(ExitData, "--vft-stage %q matches no file in %s", pattern, c.Dir)
		}
		req.Files = append(req.Files, found...)
	}
	for _, list := range []*[]string{&req.Programs, &req.Files, &dirs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	req.Dirs = append([]string{c.Dir}, slices.DeleteFunc(dirs, func(d string) bool { return d == c.Dir })...)
	return req, nil
}

// archive is a stage archive in a file without a name.
type archive struct {
	file *os.File
	blob *vftv1.Blob
	env  []string // for the programs
}

func (a *archive) close() { _ = a.file.Close() }

// buildArchive has the archive written and names it by its content.
func (r *run) buildArchive(ctx context.Context, req StageRequest) (*archive, error) {
	f, err := os.CreateTemp(r.deps.TempDir, "mpirun-vft-*")
	if err != nil {
		return nil, fmt.Errorf("making room for the files to stage (TMPDIR says where): %w", err)
	}
	a := &archive{file: f}
	if err := os.Remove(f.Name()); err != nil {
		a.close()
		return nil, fmt.Errorf("making room for the files to stage: %w", err)
	}
	hash := blake3.New()
	buffered := bufio.NewWriterSize(f, 1<<20)
	count := &counter{w: io.MultiWriter(buffered, hash)}
	if a.env, err = r.deps.Stage(ctx, req, count); err != nil {
		a.close()
		return nil, fmt.Errorf("gathering the program and its files: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		a.close()
		return nil, fmt.Errorf("gathering the program and its files (TMPDIR says where): %w", err)
	}
	a.blob = &vftv1.Blob{Digest: hex.EncodeToString(hash.Sum(nil)), Size: count.n}
	return a, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// uploads is how many nodes get the archive from here; the others fetch it
// from them.
const uploads = 2

// upload puts the archive on nodes that the job will use, or any.
func (r *run) upload(ctx context.Context, a *archive, nodes []Node) error {
	wanted := map[string]bool{}
	for _, g := range r.plan.Guests {
		wanted[g.Node] = true
	}
	order := slices.Clone(nodes)
	slices.SortStableFunc(order, func(x, y Node) int {
		switch {
		case wanted[x.Name] == wanted[y.Name]:
			return 0
		case wanted[x.Name]:
			return -1
		default:
			return 1
		}
	})
	done := 0
	var failures []error
	for _, n := range order {
		if err := r.putBlob(ctx, n.Address, a); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			failures = append(failures, fmt.Errorf("node %s: %w", n.Name, err))
			continue
		}
		if done++; done == uploads {
			return nil
		}
	}
	if len(order) == 0 {
		return failf(ExitUnavailable, "the cluster has no node that is alive to take the program and its files")
	}
	if done == 0 {
		return failf(ExitUnavailable, "no node took the program and its files: %w", errors.Join(failures...))
	}
	return nil
}

const blobChunk = 256 << 10

func (r *run) putBlob(ctx context.Context, address string, a *archive) error {
	stream := r.conn.Sidecar(address).PutBlob(ctx)
	err := stream.Send(&vftv1.PutBlobRequest{Blob: a.blob})
	buf := make([]byte, blobChunk)
	for off := int64(0); err == nil && off < a.blob.GetSize(); {
		var n int
		if n, err = a.file.ReadAt(buf[:min(blobChunk, a.blob.GetSize()-off)], off); err != nil {
			_, _ = stream.CloseAndReceive()
			return fmt.Errorf("reading the files to stage: %w", err)
		}
		off += int64(n)
		err = stream.Send(&vftv1.PutBlobRequest{Data: buf[:n]})
	}
	// An early answer, the node has it already, shows as EOF when sending.
	if _, rerr := stream.CloseAndReceive(); rerr != nil || err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(rerr, err)
	}
	return nil
}

// spec makes the job of a plan.
func (r *run) spec(image string, a *archive) *vftv1.JobSpec {
	c, p := r.cmd, r.plan
	hosts := make([]launch.Host, len(p.Guests))
	guests := make([]*vftv1.GuestSpec, len(p.Guests))
	for i, g := range p.Guests {
		hosts[i] = launch.Host{Name: g.Name, Slots: g.Slots, CPUs: p.CPUs}
		guests[i] = &vftv1.GuestSpec{Slots: uint32(g.Slots), Node: g.Node}
	}
	argv, env := r.deps.Launch(c.Flavour, hosts, c.Arguments(p, a.env))
	name := c.Name
	if name == "" {
		name = filepath.Base(c.Contexts[0].Path)
	}
	u := r.deps.User
	return &vftv1.JobSpec{
		Id: r.id, Name: name, User: u.Name, Uid: u.UID, Gid: u.GID, Groups: u.Groups, Umask: u.Umask,
		Flavour: c.Flavour, Argv: argv, Env: mergeEnv(c.Env, env), Dir: c.Dir, Guests: guests,
		MemoryMib: c.MemoryMiB, Cpus: uint32(p.CPUs), Image: image, Stage: a.blob,
		Interval: int64(c.Interval), IntervalAuto: c.Auto, Engine: c.Engine, Restore: c.Restore, RestartLimit: c.Restarts,
		Levels: p.Levels, Commit: p.Commit, Keep: c.Keep, KeepHourly: c.KeepHourly, Bandwidth: c.Bandwidth,
		Publish: c.Publish, NetOut: c.NetOut, NetHost: c.NetHost,
		Oversubscribe: p.Oversubscribe, BootTimeout: int64(c.BootTimeout), ClientBound: true,
	}
}

// chooseImage returns the image to use: the user's, the connection's, or the
// one that most nodes hold.
func (r *run) chooseImage(nodes []*vftv1.Node) string {
	if r.cmd.Image != "" {
		return r.cmd.Image
	}
	if r.conn.Image != "" {
		return r.conn.Image
	}
	held := map[string]int{}
	best := ""
	for _, n := range nodes {
		for _, id := range n.GetImages() {
			held[id]++
			if held[id] > held[best] || held[id] == held[best] && strings.Compare(id, best) > 0 {
				best = id
			}
		}
	}
	return best
}
