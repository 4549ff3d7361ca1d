package sidecar

import (
	"context"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
)

// Attach carries mpirun's standard streams between a client and guest 0. The
// sidecar keeps nothing of them: output stays in the guest until the client
// has acknowledged it, input with the client until the guest asks for it. So
// neither end loses a byte when this process, or the node, goes away.
func (h *Service) Attach(ctx context.Context, stream *connect.BidiStream[vftv1.AttachRequest, vftv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return coded(fmt.Errorf("attaching: %w", err))
	}
	g, err := h.program(first.GetJob(), first.GetIncarnation())
	if err != nil {
		return coded(err)
	}
	a := &attachment{agent: g.agent, stream: stream}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Receive ends only with the stream, so it is not waited for: it ends when
	// this handler has returned. Acknowledgements must not wait behind input
	// that the program does not read, or its output would stall.
	acks := make(chan *vftv1.AttachAck, 1)
	inputs := newInputQueue()
	gone := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Receive()
			if err != nil {
				gone <- err
				return
			}
			if ack := req.GetAck(); ack != nil {
				latest(acks, ack)
			}
			if in := req.GetInput(); in != nil {
				inputs.put(in)
			}
		}
	}()
	eg, gctx := errgroup.WithContext(ctx)
	eg.Go(func() error {
		defer cancel() // the exit is the last thing a client is told
		return a.output(gctx, first)
	})
	eg.Go(func() error { return a.input(gctx, inputs) })
	eg.Go(func() error { return a.acknowledge(gctx, acks) })
	eg.Go(func() error {
		select {
		case <-gctx.Done():
			return nil
		case err := <-gone:
			return fmt.Errorf("the client went away: %w", err)
		}
	})
	err = eg.Wait()
	if a.exited {
		return nil
	}
	return coded(err)
}

// attachment is one client's connection to the program.
type attachment struct {
	agent  *guest.Client
	exited bool

	mu     sync.Mutex // sends
	stream *connect.BidiStream[vftv1.AttachRequest, vftv1.AttachResponse]
}

func (a *attachment) send(m *vftv1.AttachResponse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stream.Send(m)
}

// output passes the program's output and its exit on to the client.
func (a *attachment) output(ctx context.Context, first *vftv1.AttachRequest) error {
	out, err := a.agent.Output(ctx, connect.NewRequest(&agentv1.OutputRequest{
		Id: programID, StdoutOffset: uint64(first.GetStdoutOffset()), StderrOffset: uint64(first.GetStderrOffset()),
	}))
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // what matters came by Receive
	for out.Receive() {
		if c := out.Msg().GetChunk(); c != nil {
			kind := vftv1.StreamKind_STREAM_KIND_STDOUT
			if c.GetStream() == agentv1.Stream_STREAM_STDERR {
				kind = vftv1.StreamKind_STREAM_KIND_STDERR
			}
			if err := a.send(&vftv1.AttachResponse{Message: &vftv1.AttachResponse_Output{Output: &vftv1.AttachOutput{
				Stream: kind, Offset: int64(c.GetOffset()), Data: c.GetData(),
			}}}); err != nil {
				return err
			}
		}
		if e := out.Msg().GetExit(); e != nil {
			a.exited = true
			return a.send(&vftv1.AttachResponse{Message: &vftv1.AttachResponse_Exit{Exit: &vftv1.AttachExit{
				Code: e.GetCode(), Signal: e.GetSignal(),
				StdoutTotal: int64(e.GetStdoutTotal()), StderrTotal: int64(e.GetStderrTotal()),
			}}})
		}
	}
	if err := out.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// latest replaces what waits in a channel of one: only the last one matters.
// The channel has one sender.
func latest[T any](ch chan T, v T) {
	select {
	case <-ch:
	default:
	}
	ch <- v
}

// inputLimit bounds the input kept for a program that does not read it. What
// does not fit is dropped: the client sends it again when it is wanted.
const inputLimit = 1 << 20

// inputQueue holds input that has come and that the guest has not taken yet.
type inputQueue struct {
	mu    sync.Mutex
	bytes int
	items []*vftv1.AttachInput
	ready chan struct{}
}

func newInputQueue() *inputQueue { return &inputQueue{ready: make(chan struct{}, 1)} }

func (q *inputQueue) put(in *vftv1.AttachInput) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes+cost(in) > inputLimit && len(q.items) > 0 {
		return
	}
	q.items = append(q.items, in)
	q.bytes += cost(in)
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// cost of keeping a message, so that empty ones are bounded too.
func cost(in *vftv1.AttachInput) int { return max(len(in.GetData()), 64) }

// get waits for the next input, or returns nil when ctx ends.
func (q *inputQueue) get(ctx context.Context) *vftv1.AttachInput {
	for {
		q.mu.Lock()
		if len(q.items) > 0 {
			in := q.items[0]
			q.items = q.items[1:]
			q.bytes -= cost(in)
			q.mu.Unlock()
			return in
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-q.ready:
		}
	}
}

// acknowledge lets the guest forget what the client has shown.
func (a *attachment) acknowledge(ctx context.Context, acks <-chan *vftv1.AttachAck) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ack := <-acks:
			if _, err := a.agent.AckOutput(ctx, connect.NewRequest(&agentv1.AckOutputRequest{
				Id: programID, StdoutOffset: uint64(ack.GetStdout()), StderrOffset: uint64(ack.GetStderr()),
			})); err != nil {
				return err
			}
		}
	}
}

// input asks the client for standard input as the program takes it.
func (a *attachment) input(ctx context.Context, inputs *inputQueue) error {
	state, err := a.agent.StdinState(ctx, connect.NewRequest(&agentv1.StdinStateRequest{Id: programID}))
	if err != nil {
		return err
	}
	offset, closed := state.Msg.GetOffset(), state.Msg.GetClosed()
	for !closed {
		if err := a.want(offset); err != nil {
			return err
		}
		in := inputs.get(ctx)
		if in == nil {
			return nil
		}
		if uint64(in.GetOffset()) > offset {
			continue // a piece before it was dropped; asked for again above
		}
		resp, err := a.agent.WriteStdin(ctx, connect.NewRequest(&agentv1.WriteStdinRequest{
			Id: programID, Offset: uint64(in.GetOffset()), Data: in.GetData(), Eof: in.GetEof(),
		}))
		if err != nil {
			return err
		}
		offset, closed = resp.Msg.GetOffset(), resp.Msg.GetClosed()
	}
	return nil
}

func (a *attachment) want(offset uint64) error {
	return a.send(&vftv1.AttachResponse{Message: &vftv1.AttachResponse_Want{Want: &vftv1.AttachWant{Offset: int64(offset)}}})
}
