// Package accesstest checks a service's table of rules: that every method has
// one, and who passes it.
package accesstest

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mpirun-vft/vft/internal/access"
)

// Check asks the table about every method of the service for each of the
// callers, by a name for each. Want says who passes, by method. Fill makes the
// request of a method one that only the rule can object to. Callers that are
// refused must be told so with permission_denied and who they are.
func Check(t *testing.T, service protoreflect.ServiceDescriptor, table access.Table, callers map[string]access.Identity,
	want map[string][]string, fill func(method string, request proto.Message),
) {
	t.Helper()
	methods := map[string]bool{}
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		name := string(m.Name())
		methods[name] = true
		rule := table[name]
		if !assert.NotNil(t, rule, "%s has no rule: say in the table, here and in docs/CLUSTER.md who may call it", name) {
			continue
		}
		if !assert.Contains(t, want, name, "%s is not in this test's table", name) {
			continue
		}
		kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
		require.NoError(t, err)
		for caller, who := range callers {
			request := kind.New().Interface()
			fill(name, request)
			err := rule(t.Context(), who, request)
			pass := false
			for _, w := range want[name] {
				pass = pass || w == caller
			}
			if pass {
				assert.NoError(t, err, "%s by %s", name, caller)
				continue
			}
			assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%s by %s: %v", name, caller, err)
			if who != (access.Identity{}) {
				assert.ErrorContains(t, err, who.String(), "%s by %s", name, caller)
			}
		}
	}
	for name := range table {
		assert.True(t, methods[name], "there is a rule for %s, which is no method", name)
	}
	for name := range want {
		assert.True(t, methods[name], "the test knows %s, which is no method", name)
	}
}
