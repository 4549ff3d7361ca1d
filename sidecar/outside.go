package sidecar

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/ckpt/level/outside"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// outsideLevels are the levels outside the nodes that the node has used.
type outsideLevels struct {
	dirs []string // at or below which levels may be
	node string
	opt  outside.Options

	mu   sync.Mutex
	open map[level.Spec]*outside.Level
}

// errNoLevel means that the node cannot keep a level.
var errNoLevel = errors.New("cannot keep")

// get opens a level, if it may.
func (o *outsideLevels) get(spec level.Spec) (*outside.Level, error) {
	where := spec
	if spec.Kind == level.KindDir {
		path, err := o.allowed(spec.Path)
		if err != nil {
			return nil, err
		}
		where.Path = path
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.open[where]; l != nil {
		return l, nil
	}
	l, err := outside.Open(where, o.opt)
	if err != nil {
		return nil, err
	}
	if o.open == nil {
		o.open = map[level.Spec]*outside.Level{}
	}
	o.open[where] = l
	return l, nil
}

// allowed returns where a directory really is, if that is at or below one that
// the node's operator has named: jobs say where checkpoints go, and the daemon
// may write where they may not.
func (o *outsideLevels) allowed(path string) (string, error) {
	there, err := filepath.EvalSymlinks(path)
	if err != nil {
		there = path // opening it says what is wrong, if it may be opened at all
	}
	for _, d := range o.dirs {
		if r, err := filepath.EvalSymlinks(d); err == nil {
			d = r
		}
		if there == d || strings.HasPrefix(there, strings.TrimSuffix(d, "/")+"/") {
			return there, nil
		}
	}
	at := path
	if there != path {
		at += ", which is " + there
	}
	return "", fmt.Errorf("node %s %w level dir:%s: its operator can allow it by naming the directory, or one above it, in level_directories of the node's node.json (docs/CLI.md)",
		o.node, errNoLevel, at)
}

// names says what the node can keep, for the leader.
func (o *outsideLevels) names() []string {
	all := []string{string(level.KindS3)}
	for _, d := range o.dirs {
		all = append(all, string(level.KindDir)+":"+d)
	}
	return all
}

func (o *outsideLevels) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, l := range o.open {
		errs = append(errs, l.Close())
	}
	o.open = nil
	return errors.Join(errs...)
}

// outsideAt opens a level by its text.
func (s *Sidecar) outsideAt(text string) (*outside.Level, error) {
	l, err := level.Parse(text)
	switch {
	case err != nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	case l.Kind == level.KindRS:
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("node %s %w level %s: shards are not implemented", s.cfg.Node.GetId(), errNoLevel, l))
	case l.Kind != level.KindDir && l.Kind != level.KindS3:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("level %s is not outside the nodes", l))
	}
	return s.outside.get(l)
}

// putPart stores a part at a level outside. When the node's own copy is not
// whole, it is mended from elsewhere first.
func (s *Sidecar) putPart(ctx context.Context, id ckpt.PartID, req *vftv1.SecurePartRequest) (int64, error) {
	l, err := s.outsideAt(req.GetLevel())
	if err != nil {
		return 0, err
	}
	if err := s.cfg.Faults.Hit(ctx, "sidecar.part.before-level"); err != nil {
		return 0, err
	}
	manifest := req.GetPart().GetManifest()
	sent, err := l.Put(ctx, s.parts, id, manifest, req.GetBandwidth())
	if !errors.Is(err, ckpt.ErrNotFound) && !errors.Is(err, ckpt.ErrCorrupt) && !errors.Is(err, object.ErrCorrupt) {
		return sent, err
	}
	s.log.Warn("a part is not whole here; it is mended before it goes to a level", "part", id.String(), "level", req.GetLevel(), "err", err)
	if _, err := s.fetchPart(ctx, id, req.GetPart(), 0); err != nil {
		return sent, err
	}
	// What is good in damaged packs moves to others.
	if _, err := s.collect(ctx); err != nil {
		return sent, err
	}
	more, err := l.Put(ctx, s.parts, id, manifest, req.GetBandwidth())
	return sent + more, err
}

// removeEpochs removes epochs of a job from a level outside.
func (s *Sidecar) removeEpochs(ctx context.Context, req *vftv1.RemoveEpochsRequest) error {
	l, err := s.outsideAt(req.GetLevel())
	if err != nil {
		return err
	}
	return l.Remove(ctx, req.GetJob(), req.GetEpochs())
}

// verifyOutside reads every byte of a part at a level outside.
func (s *Sidecar) verifyOutside(ctx context.Context, req *vftv1.VerifyPartRequest) (*vftv1.VerifyPartResponse, error) {
	l, err := s.outsideAt(req.GetLevel())
	if err != nil {
		return nil, err
	}
	id := partIDOf(req.GetJob(), req.GetPart())
	read, err := l.Verify(ctx, id, req.GetPart().GetManifest())
	return &vftv1.VerifyPartResponse{Bytes: read}, err
}

// collectOutside frees what no part needs at a level outside.
func (s *Sidecar) collectOutside(ctx context.Context, text string) (int64, error) {
	l, err := s.outsideAt(text)
	if err != nil {
		return 0, err
	}
	return l.Collect(ctx)
}
