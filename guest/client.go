package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/agent/v1/agentv1connect"
)

// Client talks to the agent of one guest. All methods may be called from
// several goroutines. After a failure of the line the next call dials again;
// every call of the agent may be repeated.
type Client struct {
	agentv1connect.AgentServiceClient

	line *line
}

// ErrClientClosed is returned by calls after Close.
var ErrClientClosed = errors.New("the guest's client is closed")

// DialUnix returns a client for the agent behind QEMU's socket at path. It
// dials with the first call. QEMU serves one connection at a time: use one
// client per guest.
func DialUnix(path string) *Client {
	return NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// NewClient returns a client that gets the host's end of the serial line from
// dial. An earlier line is closed before dial is called again.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	l := newLine(dial)
	return &Client{
		AgentServiceClient: agentv1connect.NewAgentServiceClient(
			&http.Client{Transport: l}, "http://guest", connect.WithReadMaxBytes(16<<20),
			connect.WithAcceptCompression("gzip", nil, nil)), // a guest must not spend its time on gzip
		line: l,
	}
}

// Reset drops the session, for example because the guest was restored; the
// next call opens another. Calls under way fail with code unavailable.
func (c *Client) Reset() { c.line.reset(false) }

// Close ends the session and all calls.
func (c *Client) Close() error {
	c.line.reset(true)
	return nil
}

// WaitReady repeats Hello until the agent answers or ctx ends.
func (c *Client) WaitReady(ctx context.Context) (*agentv1.HelloResponse, error) {
	for {
		res, err := c.Hello(ctx, connect.NewRequest(&agentv1.HelloRequest{}))
		if err == nil {
			return res.Msg, nil
		}
		if errors.Is(err, ErrClientClosed) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the guest's agent: %w (last answer: %w)", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// StageTar sends a tar stream to be unpacked in the guest.
func (c *Client) StageTar(ctx context.Context, r io.Reader) (*agentv1.StageResponse, error) {
	stream := c.Stage(ctx)
	buf := make([]byte, 128<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if serr := stream.Send(&agentv1.StageRequest{Data: buf[:n]}); serr != nil && !errors.Is(serr, io.EOF) {
				return nil, fmt.Errorf("stage files into the guest: %w", serr)
			} else if serr != nil {
				break // the answer says why
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read what is to be staged: %w", err)
		}
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		return nil, fmt.Errorf("stage files into the guest: %w", err)
	}
	return res.Msg, nil
}

// CollectTar writes the tar of what changed below dir since token (empty:
// since staging) to w.
func (c *Client) CollectTar(ctx context.Context, dir, token string, w io.Writer) (*agentv1.CollectDone, error) {
	stream, err := c.Collect(ctx, connect.NewRequest(&agentv1.CollectRequest{Dir: dir, Token: token}))
	if err != nil {
		return nil, fmt.Errorf("collect %s from the guest: %w", dir, err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if done := stream.Msg().GetDone(); done != nil {
			return done, nil
		}
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return nil, fmt.Errorf("write what was collected: %w", err)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, fmt.Errorf("collect %s from the guest: %w", dir, err)
	}
	return nil, fmt.Errorf("collect %s from the guest: %w", dir, io.ErrUnexpectedEOF)
}

// Run runs a short command in the guest to its end.
func (c *Client) Run(ctx context.Context, argv ...string) (*agentv1.ExecResponse, error) {
	res, err := c.Exec(ctx, connect.NewRequest(&agentv1.ExecRequest{Argv: argv}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}
