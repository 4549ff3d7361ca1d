// Package object keeps byte strings under the hash of their content: pages of
// guests, nodes of page tables, and other data of checkpoints. Each is stored
// once, compressed, in packs: files that never change. docs/CKPT.md specifies
// the format and what the store promises.
//
// Objects are stored with a [Batch], read with [Store.Get], and removed with
// [Store.Collect]. Packs on other levels are read with [ReadPackIndex].
package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
	"github.com/mpirun-vft/vft/internal/faultpoint"
)

// Fault points of this package, in the order in which a pack passes them.
const (
	FaultWrite        = "ckpt.object.write"         // before each extent, and before the index
	FaultBeforeSync   = "ckpt.object.before-sync"   // pack written and read back, not synced
	FaultBeforeRename = "ckpt.object.before-rename" // synced, no name yet
	FaultAfterRename  = "ckpt.object.after-rename"  // named, directory not yet synced
	FaultBeforeDelete = "ckpt.object.before-delete" // a collection is about to delete packs
)

// FaultPoints returns the names of all fault points of this package.
func FaultPoints() []string {
	return []string{FaultWrite, FaultBeforeSync, FaultBeforeRename, FaultAfterRename, FaultBeforeDelete}
}

// Options are what may be chosen about a store. The zero value is usable.
type Options struct {
	// Log gets what went wrong without failing a call. Nil: nothing is logged.
	Log *slog.Logger
	// Identity is what packs are encrypted to. Nil: they are not encrypted.
	Identity *Identity
	// Memory bounds what all batches together have on its way to the disk, in
	// bytes; it is taken as it is needed. 0: 256 MiB.
	Memory int64
	// PackSize is how many bytes of extents a pack gets. 0: 64 MiB.
	PackSize int64
	// Faults are for tests. Nil: none.
	Faults *faultpoint.Set
	// FS is what the store does to the disk. Nil: the real file system.
	FS fsys.FS
}

const (
	defaultMemory   = 256 << 20
	minMemory       = 1 << 20
	defaultPackSize = 64 << 20
	// cacheMemory bounds decoded extents that are kept for readers, in bytes.
	cacheMemory = 32 << 20
)

func (o *Options) fill() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	o.Memory = max(o.Memory, minMemory)
	if o.PackSize <= 0 || o.PackSize > maxPack/2 {
		o.PackSize = defaultPackSize
	}
	if o.FS == nil {
		o.FS = fsys.OS{}
	}
}

// Store is an open object store. Its methods may be called from several
// goroutines at once.
type Store struct {
	dir    string
	opt    Options
	fs     fsys.FS
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc

	table      table
	packs      *packSet
	pending    *pending
	protection *protection
	dirs       struct {
		mu      sync.Mutex
		durable [256]bool // directories below packs/
	}

	gate            *gate
	workers         *workers
	encoders        encoders
	pace            *pace
	buffers         *buffers
	ingest, rewrite *lane

	files   *refCache[*pack, fsys.File]
	decoded *refCache[extentKey, *[]byte]

	collecting chan struct{} // holds an item while a collection runs

	using struct {
		mu     sync.Mutex
		ended  sync.Cond // signalled when calls is 0
		calls  int       // that use the disk
		closed bool
	}
}

// Open opens the store in dir, and makes what is missing in it: the directories
// packs and tmp. What is in tmp is removed. The caller holds the lock of dir.
// Packs that cannot be read are logged and left alone, see Unreadable. Errors
// to decide on: ErrVersion, ErrIdentity. The store must be closed.
func Open(dir string, opt Options) (*Store, error) {
	opt.fill()
	s := &Store{
		dir: dir, opt: opt, fs: opt.FS, log: opt.Log.With("store", dir),
		packs: newPackSet(), pending: newPending(), protection: newProtection(),
		gate: &gate{limit: opt.Memory}, pace: newPace(), buffers: &buffers{},
		collecting: make(chan struct{}, 1),
	}
	s.using.ended.L = &s.using.mu
	s.files = newRefCache[*pack](maxIdleFiles, func(f fsys.File) {
		_ = f.Close() // only read from
	})
	s.decoded = newRefCache[extentKey](cacheMemory, s.buffers.put)
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open object store %s: %w", dir, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.workers = startWorkers(runtime.GOMAXPROCS(0))
	s.ingest = s.startLane(opt.Memory)
	s.rewrite = s.startLane(opt.Memory / 8)
	return s, nil
}

