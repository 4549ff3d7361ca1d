package object

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// packWriter writes one pack under a temporary name. It belongs to one
// goroutine at a time.
type packWriter struct {
	s        *Store
	path     string
	file     fsys.File // nil when it has been closed
	salt     [saltSize]byte
	sealer   *sealer
	envelope []byte
	offset   int64
	objects  int
	drafts   []*draft // written

	toPush  int64         // bytes at the end that the device has not been asked to write
	pushing int64         // bytes before them of which nobody knows whether it has
	spent   time.Duration // writing the former

	verifying sync.WaitGroup
	mu        sync.Mutex
	failed    error // of a verification
}

// pushSize is how many bytes the device is asked to write at a time.
const pushSize = 4 << 20

func (s *Store) newPackWriter() (_ *packWriter, err error) {
	w := &packWriter{s: s}
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, err
	}
	if _, err := rand.Read(w.salt[:]); err != nil {
		return nil, err
	}
	if w.sealer, w.envelope, err = makeSealer(s.opt.Identity); err != nil {
		return nil, err
	}
	w.path = filepath.Join(s.dir, tmpName, "pack-"+hex.EncodeToString(name[:]))
	if w.file, err = s.fs.Create(w.path); err != nil {
		return nil, err
	}
	if err := w.write(header(w.salt)); err != nil {
		w.abandon(err)
		return nil, err
	}
	return w, nil
}

func (w *packWriter) write(b []byte) error {
	if err := w.s.hit(FaultWrite); err != nil {
		return err
	}
	start := time.Now()
	if err := fsys.WriteAll(w.file, b); err != nil {
		return err
	}
	w.offset += int64(len(b))
	w.toPush += int64(len(b))
	pushed := int64(0)
	if w.toPush >= pushSize {
		pushed = w.toPush
		if err := w.push(); err != nil {
			return err
		}
	}
	w.spent += time.Since(start)
	if pushed > 0 {
		w.s.pace.wrote(pushed, w.spent)
		w.spent = 0
	}
	return nil
}

// push lets the device write while the next extents are being encoded. Waiting
// for the part before bounds what is left for the sync at the end, and shows
// how fast the device is.
func (w *packWriter) push() error {
	from := w.offset - w.toPush
	if err := w.file.WriteBack(from, w.toPush, false); err != nil {
		return err
	}
	if w.pushing > 0 {
		if err := w.file.WriteBack(from-w.pushing, w.pushing, true); err != nil {
			return err
		}
	}
	w.pushing, w.toPush = w.toPush, 0
	return nil
}

// fits reports whether the pack has room for a draft.
func (w *packWriter) fits(d *draft) bool {
	return w.offset < w.s.opt.PackSize && w.objects+len(d.ids) <= maxObjects
}

// add writes a draft, and has it verified while the next ones are written.
func (w *packWriter) add(d *draft) error {
	w.drafts = append(w.drafts, d)
	w.objects += len(d.ids)
	number := uint32(len(w.drafts) - 1)
	stored := w.sealer.seal(number, *d.stored)
	d.offset, d.size = w.offset, len(stored)
	if err := w.write(stored); err != nil {
		return err
	}
	w.verifying.Add(1)
	w.s.workers.do(func() {
		defer w.verifying.Done()
		if err := w.verify(number, d); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.failed = errors.Join(w.failed, err)
		}
	}, true)
	return nil
}

// verify reads a draft back, and decodes and hashes what it finds. The digest
// of what was found good goes into the index.
func (w *packWriter) verify(number uint32, d *draft) error {
	if w.failure() != nil {
		return nil // one is enough
	}
	stored, raw := w.s.buffers.get(d.size), w.s.buffers.get(d.length)
	defer w.s.buffers.put(stored)
	defer w.s.buffers.put(raw)
	*stored = (*stored)[:d.size]
	err := readFull(w.file, *stored, d.offset)
	if err == nil {
		d.digest = digest(*stored)
		var plain []byte
		if plain, err = w.sealer.open(number, *stored); err == nil {
			e := Extent{
				Kind: d.kind, IDs: d.ids, Lengths: d.lengths, Length: d.length,
				Compressed: d.codec == codecZstd, Stored: plain,
			}
			_, err = e.Decode(*raw)
		}
	}
	if err != nil {
		return fmt.Errorf("read back what was written: %w", err)
	}
	return nil
}

