package access

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]Identity{
		"node:n1": {Node, "n1"}, "user:alice": {User, "alice"}, "admin:lab": {Admin, "lab"}, "user:uid1000": {User, "uid1000"},
		"node:rack-1.example_7": {Node, "rack-1.example_7"},
	} {
		id, err := Parse(name)
		require.NoError(t, err)
		assert.Equal(t, want, id)
		assert.Equal(t, name, id.String())
	}
	for _, name := range []string{
		"", "alice", "client:alice", "node:", "user", "user:a/b", "user:..", "user:-x", "user:a b", "user:admin:x", "Node:n1",
		"user:" + strings.Repeat("x", 65), "user:ä",
	} {
		_, err := Parse(name)
		assert.ErrorIs(t, err, ErrName, name)
	}
}

// services counts what reaches it.
type services struct {
	vftv1connect.UnimplementedSidecarServiceHandler
	reached []string
}

func (s *services) NodeInfo(context.Context, *connect.Request[vftv1.NodeInfoRequest]) (*connect.Response[vftv1.NodeInfoResponse], error) {
	s.reached = append(s.reached, "NodeInfo")
	return connect.NewResponse(&vftv1.NodeInfoResponse{}), nil
}

func (s *services) TapNetwork(_ context.Context, _ *connect.Request[vftv1.TapNetworkRequest], stream *connect.ServerStream[vftv1.TapNetworkResponse]) error {
	s.reached = append(s.reached, "TapNetwork")
	return stream.Send(&vftv1.TapNetworkResponse{})
}

func (s *services) PutBlob(_ context.Context, stream *connect.ClientStream[vftv1.PutBlobRequest]) (*connect.Response[vftv1.PutBlobResponse], error) {
	if !stream.Receive() {
		return nil, stream.Err()
	}
	s.reached = append(s.reached, "PutBlob")
	return connect.NewResponse(&vftv1.PutBlobResponse{}), nil
}

func (s *services) Attach(_ context.Context, stream *connect.BidiStream[vftv1.AttachRequest, vftv1.AttachResponse]) error {
	if _, err := stream.Receive(); err != nil {
		return err
	}
	s.reached = append(s.reached, "Attach")
	return stream.Send(&vftv1.AttachResponse{})
}

// SignalProgram and Collect have no rule here.
func (s *services) SignalProgram(context.Context, *connect.Request[vftv1.SignalProgramRequest]) (*connect.Response[vftv1.SignalProgramResponse], error) {
	s.reached = append(s.reached, "SignalProgram")
	return connect.NewResponse(&vftv1.SignalProgramResponse{}), nil
}

func (s *services) Collect(_ context.Context, _ *connect.Request[vftv1.CollectRequest], stream *connect.ServerStream[vftv1.CollectResponse]) error {
	s.reached = append(s.reached, "Collect")
	return stream.Send(&vftv1.CollectResponse{})
}

// Every kind of call is stopped before the method runs, and let through with
// the first message whole.
func TestInterceptor(t *testing.T) {
	alice := Identity{User, "alice"}
	refuse := errors.New("no")
	var asked []proto.Message
	ok := func(_ context.Context, who Identity, m proto.Message) error {
		asked = append(asked, m)
		if who != alice {
			return Denied(who, refuse.Error())
		}
		return nil
	}
	rules := Table{"NodeInfo": ok, "TapNetwork": ok, "PutBlob": ok, "Attach": ok}
	var who Identity
	h := &services{}
	mux := http.NewServeMux()
	path, handler := vftv1connect.NewSidecarServiceHandler(h, connect.WithInterceptors(Interceptor(rules)))
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(With(r.Context(), who)))
	}))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	client := vftv1connect.NewSidecarServiceClient(server.Client(), server.URL)
	calls := map[string]func() error{
		"NodeInfo": func() error {
			_, err := client.NodeInfo(t.Context(), connect.NewRequest(&vftv1.NodeInfoRequest{}))
			return err
		},
		"TapNetwork": func() error {
			s, err := client.TapNetwork(t.Context(), connect.NewRequest(&vftv1.TapNetworkRequest{Job: "j"}))
			require.NoError(t, err)
			defer func() { _ = s.Close() }()
			if s.Receive() {
				return nil
			}
			return s.Err()
		},
		"PutBlob": func() error {
			s := client.PutBlob(t.Context())
			if err := s.Send(&vftv1.PutBlobRequest{Blob: &vftv1.Blob{Digest: "d"}}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_, err := s.CloseAndReceive()
			return err
		},
		"Attach": func() error {
			s := client.Attach(t.Context())
			defer func() { _, _ = s.CloseRequest(), s.CloseResponse() }()
			if err := s.Send(&vftv1.AttachRequest{Job: "j"}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_, err := s.Receive()
			return err
		},
		"SignalProgram": func() error {
			_, err := client.SignalProgram(t.Context(), connect.NewRequest(&vftv1.SignalProgramRequest{}))
			return err
		},
		"Collect": func() error {
			s, err := client.Collect(t.Context(), connect.NewRequest(&vftv1.CollectRequest{}))
			require.NoError(t, err)
			defer func() { _ = s.Close() }()
			if s.Receive() {
				return nil
			}
			return s.Err()
		},
	}
	for name, call := range calls {
		h.reached, asked = nil, nil
		who = alice
		err := call()
		if rules[name] == nil {
			assert.ErrorContains(t, err, "there is no rule for "+name)
			assert.Empty(t, h.reached)
			continue
		}
		require.NoError(t, err, name)
		assert.Equal(t, []string{name}, h.reached)
		require.Len(t, asked, 1)
		if m, ok := asked[0].(interface{ GetJob() string }); ok {
			assert.Equal(t, "j", m.GetJob())
		}
		for _, who = range []Identity{{}, {User, "bob"}} {
			h.reached = nil
			err := call()
			assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%s: %v", name, err)
			assert.Empty(t, h.reached, name)
		}
	}
}
