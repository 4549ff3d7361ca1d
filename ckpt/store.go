// Package ckpt keeps the parts of epochs on one node: a guest's memory, the
// state of its devices and its channel state, each page once, written
// atomically, and verified before they count and before they are used. It also
// keeps blobs, immutable files named by their content. docs/CKPT.md specifies
// the format and what the store promises.
//
// A part is written with [Store.Create], read with [Store.Open], and copied
// from other nodes with [Store.Fetch]; [Store.Collect] frees what no part needs.
package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// Fault points of this package, in the order in which a part passes them;
// package object has those of packs.
const (
	FaultPage         = "ckpt.page"                 // before each page that is not zero
	FaultFetch        = "ckpt.fetch"                // before objects are asked for elsewhere
	FaultBeforeSync   = "ckpt.commit.before-sync"   // everything added, packs not complete
	FaultBeforeRename = "ckpt.commit.before-rename" // packs durable and verified, the part has no name yet
	FaultAfterRename  = "ckpt.commit.after-rename"  // named, directory not yet synced
	FaultBlobRename   = "ckpt.blob.before-rename"   // blob synced, no name yet
)

// FaultPoints returns the names of all fault points of this package and of the
// object store below it.
func FaultPoints() []string {
	own := []string{FaultPage, FaultFetch, FaultBeforeSync, FaultBeforeRename, FaultAfterRename, FaultBlobRename}
	return append(own, object.FaultPoints()...)
}

// Options are what may be chosen about a store. The zero value is usable.
type Options struct {
	// Log gets what went wrong without failing a call. Nil: nothing is logged.
	Log *slog.Logger
	// Memory bounds what all writers together have on its way to the disk, in
	// bytes; it is taken as it is needed. 0: 256 MiB.
	Memory int64
	// StallTimeout is how long a Writer's source may be kept waiting by the
	// disk before the part is given up. 0: 10 s.
	StallTimeout time.Duration
	// Faults are for tests. Nil: none.
	Faults *faultpoint.Set
}

const (
	defaultStallTimeout = 10 * time.Second
	blobChunk           = 1 << 20 // bytes of a blob that are read and written at once
)

// Store is an open checkpoint store. Its methods may be called from several
// goroutines at once.
type Store struct {
	dir     string
	fs      fsys.FS
	opt     Options
	log     *slog.Logger
	lock    io.Closer
	objects *object.Store
	number  atomic.Uint64 // of the next name in tmp

	// naming is held while manifests appear, vanish, or are looked at together.
	naming sync.Mutex
	opened map[*Part]struct{} // open for reading; guarded by naming

	mu         sync.Mutex
	closed     bool
	activities map[*activity]struct{}
}

// formatText is what the format file says.
const formatText = "vft checkpoint store 2\n"

// Open opens the store in dir, and makes it when dir is missing or empty. What
// a crash has left half done is removed. Errors to decide on: ErrLocked,
// ErrVersion, ErrNotStore. The store must be closed.
func Open(dir string, opt Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint store: %w", err)
	}
	return open(fsys.OS{}, dir, opt)
}

func open(disk fsys.FS, dir string, opt Options) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.StallTimeout <= 0 {
		opt.StallTimeout = defaultStallTimeout
	}
	s := &Store{
		dir: dir, fs: disk, opt: opt, log: opt.Log.With("store", dir),
		opened: map[*Part]struct{}{}, activities: map[*activity]struct{}{},
	}
	if err := s.ready(); err != nil {
		return nil, fmt.Errorf("open checkpoint store %s: %w", dir, withHint(err, dir))
	}
	return s, nil
}

