package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt/export"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// errFile marks what is wrong with an export file, for exitData.
var errFile = errors.New("nothing was imported")

// transferChunk is how many bytes of a file go in one message.
const transferChunk = 256 << 10

func newCkptExport(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "export JOB CHECKPOINT FILE", Short: "Write all that a job needs to go on from a checkpoint into a file", Args: exactly("JOB", "CHECKPOINT", "FILE"),
		Long: `Writes one file with all that the job needs to go on from the checkpoint in
another cluster, but for the guests' image, which that cluster must have. FILE
is - for standard output. The file holds all that the job has in memory: keep it
like that. A checkpoint that may be removed meanwhile should be pinned.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, nodes, done, err := g.connectNodes()
			if err != nil {
				return err
			}
			defer done()
			j, e, err := findEpoch(cmd, c, args)
			if err != nil {
				return err
			}
			if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
				return fmt.Errorf("checkpoint %d of job %s is not committed", e.GetNumber(), j.GetSpec().GetId())
			}
			addresses, err := holdersOf(cmd.Context(), c, e)
			if err != nil {
				return err
			}
			return exportEpoch(cmd, nodes, addresses, j, e, args[2])
		},
	}
}

// holdersOf returns the addresses of nodes that are alive and have parts of a
// checkpoint, those with most first.
func holdersOf(ctx context.Context, c *client.Client, e *vftv1.Epoch) ([]string, error) {
	list, err := c.ListNodes(ctx)
	if err != nil {
		return nil, err
	}
	parts := map[string]int{}
	for _, p := range e.GetParts() {
		for _, n := range p.GetNodes() {
			parts[n]++
		}
	}
	alive := slices.DeleteFunc(list.GetNodes(), func(n *vftv1.Node) bool {
		return n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE || parts[n.GetId()] == 0
	})
	slices.SortStableFunc(alive, func(a, b *vftv1.Node) int { return parts[b.GetId()] - parts[a.GetId()] })
	var addresses []string
	for _, n := range alive {
		addresses = append(addresses, n.GetAddress())
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no node that is alive has a part of checkpoint %d", e.GetNumber())
	}
	return addresses, nil
}

// exportEpoch writes the file, from the first node that sends it whole.
func exportEpoch(cmd *cobra.Command, nodes sidecars, addresses []string, j *vftv1.Job, e *vftv1.Epoch, path string) error {
	var errs []error
	for _, address := range addresses {
		f := receive(cmd.Context(), nodes(address), &vftv1.ExportEpochRequest{Job: j.GetSpec().GetId(), Epoch: e.GetNumber()})
		var err error
		if path == "-" {
			_, err = io.Copy(cmd.OutOrStdout(), f)
		} else {
			err = atomicfile.Replace(path, f, 0o600)
		}
		f.close()
		if err == nil {
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "checkpoint %d of job %s exported, %s; its guests boot from image %s\n",
				e.GetNumber(), j.GetSpec().GetId(), size(f.bytes), j.GetSpec().GetImage())
			return err
		}
		errs = append(errs, fmt.Errorf("exporting from %s: %w", address, err))
		if cmd.Context().Err() != nil || errors.Is(f.failed, io.ErrClosedPipe) || path == "-" && f.bytes > 0 || connect.CodeOf(f.failed) == connect.CodePermissionDenied {
			break // not that node's fault, or half of a file is out
		}
	}
	return errors.Join(errs...)
}

// incomingFile is an export file that a sidecar sends. Reading it ends well only
// when the file is whole.
type incomingFile struct {
	bytes  int64
	failed error // of the sidecar, or of what it sent

	pipe   *io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func receive(ctx context.Context, sidecar vftv1connect.SidecarServiceClient, req *vftv1.ExportEpochRequest) *incomingFile {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	f := &incomingFile{pipe: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.failed = f.pass(ctx, sidecar, req, w)
		_ = w.CloseWithError(f.failed) // nil is the end of the file
	}()
	return f
}

// pass checks what comes on its way to w.
func (f *incomingFile) pass(ctx context.Context, sidecar vftv1connect.SidecarServiceClient, req *vftv1.ExportEpochRequest, w io.Writer) error {
	stream, err := sidecar.ExportEpoch(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // Receive reports what matters
	r := export.NewReader(io.TeeReader(&messages{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetData(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}}, w))
	for {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Read implements io.Reader.
func (f *incomingFile) Read(p []byte) (int, error) {
	n, err := f.pipe.Read(p)
	f.bytes += int64(n)
	return n, err
}

// close ends the call. failed can be looked at afterwards.
func (f *incomingFile) close() {
	f.cancel()
	_ = f.pipe.Close() // never fails
	<-f.done
}

// messages reads the bytes of a stream of messages.
type messages struct {
	next func() ([]byte, error)
	rest []byte
}

// Read implements io.Reader.
func (m *messages) Read(p []byte) (n int, err error) {
	for len(m.rest) == 0 {
		if m.rest, err = m.next(); err != nil {
			return 0, err
		}
	}
	n = copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

func newCkptImport(g *globals) *cobra.Command {
	var resume bool
	var on []string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Bring a checkpoint in that another cluster exported", Args: exactly("FILE"),
		Long: `Stores the checkpoint on a node, pinned, and makes its job known, which is
yours then; with --resume the job goes on from it. FILE is - for standard input.
Nothing is kept of a file that is damaged. A node must have the image that the
job's guests boot from. The guests in the file are loaded into QEMU: import only
files of people whom you would let run jobs here.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(on) > 0 && !resume {
				return usageError{errors.New("--nodes says where the job goes on: give --resume, too")}
			}
			c, nodes, done, err := g.connectNodes()
			if err != nil {
				return err
			}
			defer done()
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close() //nolint:errcheck // only read from
				in = f
			}
			j, epoch, err := importFile(cmd.Context(), c, nodes, in, on)
			if err == nil && resume {
				j, err = resumeJob(cmd.Context(), c, j, epoch, on)
			}
			if err != nil {
				return err
			}
			if g.json {
				return printProto(cmd.OutOrStdout(), j)
			}
			what := "imported"
			if resume {
				what = "imported; the job goes on"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "checkpoint %d of job %s %s\n", epoch, j.GetSpec().GetId(), what)
			return err
		},
	}
	cmd.Flags().BoolVar(&resume, "resume", false, "have the job go on from the checkpoint, and wait until it does")
	cmd.Flags().StringSliceVar(&on, "nodes", nil, "with --resume: nodes for its guests in turn, separated by commas, as far as they have room (default: any)")
	return cmd
}