func (w *packWriter) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// abandon fails all drafts and removes the file. A nil writer has none.
func (w *packWriter) abandon(err error) {
	if w == nil {
		return
	}
	w.verifying.Wait()
	w.close()
	w.s.discard(w.path)
	// Nobody may join any of them once the first to hear of it can try again.
	users := make([][]*Batch, len(w.drafts))
	for i, d := range w.drafts {
		users[i], _ = d.finish()
	}
	for i, d := range w.drafts {
		w.s.settle(d, users[i], err)
	}
}

func (w *packWriter) close() {
	if w.file != nil {
		_ = w.file.Close() // synced, or about to be removed
		w.file = nil
	}
}

// discard removes a file that is not needed. A failure costs space only.
func (s *Store) discard(path string) {
	if err := s.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot remove file", "path", path, "error", err)
	}
}

// finish completes the pack, makes it durable, names it and publishes what is
// in it. When it fails, abandon must follow.
func (w *packWriter) finish() error {
	w.verifying.Wait()
	if err := w.failure(); err != nil {
		return err
	}
	if w.dropUnwanted() {
		return errUnwanted
	}
	if err := w.s.ctx.Err(); err != nil {
		return ErrClosed
	}
	x, err := w.complete()
	if err != nil {
		return err
	}
	if err := w.s.hit(FaultBeforeSync); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	w.close()
	if err := w.s.name(w.path, x.name); err != nil {
		return err
	}
	if err := w.s.publish(x, w.drafts); err != nil {
		w.s.discard(w.s.packPath(x.name))
		return err
	}
	return nil
}

// complete writes index and footer and reads them back.
func (w *packWriter) complete() (*PackIndex, error) {
	x := index{extents: make([]extentEntry, len(w.drafts)), ids: make([]ID, 0, w.objects)}
	for i, d := range w.drafts {
		x.extents[i] = extentEntry{
			offset: d.offset, stored: uint32(d.size), raw: uint32(d.length),
			objects: uint16(len(d.ids)), kind: d.kind, codec: d.codec, digest: d.digest,
		}
		x.ids = append(x.ids, d.ids...)
		x.lengths = append(x.lengths, d.lengths...)
	}
	meta := w.sealer.seal(indexNonce, x.encode())
	f := footer{salt: w.salt, encrypted: w.sealer != nil, index: uint32(len(meta)), envelope: uint32(len(w.envelope))}
	meta = append(meta, w.envelope...)
	f.digest = digest(meta)
	end := f.encode()
	if err := w.write(append(meta, end...)); err != nil {
		return nil, err
	}
	size, err := w.file.Size()
	if err != nil {
		return nil, err
	}
	back, err := ReadPackIndex(w.file, size, w.s.opt.Identity)
	if err != nil {
		return nil, fmt.Errorf("read back what was written: %w", err)
	}
	if back.name != PackName(digest(end)) {
		return nil, back.corrupt(errors.New("it is not what was written"))
	}
	if err := back.checkHeader(w.file); err != nil {
		return nil, err
	}
	return back, nil
}

// name gives a pack that is durable its name, durably.
func (s *Store) name(temp string, name PackName) error {
	if err := s.hit(FaultBeforeRename); err != nil {
		return err
	}
	if err := s.makePackDir(name); err != nil {
		return err
	}
	path := s.packPath(name)
	if err := s.fs.Rename(temp, path); err != nil {
		return err
	}
	err := s.hit(FaultAfterRename)
	if err == nil {
		err = s.fs.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		// A later sync of the directory could make durable what was reported
		// as failed; that would only cost space, but costs it for nothing.
		s.discard(path)
	}
	return err
}

// makePackDir makes the directory of a pack, durably, unless it is known to be.
func (s *Store) makePackDir(name PackName) error {
	s.dirs.mu.Lock()
	defer s.dirs.mu.Unlock()
	if s.dirs.durable[name[0]] {
		return nil
	}
	if err := fsys.MkdirIfMissing(s.fs, s.packDir(name)); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Join(s.dir, packsName)); err != nil {
		return err
	}
	s.dirs.durable[name[0]] = true
	return nil
}

// publish lets everybody find what is in a new pack.
func (s *Store) publish(x *PackIndex, drafts []*draft) error {
	p := newPack(x)
	if err := s.packs.add(p); err != nil {
		return err
	}
	for i, d := range drafts {
		// Who waits for the draft must not be of a later generation than its
		// objects.
		s.protection.changing.RLock()
		now := s.protection.current()
		for j, id := range d.ids {
			s.table.insert(id, place(p.number, i, j).withGeneration(now))
		}
		users, _ := d.finish()
		s.protection.changing.RUnlock()
		s.settle(d, users, nil)
	}
	return nil
}

// hit passes a fault point.
func (s *Store) hit(point string) error { return s.opt.Faults.Hit(s.ctx, point) }
