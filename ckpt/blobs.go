package ckpt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"path/filepath"

	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// Blobs keeps immutable files named by the BLAKE3-256 of their content, in
// lower-case hex. Its methods may be called from several goroutines at once.
type Blobs struct{ s *Store }

// Blobs returns the store's blobs.
func (s *Store) Blobs() *Blobs { return &Blobs{s: s} }

func (b *Blobs) dir(digest string) string {
	return filepath.Join(b.s.dir, blobsName, digest[:2])
}

func (b *Blobs) path(digest string) string { return filepath.Join(b.dir(digest), digest) }

// Put stores what r yields. Anything but size bytes with the given digest is
// refused as ErrMismatch and leaves nothing. When the blob is there and reading
// it finds it good, Put returns existed and reads nothing from r; when it is
// there and damaged, it is replaced. The context is looked at between pieces:
// the caller makes sure that reading from r ends when the context does.
func (b *Blobs) Put(ctx context.Context, digest string, size int64, r io.Reader) (existed bool, err error) {
	existed, err = b.put(ctx, digest, size, r)
	if err != nil {
		return false, fmt.Errorf("put blob %s: %w", digest, withHint(err, b.s.dir))
	}
	return existed, nil
}

func (b *Blobs) put(ctx context.Context, digest string, size int64, r io.Reader) (existed bool, err error) {
	s := b.s
	if err := ValidateDigest(digest); err != nil {
		return false, err
	}
	if size < 0 || size == math.MaxInt64 { // one more must be representable
		return false, fmt.Errorf("%w: size %d", ErrName, size)
	}
	a, err := s.begin(ctx, PartID{})
	if err != nil {
		return false, err
	}
	defer a.end()
	switch f, err := b.openVerified(a.ctx, digest); {
	case err == nil:
		if f.size != size {
			err = fmt.Errorf("%w: it has %d bytes, not %d", ErrMismatch, f.size, size)
		}
		return err == nil, errors.Join(err, f.Close(), s.fs.SyncDir(b.dir(digest)))
	case errors.Is(err, ErrCorrupt):
		s.log.Warn("replacing a damaged blob", "blob", digest, "error", err)
	case !errors.Is(err, ErrNotFound):
		return false, err
	}
	if err := b.receive(a, digest, size, r); err != nil {
		return false, err
	}
	return false, b.name(a, digest)
}

// name gives a blob that was received its name. As with parts, nothing cancels it.
func (b *Blobs) name(a *activity, digest string) error {
	s := b.s
	if err := s.opt.Faults.Hit(a.ctx, FaultBlobRename); err != nil {
		return err
	}
	if err := a.beginNaming(); err != nil {
		return err
	}
	dir := b.dir(digest)
	if err := fsys.MkdirIfMissing(s.fs, dir); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := s.fs.Rename(a.temp, b.path(digest)); err != nil {
		return err
	}
	if err := s.fs.SyncDir(dir); err != nil {
		// As with parts, a later sync could report a success that never happened.
		return errors.Join(err, s.fs.Rename(b.path(digest), a.temp))
	}
	return nil
}

