package sidecar

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/mpirun-vft/vft/internal/access"
)

// Access is who may call what of SidecarService (docs/CLUSTER.md). The leader
// calls with its node's certificate.
func (h *Service) Access() access.Table {
	nodes := access.Only(access.Node)
	owner := h.ownerOf
	return access.Table{
		"BootGuests":     nodes,
		"StartProgram":   nodes,
		"RestoreGuests":  nodes,
		"ContinueGuests": nodes,
		"KillGuests":     nodes,
		"Prepare":        nodes,
		"Hold":           nodes,
		"Cut":            nodes,
		"Release":        nodes,
		"WaitParts":      nodes,
		"AbortEpoch":     nodes,
		"DeleteParts":    nodes,
		"PrepareMove":    nodes,
		"CutMove":        nodes,
		"FinishMove":     nodes,
		"AbortMove":      nodes,
		"SendGuest":      nodes,
		"SecurePart":     nodes,
		"ListParts":      nodes,
		"RemoveEpochs":   nodes,
		"VerifyPart":     nodes,
		"CollectStore":   nodes,
		"GetBlob":        nodes,
		"GetManifest":    nodes,
		"GetObjects":     nodes,
		"Attach":         owner,
		"SignalProgram":  nodesOr(owner), // the leader, too, asks a program to end
		"Collect":        owner,
		"ShowNetwork":    owner,
		"TapNetwork":     owner,
		"PutBlob":        access.Only(access.User, access.Admin),
		"ExportEpoch":    access.Only(access.User, access.Admin), // and the leader is asked
		"ImportFile":     access.Only(access.User, access.Admin), // likewise
		"NodeInfo":       access.Only(access.Node, access.Admin),
		"StoreUsage":     access.Only(access.Node, access.Admin),
	}
}

// nodesOr lets in nodes and whom the rule lets in.
func nodesOr(rule access.Rule) access.Rule {
	return func(ctx context.Context, who access.Identity, request proto.Message) error {
		if who.Kind == access.Node {
			return nil
		}
		return rule(ctx, who, request)
	}
}

// ofIncarnation is a request about a job's guests of one incarnation.
type ofIncarnation interface {
	GetJob() string
	GetIncarnation() uint64
}

// ownerOf lets in the owner of the job that the request is about, and admins.
func (h *Service) ownerOf(ctx context.Context, who access.Identity, request proto.Message) error {
	if err := access.Only(access.User, access.Admin)(ctx, who, request); err != nil {
		return err
	}
	req, ok := request.(ofIncarnation)
	if !ok {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("%s names no job", request.ProtoReflect().Descriptor().FullName()))
	}
	inc, err := h.s.enter(req.GetJob(), req.GetIncarnation(), nil)
	if err != nil {
		return coded(err)
	}
	owner := inc.spec.GetOwner()
	if who.Kind == access.Admin || who.Kind == access.User && who.String() == owner {
		return nil
	}
	return access.NotOwner(who, inc.job, owner)
}