// load makes the directories durable, with what a process that was killed may
// have left in them, and reads the packs' indexes.
func (s *Store) load() error {
	packs, tmp := filepath.Join(s.dir, packsName), filepath.Join(s.dir, tmpName)
	for _, dir := range []string{packs, tmp} {
		if err := fsys.MkdirIfMissing(s.fs, dir); err != nil {
			return err
		}
	}
	left, err := s.fs.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, name := range left {
		s.log.Info("removing what a crash left", "name", name)
		if err := fsys.RemoveAll(s.fs, filepath.Join(tmp, name)); err != nil {
			s.log.Warn("cannot remove temporary file", "name", name, "error", err)
		}
	}
	dirs, err := s.fs.ReadDir(packs)
	if err != nil {
		return err
	}
	var found []PackName
	for _, dir := range dirs {
		names, err := s.loadDir(dir)
		if err != nil {
			return err
		}
		found = append(found, names...)
	}
	for _, dir := range []string{packs, s.dir} {
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	for _, name := range found {
		s.dirs.durable[name[0]] = true
	}
	var all errgroup.Group
	all.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range found {
		all.Go(func() error { return s.loadPack(name) })
	}
	return all.Wait()
}

// loadDir returns the packs in a directory, whose names are durable then.
func (s *Store) loadDir(dir string) ([]PackName, error) {
	path := filepath.Join(s.dir, packsName, dir)
	files, err := s.fs.ReadDir(path)
	switch {
	case errors.Is(err, syscall.ENOTDIR):
		s.log.Warn("a file among the directories of packs", "path", path)
		return nil, nil
	case err != nil:
		return nil, err
	}
	var names []PackName
	for _, file := range files {
		name, err := ParsePackName(file)
		if err != nil || file[:2] != dir {
			s.log.Warn("a file among the packs that is none", "path", filepath.Join(path, file))
			continue
		}
		names = append(names, name)
	}
	return names, s.fs.SyncDir(path)
}

// loadPack enters a pack's objects into the table.
func (s *Store) loadPack(name PackName) error {
	x, err := s.readIndex(name)
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		s.log.Error("pack cannot be read: what is in it is missing", "pack", name, "error", err)
		s.packs.setUnreadable(name, corrupt)
		return nil
	case err != nil:
		return err
	}
	p := newPack(x)
	if err := s.packs.add(p); err != nil {
		return err
	}
	for i := range x.extents {
		for j, id := range x.ids[x.first[i]:x.first[i+1]] {
			s.table.insert(id, place(p.number, i, j))
		}
	}
	return nil
}

