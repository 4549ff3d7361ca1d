package access

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// Rule decides whether who may make a call. The request is that of the call,
// the first one where there are several; a rule may complete it, so that the
// method acts on what the rule has looked at. Its error is the caller's answer.
type Rule func(ctx context.Context, who Identity, request proto.Message) error

// Table has a rule for every method of a service, by the method's name.
// A method without one is open to nobody.
type Table map[string]Rule

// Only lets some kinds in.
func Only(kinds ...Kind) Rule {
	return func(_ context.Context, who Identity, _ proto.Message) error {
		if !slices.Contains(kinds, who.Kind) {
			return Denied(who, "this is for "+among(kinds)+" only")
		}
		return nil
	}
}

func among(kinds []Kind) string {
	words := map[Kind]string{Node: "nodes", User: "users", Admin: "administrators"}
	var out []string
	for _, k := range kinds {
		out = append(out, words[k])
	}
	return strings.Join(out, " and ")
}

// Denied is the answer to who may not.
func Denied(who Identity, why string) error {
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("permission denied: you are %s, and %s", name(who), why))
}

// NotOwner is the answer to somebody who is not the owner of a job.
func NotOwner(who Identity, job, owner string) error {
	if owner == "" {
		return Denied(who, fmt.Sprintf("job %s belongs to nobody: only administrators may see it and act on it", job))
	}
	return Denied(who, fmt.Sprintf("job %s belongs to %s", job, owner))
}

func name(who Identity) string {
	if who == (Identity{}) {
		return "nobody that this cluster knows"
	}
	return who.String()
}

// Interceptor applies the table to all calls of a service that come in.
func Interceptor(rules Table) connect.Interceptor { return interceptor{rules} }

type interceptor struct{ rules Table }

func (i interceptor) check(ctx context.Context, procedure string, request any) error {
	who := From(ctx)
	method := procedure[strings.LastIndexByte(procedure, '/')+1:]
	rule := i.rules[method]
	message, ok := request.(proto.Message)
	if rule == nil || !ok {
		return Denied(who, "there is no rule for "+method)
	}
	return rule(ctx, who, message)
}

// WrapUnary implements connect.Interceptor.
func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if !req.Spec().IsClient {
			if err := i.check(ctx, req.Spec().Procedure, req.Any()); err != nil {
				return nil, err
			}
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. The rule sees the first
// message before the method does, and nothing is sent before that.
func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return next(ctx, &guarded{StreamingHandlerConn: conn, check: func(m any) error {
			return i.check(ctx, conn.Spec().Procedure, m)
		}})
	}
}

// guarded is a stream that is checked by its first message.
type guarded struct {
	connect.StreamingHandlerConn
	check  func(any) error
	passed bool // written before the handler can have begun to send
}

// Receive implements connect.StreamingHandlerConn.
func (g *guarded) Receive(m any) error {
	if err := g.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	if g.passed {
		return nil
	}
	if err := g.check(m); err != nil {
		return err
	}
	g.passed = true
	return nil
}

// Send implements connect.StreamingHandlerConn.
func (g *guarded) Send(m any) error {
	if !g.passed {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("%s answers before it was asked", g.Spec().Procedure))
	}
	return g.StreamingHandlerConn.Send(m)
}