// receive writes, syncs and checks a.temp.
func (b *Blobs) receive(a *activity, digest string, size int64, r io.Reader) (err error) {
	f, err := b.s.fs.Create(a.temp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(size+1, blobChunk)) // one more, to see that it ends
	r = io.LimitReader(r, size+1)
	h := blake3.New()
	var total int64
	for {
		if err := a.err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := fsys.WriteAll(f, buf[:n]); err != nil {
				return err
			}
			_, _ = h.Write(buf[:n]) // cannot fail
			total += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if total != size {
		return fmt.Errorf("%w: %s bytes where %d were announced", ErrMismatch, countUpTo(total, size), size)
	}
	if got := sum(h); got != digest {
		return fmt.Errorf("%w: the digest is %s", ErrMismatch, got)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// Read back what the file system has, as with parts.
	return hashFile(a.ctx, f, digest, total, buf)
}

func countUpTo(total, size int64) string {
	if total > size {
		return fmt.Sprintf("more than %d", size)
	}
	return fmt.Sprint(total)
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// hashFile reads size bytes of f and compares their digest.
func hashFile(ctx context.Context, f fsys.File, digest string, size int64, buf []byte) error {
	corrupt := func(reason string, err error) error {
		return &CorruptError{Blob: digest, Reason: reason, Err: err}
	}
	h := blake3.New()
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(int64(len(buf)), size-off)]
		if n, err := f.ReadAt(p, off); n < len(p) {
			return corrupt(fmt.Sprintf("cannot be read at offset %d", off+int64(n)), err)
		}
		_, _ = h.Write(p) // cannot fail
		off += int64(len(p))
	}
	if sum(h) != digest {
		return corrupt("digest differs", nil)
	}
	return nil
}

// Has reports whether the blob is in the store, without reading it.
func (b *Blobs) Has(digest string) (bool, error) {
	if err := errors.Join(ValidateDigest(digest), b.s.alive()); err != nil {
		return false, err
	}
	_, err := b.s.fs.Stat(b.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// BlobReader reads a blob that has been verified. It must be closed. It stays
// usable when the blob is deleted.
type BlobReader struct {
	digest string
	f      fsys.File
	size   int64
	off    int64
	h      *blake3.Hasher
}

// Open reads all of a blob and compares its digest before it returns. Errors to
// decide on: ErrNotFound, ErrCorrupt.
func (b *Blobs) Open(ctx context.Context, digest string) (*BlobReader, error) {
	if err := errors.Join(ValidateDigest(digest), b.s.alive()); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	r, err := b.openVerified(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return r, nil
}

func (b *Blobs) openVerified(ctx context.Context, digest string) (*BlobReader, error) {
	f, err := b.s.fs.Open(b.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil {
		err = hashFile(ctx, f, digest, size, make([]byte, min(max(size, 1), blobChunk)))
	}
	if err != nil {
		_ = f.Close() // read only
		return nil, err
	}
	return &BlobReader{digest: digest, f: f, size: size, h: blake3.New()}, nil
}

// Size returns the blob's size in bytes.
func (r *BlobReader) Size() int64 { return r.size }

// Read implements io.Reader. Damage done since the blob was opened is a
// *CorruptError in place of io.EOF.
func (r *BlobReader) Read(p []byte) (int, error) {
	if r.off == r.size {
		if sum(r.h) != r.digest {
			return 0, &CorruptError{Blob: r.digest, Reason: "digest differs"}
		}
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.off)]
	n, err := r.f.ReadAt(p, r.off)
	_, _ = r.h.Write(p[:n]) // cannot fail
	r.off += int64(n)
	if n < len(p) {
		return n, &CorruptError{Blob: r.digest, Reason: fmt.Sprintf("cannot be read at offset %d", r.off), Err: err}
	}
	return n, nil
}

// Close releases the blob's file.
func (r *BlobReader) Close() error { return r.f.Close() }

// Delete removes a blob. One that is not there is no error.
func (b *Blobs) Delete(digest string) error {
	if err := errors.Join(ValidateDigest(digest), b.s.alive()); err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	if err := b.s.fs.Remove(b.path(digest)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	if err := b.s.fs.SyncDir(b.dir(digest)); err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// List returns the digests of all blobs, sorted.
func (b *Blobs) List(ctx context.Context) ([]string, error) {
	if err := b.s.alive(); err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	root := filepath.Join(b.s.dir, blobsName)
	dirs, err := b.s.fs.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var digests []string
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("list blobs: %w", context.Cause(ctx))
		}
		names, err := b.s.fs.ReadDir(filepath.Join(root, dir))
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		for _, name := range names {
			if ValidateDigest(name) == nil && name[:2] == dir {
				digests = append(digests, name)
			}
		}
	}
	return digests, nil
}

// Prune removes the blobs that keep does not want, and returns how many it
// removed. A blob that somebody is about to use, or just put, must be among
// those that keep wants.
func (b *Blobs) Prune(ctx context.Context, keep func(digest string) bool) (removed int, err error) {
	digests, err := b.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, digest := range digests {
		if keep(digest) {
			continue
		}
		if ctx.Err() != nil {
			return removed, fmt.Errorf("prune blobs: %w", context.Cause(ctx))
		}
		if err := b.Delete(digest); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