// readIndex reads the index of a pack, and compares its name.
func (s *Store) readIndex(name PackName) (_ *PackIndex, err error) {
	f, err := s.fs.Open(s.packPath(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missingFile(name)
	case err != nil:
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	return s.readIndexFrom(f, name)
}

func missingFile(name PackName) *CorruptError {
	return &CorruptError{Pack: name, Extent: -1, Reason: "its file is missing"}
}

func (s *Store) readIndexFrom(f fsys.File, name PackName) (*PackIndex, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	x, err := ReadPackIndex(f, size, s.opt.Identity)
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		corrupt.Pack = name
		return nil, corrupt
	case errors.Is(err, ErrVersion), errors.Is(err, ErrIdentity):
		return nil, fmt.Errorf("pack %v: %w", name, err)
	case err != nil:
		return nil, &CorruptError{Pack: name, Extent: -1, Reason: "it cannot be read", Err: err}
	case x.name != name:
		return nil, &CorruptError{Pack: name, Extent: -1, Reason: fmt.Sprintf("it is the pack %v", x.name)}
	}
	return x, nil
}

// Close fails the batches that are open, waits for calls and for the pack that
// is being finished, and removes what is unfinished. It does not give up on a
// disk that hangs. The second call does nothing.
func (s *Store) Close() error {
	s.cancel()
	for _, b := range s.protection.batches() {
		b.cancel(ErrClosed)
	}
	s.using.mu.Lock()
	again := s.using.closed
	s.using.closed = true
	for s.using.calls > 0 {
		s.using.ended.Wait()
	}
	s.using.mu.Unlock()
	if again {
		return nil
	}
	s.ingest.close()
	s.rewrite.close()
	s.workers.close()
	s.files.drop(func(*pack) bool { return true })
	s.decoded.drop(func(extentKey) bool { return true })
	return nil
}

// use keeps the store open until done is called.
func (s *Store) use() (done func(), err error) {
	s.using.mu.Lock()
	defer s.using.mu.Unlock()
	if s.using.closed {
		return nil, ErrClosed
	}
	s.using.calls++
	return s.endUse, nil
}

func (s *Store) endUse() {
	s.using.mu.Lock()
	defer s.using.mu.Unlock()
	if s.using.calls--; s.using.calls == 0 {
		s.using.ended.Broadcast()
	}
}

// Has reports whether an object is stored durably and, as far as is known,
// undamaged. The store has the zero id always.
func (s *Store) Has(id ID) bool {
	if id.IsZero() {
		return true
	}
	_, ok := s.table.lookup(id)
	return ok
}

// Get appends an object to dst; it has been verified. An object that has been
// added but not synced is not found, nor is that of the zero id. Errors to
// decide on: ErrNotFound, and CorruptError; after the latter Has says false,
// and Add stores another copy. In a batch that keeps the object it stays where
// it is. On an error dst is returned as it was.
func (s *Store) Get(ctx context.Context, id ID, dst []byte) ([]byte, error) {
	done, err := s.use()
	if err != nil {
		return dst, err
	}
	defer done()
	return s.get(ctx, id, dst)
}

func (s *Store) get(ctx context.Context, id ID, dst []byte) ([]byte, error) {
	var damage error
	for ctx.Err() == nil {
		w, ok := s.table.lookup(id)
		switch {
		case !ok && damage != nil:
			return dst, damage
		case !ok:
			return dst, fmt.Errorf("object %v: %w", id, ErrNotFound)
		}
		p := s.packs.number(w.pack())
		if p == nil {
			continue // moved just now
		}
		out, err := s.read(p, w, id, dst)
		switch {
		case err == nil:
			return out, nil
		case errors.Is(err, errGone):
		case errors.Is(err, ErrCorrupt):
			s.setBad(p, w, id, err)
			damage = err
		default:
			return dst, err
		}
	}
	return dst, context.Cause(ctx)
}

// setBad notes that a copy of an object is damaged.
func (s *Store) setBad(p *pack, w where, id ID, err error) {
	p.damaged.Store(true)
	s.table.setBad(id, w)
	s.log.Error("a stored object is damaged", "pack", p.name, "object", id, "error", err)
}

// read appends the copy of an object that is at w. What does not have the id is
// read once more: memory can be wrong, too.
func (s *Store) read(p *pack, w where, id ID, dst []byte) ([]byte, error) {
	offset, length := p.locate(w)
	kind := p.extents[w.extent()].kind
	for attempt := 0; ; attempt++ {
		e, err := s.readExtent(p, w.extent())
		if err != nil {
			var corrupt *CorruptError
			if errors.As(err, &corrupt) {
				of := *corrupt
				of.ID = id
				return dst, &of
			}
			return dst, err
		}
		data := (*e.value)[offset : offset+length]
		good := Sum(kind, data) == id
		if good {
			dst = append(dst, data...)
		} else {
			s.decoded.drop(func(k extentKey) bool { return k == e.key })
		}
		s.decoded.release(e)
		if good {
			return dst, nil
		}
		if attempt > 0 {
			return dst, blame(p.name, w.extent(), &badObjectError{id})
		}
	}
}

// Locate returns the pack that an object is in.
func (s *Store) Locate(id ID) (PackName, bool) {
	for {
		w, ok := s.table.lookup(id)
		if !ok {
			return PackName{}, false
		}
		if p := s.packs.number(w.pack()); p != nil {
			return p.name, true
		}
	}
}

// PackFile is an open pack. It stays readable when the pack is deleted.
type PackFile interface {
	io.ReaderAt
	io.Closer
	Size() (int64, error)
}

// OpenPack opens a pack for reading as it is. The error is an ErrNotFound when
// a collection has deleted it; its objects are elsewhere then.
func (s *Store) OpenPack(name PackName) (PackFile, error) {
	done, err := s.use()
	if err != nil {
		return nil, err
	}
	defer done()
	p := s.packs.name(name)
	if p == nil {
		return nil, fmt.Errorf("pack %v: %w", name, ErrNotFound)
	}
	f, err := s.fs.Open(s.packPath(name))
	if err != nil && p.removed.Load() {
		return nil, fmt.Errorf("pack %v: %w", name, ErrNotFound)
	}
	return f, err
}
