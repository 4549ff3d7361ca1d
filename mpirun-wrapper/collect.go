package wrapper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// collector brings files that the job wrote in its working directory back.
// When several guests wrote a file of the same name the one of the guest with
// the lowest index stays.
type collector struct {
	dir     string
	job     string
	sidecar func(string) vftv1connect.SidecarServiceClient

	mu          sync.Mutex // one collection at a time
	incarnation uint64
	tokens      map[uint32]string // of the last collection, by guest
	owner       map[string]uint32 // whose file is here, by name
}

// placement is where an incarnation's guests are.
type placement struct {
	incarnation uint64
	sidecars    []string // address by guest index; empty: not known
}

// fileError lists files that could not be written here; all others were.
type fileError struct{ err error }

func (e *fileError) Error() string { return e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// collect takes what changed from all guests, guest 0 last.
func (c *collector) collect(ctx context.Context, at placement) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.incarnation != c.incarnation || c.tokens == nil {
		// The guests went back to an earlier state: take everything again.
		c.incarnation, c.tokens, c.owner = at.incarnation, map[uint32]string{}, map[string]uint32{}
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return &fileError{fmt.Errorf("opening the working directory: %w", err)}
	}
	defer func() { _ = root.Close() }()
	var files []error
	for i := len(at.sidecars) - 1; i >= 0; i-- {
		err := c.guest(ctx, root, at, uint32(i))
		var local *fileError
		switch {
		case errors.As(err, &local):
			files = append(files, err)
		case err != nil:
			return fmt.Errorf("bringing files back from guest %d: %w", i, err)
		}
	}
	if len(files) > 0 {
		return &fileError{errors.Join(files...)}
	}
	return nil
}

func (c *collector) guest(ctx context.Context, root *os.Root, at placement, guest uint32) error {
	address := at.sidecars[guest]
	if address == "" {
		return connect.NewError(connect.CodeUnavailable, errors.New("its node is not known"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.sidecar(address).Collect(ctx, connect.NewRequest(&vftv1.CollectRequest{
		Job: c.job, Incarnation: at.incarnation, Guest: guest, Token: c.tokens[guest],
	}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	in := &collectReader{stream: stream}
	err = untar(root, c.dir, in, func(name string) bool {
		if owner, taken := c.owner[name]; taken && owner < guest {
			return false
		}
		c.owner[name] = guest
		return true
	})
	if in.err != nil {
		return in.err
	}
	var broken *archiveError
	if errors.As(err, &broken) {
		return err
	}
	c.tokens[guest] = in.token
	if err != nil {
		return &fileError{err}
	}
	return nil
}

// collectReader reads the archive in a Collect stream.
type collectReader struct {
	stream *connect.ServerStreamForClient[vftv1.CollectResponse]
	data   []byte
	token  string
	err    error
}

func (r *collectReader) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		if !r.stream.Receive() {
			if r.err = r.stream.Err(); r.err != nil {
				return 0, r.err
			}
			return 0, io.EOF
		}
		r.data = r.stream.Msg().GetData()
		if t := r.stream.Msg().GetToken(); t != "" {
			r.token = t
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