// importFile sends a file to a node and tells the leader about it.
func importFile(ctx context.Context, c *client.Client, nodes sidecars, in io.Reader, wished []string) (*vftv1.Job, uint64, error) {
	head, job, err := readHead(in)
	if err != nil {
		return nil, 0, err
	}
	list, err := c.ListNodes(ctx)
	if err != nil {
		return nil, 0, err
	}
	node, err := importNode(list.GetNodes(), job.GetSpec().GetImage(), wished)
	if err != nil {
		return nil, 0, err
	}
	up := nodes(node.GetAddress()).ImportFile(ctx)
	if err := send(up.Send, io.MultiReader(head, in)); err != nil && !errors.Is(err, io.EOF) { // of EOF the answer says more
		return nil, 0, fmt.Errorf("sending the file to node %s: %w", node.GetId(), err)
	}
	r, err := up.CloseAndReceive()
	if err != nil {
		if code := connect.CodeOf(err); code == connect.CodeInvalidArgument {
			err = fmt.Errorf("%w: %w", errFile, err)
		}
		return nil, 0, fmt.Errorf("importing at node %s: %w", node.GetId(), err)
	}
	j, err := c.ImportEpoch(ctx, r.Msg.GetExport(), r.Msg.GetNode())
	return j, r.Msg.GetExport().GetEpoch().GetNumber(), err
}

// readHead reads what a file says of its job, and returns a reader of what it
// has read.
func readHead(in io.Reader) (io.Reader, *vftv1.Export, error) {
	var head bytes.Buffer
	rec, err := export.NewReader(io.TeeReader(in, &head)).Next()
	if err != nil {
		if errors.Is(err, export.ErrDamaged) || errors.Is(err, export.ErrVersion) {
			err = fmt.Errorf("%w: %w", errFile, err)
		}
		return nil, nil, err
	}
	e := &vftv1.Export{}
	if err := proto.Unmarshal(rec.Data, e); err != nil {
		return nil, nil, fmt.Errorf("%w: what the file says of its job cannot be read: %w", errFile, err)
	}
	return &head, e, nil
}

// importNode chooses the node that takes a file: one that is wished for, or any
// that has the image.
func importNode(nodes []*vftv1.Node, image string, wished []string) (*vftv1.Node, error) {
	var best *vftv1.Node
	for _, n := range nodes {
		if n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE || !slices.Contains(n.GetImages(), image) {
			continue
		}
		if slices.Contains(wished, n.GetId()) {
			return n, nil
		}
		if best == nil || best.GetDrained() != "" {
			best = n
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no node that is alive holds image %s, which the job's guests boot from: copy it into the nodes' image caches (`vft image ls` shows what is there)", image)
	}
	return best, nil
}

// send sends a file in messages.
func send(put func(*vftv1.ImportFileRequest) error, in io.Reader) error {
	buf := make([]byte, transferChunk)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if err := put(&vftv1.ImportFileRequest{Data: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// resumeJob has an imported job go on, and waits until it does.
func resumeJob(ctx context.Context, c *client.Client, j *vftv1.Job, epoch uint64, on []string) (*vftv1.Job, error) {
	var token [8]byte
	_, _ = rand.Read(token[:]) // never fails
	j, err := c.ResumeJob(ctx, j.GetSpec().GetId(), epoch, on, hex.EncodeToString(token[:]))
	if err != nil {
		return nil, err
	}
	return awaitRunning(ctx, c, j)
}
