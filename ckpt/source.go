package ckpt

import (
	"context"

	"github.com/mpirun-vft/vft/ckpt/object"
)

// Source is where a part, or what is missing of it, can be had: other nodes.
// Its methods may be called from several goroutines at once. What it gives is
// verified by whoever asks.
type Source interface {
	// Manifest returns the bytes of the manifest of a part that has this digest.
	Manifest(ctx context.Context, id PartID, digest string) ([]byte, error)
	// Objects calls got with extents until all objects with these ids, of one
	// kind, have been in one; there may be others besides. An ErrTransfer of
	// got says that an extent was bad: the source may give these objects from
	// elsewhere. Any other error of got is to be returned. An extent is valid
	// during the call.
	Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error
}

// Manifest implements Source for other nodes: it returns the manifest of a
// stored part.
func (s *Store) Manifest(_ context.Context, id PartID, digest string) ([]byte, error) {
	m, err := s.named(id, digest)
	if err != nil {
		return nil, err
	}
	return m.raw, nil
}

// Objects implements Source for other nodes.
func (s *Store) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	if err := s.alive(); err != nil {
		return err
	}
	return s.objects.Extents(ctx, kind, ids, got)
}
