package sidecar

import (
	"slices"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/access/accesstest"
)

func TestWhoMayCallASidecar(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	place(t, s, "job", 2).spec.Owner = "user:alice"
	place(t, s, "old", 2)
	callers := map[string]access.Identity{
		"owner": {Kind: access.User, Name: "alice"}, "other": {Kind: access.User, Name: "bob"},
		"admin": {Kind: access.Admin, Name: "alice"}, "node": {Kind: access.Node, Name: "n2"}, "nobody": {},
		"a node called like the owner": {Kind: access.Node, Name: "alice"},
	}
	nodes := []string{"node", "a node called like the owner"}
	owner := []string{"owner", "admin"}
	want := map[string][]string{
		"Attach": owner, "SignalProgram": append(slices.Clone(nodes), owner...), "Collect": owner, "ShowNetwork": owner, "TapNetwork": owner,
		"PutBlob": {"owner", "other", "admin"}, "ExportEpoch": {"owner", "other", "admin"}, "ImportFile": {"owner", "other", "admin"}, "NodeInfo": append([]string{"admin"}, nodes...), "StoreUsage": append([]string{"admin"}, nodes...),
	}
	for _, m := range []string{
		"BootGuests", "StartProgram", "RestoreGuests", "ContinueGuests", "KillGuests",
		"Prepare", "Hold", "Cut", "Release", "WaitParts", "AbortEpoch", "DeleteParts",
		"PrepareMove", "CutMove", "FinishMove", "AbortMove", "SendGuest",
		"SecurePart", "ListParts", "RemoveEpochs", "VerifyPart", "CollectStore", "GetBlob", "GetManifest", "GetObjects",
	} {
		want[m] = nodes
	}
	table := NewService(s).Access()
	service := vftv1.File_vft_v1_sidecar_proto.Services().ByName("SidecarService")
	accesstest.Check(t, service, table, callers, want, func(_ string, request proto.Message) {
		m := request.ProtoReflect()
		if f := m.Descriptor().Fields().ByName("job"); f != nil && f.Kind() == protoreflect.StringKind {
			m.Set(f, protoreflect.ValueOfString("job"))
		}
		if f := m.Descriptor().Fields().ByName("incarnation"); f != nil {
			m.Set(f, protoreflect.ValueOfUint64(2))
		}
	})

	attach := func(who string, job string) error {
		return table["Attach"](t.Context(), callers[who], &vftv1.AttachRequest{Job: job, Incarnation: 2})
	}
	assert.ErrorContains(t, attach("other", "job"), "you are user:bob, and job job belongs to user:alice")
	require.NoError(t, attach("admin", "old"))
	assert.ErrorContains(t, attach("owner", "old"), "belongs to nobody")
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(attach("other", "unknown")), "as for everybody")
}