// ready makes the store ready.
func (s *Store) ready() (err error) {
	if err := s.fs.MakeRoot(s.dir); err != nil {
		return err
	}
	// Before anything is changed, see whether this is ours to change.
	if _, err := s.checkFormat(); err != nil {
		return err
	}
	if err := s.fs.Restrict(s.dir); err != nil {
		return err
	}
	if s.lock, err = s.fs.Lock(filepath.Join(s.dir, lockName)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close() // the first error is the one to report
		}
	}()
	made, err := s.checkFormat() // again, now that nobody else can be making it
	if err != nil {
		return err
	}
	if !made {
		if err := s.writeFormat(); err != nil {
			return err
		}
	}
	for _, name := range []string{partsName, blobsName} {
		if err := fsys.MkdirIfMissing(s.fs, filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	// This empties tmp and syncs the directory.
	s.objects, err = object.Open(s.dir, object.Options{
		Log: s.opt.Log, Memory: s.opt.Memory, Faults: s.opt.Faults, FS: s.fs,
	})
	if err != nil {
		return err
	}
	if err := s.clean(); err != nil {
		return errors.Join(err, s.objects.Close())
	}
	return nil
}

// formatTemp is what the format file is called while it is being made.
const formatTemp = formatName + ".new"

// checkFormat reports whether the store has been made.
func (s *Store) checkFormat() (made bool, err error) {
	b, err := fsys.ReadFile(s.fs, filepath.Join(s.dir, formatName), 1<<10)
	switch {
	case err == nil && string(b) == formatText:
		return true, nil
	case err == nil:
		return false, &VersionError{
			What:  filepath.Join(s.dir, formatName),
			Found: strconv.Quote(string(b)), Known: strconv.Quote(formatText),
		}
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if name != lockName && name != formatTemp {
			return false, fmt.Errorf("%w: it has no file %q but holds %q: give a new or empty directory", ErrNotStore, formatName, name)
		}
	}
	return false, nil
}

func (s *Store) writeFormat() error {
	temp := filepath.Join(s.dir, formatTemp)
	if err := fsys.RemoveAll(s.fs, temp); err != nil {
		return err
	}
	if err := fsys.WriteFile(s.fs, temp, []byte(formatText)); err != nil {
		return err
	}
	if err := s.fs.Rename(temp, filepath.Join(s.dir, formatName)); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// clean removes directories of jobs that have no part. Failures are logged: they
// cost space, not correctness.
func (s *Store) clean() error {
	left, err := s.fs.ReadDir(filepath.Join(s.dir, tmpName))
	if err != nil {
		return err
	}
	for _, name := range left { // what could not be removed
		if n, err := strconv.ParseUint(name, 10, 64); err == nil && n >= s.number.Load() {
			s.number.Store(n + 1)
		}
	}
	jobs, err := s.fs.ReadDir(filepath.Join(s.dir, partsName))
	if err != nil {
		return err
	}
	for _, job := range jobs {
		parts, err := s.fs.ReadDir(s.jobDir(job))
		if err == nil && len(parts) == 0 {
			err = s.fs.Remove(s.jobDir(job))
		}
		if err != nil {
			s.log.Warn("cannot tidy directory of job", "job", job, "error", err)
		}
	}
	return nil
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// Close ends what is being written, fetched or put, waits for it, and lets
// another process open the store. Open parts cannot be read any more. When a
// disk hangs, it waits no longer than the stall timeout, keeps the lock, and
// says so; the lock is then free when the process ends.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	timer := time.NewTimer(s.opt.StallTimeout)
	defer timer.Stop()
	stuck := 0
	for _, a := range s.active(nil) {
		a.cancel(ErrClosed)
	}
	for _, a := range s.active(nil) {
		select {
		case <-a.finished:
		case <-timer.C:
			timer.Reset(0)
			stuck++
		}
	}
	if stuck > 0 {
		return fmt.Errorf("close checkpoint store %s: %d parts or blobs are still being written: %w", s.dir, stuck, ErrStalled)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.objects.Close() }()
	select {
	case err := <-closed:
		return errors.Join(err, s.lock.Close())
	case <-timer.C:
		return fmt.Errorf("close checkpoint store %s: a pack is still being written: %w", s.dir, ErrStalled)
	}
}

// activity is something that makes files in tmp and then gives them a name. It
// can be cancelled until it begins to do the latter.
type activity struct {
	s        *Store
	id       PartID // zero for a blob
	temp     string // path in tmp that is its own
	ctx      context.Context
	cancel   context.CancelCauseFunc
	finished chan struct{}

	mu      sync.Mutex
	naming  bool
	pastEnd bool
}

// begin registers an activity. Its end must be called.
func (s *Store) begin(ctx context.Context, id PartID) (*activity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	a := &activity{s: s, id: id, temp: s.tempPath(), finished: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	s.activities[a] = struct{}{}
	return a, nil
}

// tempPath returns a path in tmp that nobody else uses.
func (s *Store) tempPath() string {
	return filepath.Join(s.dir, tmpName, strconv.FormatUint(s.number.Add(1), 10))
}

// err returns why the activity has been cancelled, or nil.
func (a *activity) err() error {
	if a.ctx.Err() == nil {
		return nil
	}
	return context.Cause(a.ctx)
}

// beginNaming fails when the activity has been cancelled; afterwards stop waits
// for its end.
func (a *activity) beginNaming() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.err(); err != nil {
		return err
	}
	a.naming = true
	return nil
}

// stop cancels the activity. If it is just being given its name, stop waits
// until that is over, so that nothing appears after it has returned nil.
func (a *activity) stop(ctx context.Context, cause error) error {
	a.mu.Lock()
	a.cancel(cause)
	naming := a.naming
	a.mu.Unlock()
	if !naming {
		return nil
	}
	select {
	case <-a.finished:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end removes the temporary files, if they are still there, and ends the
// activity. The second call does nothing.
func (a *activity) end() {
	a.mu.Lock()
	again := a.pastEnd
	a.pastEnd = true
	a.mu.Unlock()
	if again {
		return
	}
	a.s.discard(a.temp)
	a.s.mu.Lock()
	delete(a.s.activities, a)
	a.s.mu.Unlock()
	a.cancel(ErrAborted)
	close(a.finished)
}

// discard removes a path in tmp. Failures are logged.
func (s *Store) discard(path string) {
	if err := fsys.RemoveAll(s.fs, path); err != nil {
		s.log.Warn("cannot remove temporary file", "path", path, "error", err)
	}
}

// active returns the activities that match, or all.
func (s *Store) active(match func(PartID) bool) []*activity {
	s.mu.Lock()
	defer s.mu.Unlock()
	var as []*activity
	for a := range s.activities {
		if match == nil || match(a.id) {
			as = append(as, a)
		}
	}
	return slices.Clip(as)
}

// alive fails when the store has been closed.
func (s *Store) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return nil
}
