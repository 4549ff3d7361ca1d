// Package outside keeps parts at levels outside the nodes: directories that all
// nodes see, and buckets. docs/CKPT.md, "Outside the nodes", says what lies
// there and why parts may be put and packs be collected at the same time.
//
// [Level.Put] copies a part of a node's store there, [Level.Source] gives it
// back to any node's store, which verifies it like what comes from other nodes.
package outside

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/backend/dir"
	"github.com/mpirun-vft/vft/ckpt/level/backend/s3"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// ErrGone means that a level answered, and that what was asked for is not there
// or damaged: to ask again would not help.
var ErrGone = errors.New("not there, or damaged")

// Fault points of this package, in the order in which they are passed.
const (
	FaultBeforePack   = "ckpt.level.before-pack"   // before each pack that is sent
	FaultBeforePart   = "ckpt.level.before-part"   // all packs are there, the part is not
	FaultBeforeDelete = "ckpt.level.before-delete" // a collection has decided what to delete
)

// What the names of objects begin with.
const (
	packsPrefix      = "packs/"
	partsPrefix      = "parts/"
	claimsPrefix     = "claims/"
	collectingPrefix = "collecting/"
	damagedPrefix    = "damaged/"
)

// Options are what may be chosen about a level. The zero value is usable.
type Options struct {
	// Now gives the time to which the ages of objects are compared. Nil: time.Now.
	Now func() time.Time
	// Log gets what went wrong without failing a call. Nil: nothing is logged.
	Log *slog.Logger
	// Faults are for tests. Nil: none.
	Faults *faultpoint.Set
}

// Level is a place outside the nodes that keeps parts. Its methods may be called
// at the same time, from several processes.
type Level struct {
	b   backend.Backend
	opt Options

	mu      sync.Mutex
	sending map[object.PackName]chan struct{} // closed when it is over
}

// New makes a level of a backend, which it takes over.
func New(b backend.Backend, opt Options) *Level {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.Log = opt.Log.With("place", b.String())
	return &Level{b: b, opt: opt, sending: map[object.PackName]chan struct{}{}}
}

// Open opens the level that spec names, a directory or a bucket. Credentials of
// a bucket come from the environment of this process (package s3). The level
// must be closed. Errors to decide on: backend.ErrLost when the directory is
// missing.
func Open(spec level.Spec, opt Options) (*Level, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	var b backend.Backend
	var err error
	switch spec.Kind {
	case level.KindDir:
		b, err = dir.Open(fsys.OS{}, spec.Path, opt.Now)
	case level.KindS3:
		b, err = s3.New(s3.Config{Endpoint: spec.Endpoint, Region: spec.Region, Bucket: spec.Bucket, Prefix: spec.Prefix}, opt.Now)
	default:
		err = fmt.Errorf("level %s is not outside the nodes", spec)
	}
	if err != nil {
		return nil, err
	}
	return New(b, opt), nil
}

// String names the place for people.
func (l *Level) String() string { return l.b.String() }

// Close frees what the level holds. No method may be running.
func (l *Level) Close() error { return l.b.Close() }

// put stores a small object.
func (l *Level) put(ctx context.Context, name string, content string) error {
	return l.b.Put(ctx, name, int64(len(content)), strings.NewReader(content))
}

// announce stores an object that stands for something that goes on, and returns
// what removes it. What a crash leaves is passed over after some time.
func (l *Level) announce(ctx context.Context, prefix, content string) (over func(), err error) {
	name := prefix + rand.Text()
	if err := l.put(ctx, name, content); err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
		defer cancel()
		if err := l.b.Delete(ctx, name); err != nil {
			l.opt.Log.Warn("an announcement stays until a collection removes it", "object", name, "err", err)
		}
	}, nil
}

// tidyTimeout bounds the removal of an announcement, also when the call that
// made it was ended.
const tidyTimeout = 10 * time.Second

// suspect notes that damage was found in a pack, so that the next part that
// needs it brings it again.
func (l *Level) suspect(ctx context.Context, name object.PackName, damage error) {
	l.opt.Log.Error("a pack at a level is damaged", "pack", name, "err", damage)
	if err := l.put(ctx, damagedPrefix+name.String(), damage.Error()+"\n"); err != nil {
		l.opt.Log.Warn("a damaged pack is not marked", "pack", name, "err", err)
	}
}

// gone says that asking again would not help.
func gone(err error) bool {
	return errors.Is(err, backend.ErrNotExist) || isDamage(err)
}

func isDamage(err error) bool {
	return errors.Is(err, object.ErrCorrupt) || errors.Is(err, ckpt.ErrCorrupt) || errors.Is(err, ckpt.ErrTransfer)
}

// asGone marks an error that asking again would not change.
func asGone(err error) error {
	if err != nil && gone(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
