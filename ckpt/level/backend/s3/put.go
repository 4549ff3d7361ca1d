package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

const (
	// partSize is the size of the parts of an upload, the last one excepted,
	// in bytes. S3 wants at least 5 MiB.
	partSize = 8 << 20
	// uploading is how many parts of an object are on their way at once.
	uploading = 3
	// maxSize is that of an object: S3 takes 10,000 parts.
	maxSize = 10_000 * partSize
)

// Put implements backend.Backend.
func (s *Store) Put(ctx context.Context, name string, size int64, r io.ReaderAt) error {
	if err := backend.ValidateName(name); err != nil {
		return err
	}
	if size < 0 || size > maxSize {
		return fmt.Errorf("put %s: %d bytes: want at most %d", name, size, int64(maxSize))
	}
	if size <= partSize {
		return s.wrap(ctx, "put", name, s.putWhole(ctx, name, size, r))
	}
	return s.wrap(ctx, "put", name, s.putParts(ctx, name, size, r))
}

func (s *Store) putWhole(ctx context.Context, name string, size int64, r io.ReaderAt) error {
	b, err := section(r, 0, size)
	if err != nil {
		return err
	}
	return again(ctx, func() error {
		_, err := s.core.PutObject(ctx, s.bucket, s.prefix+name, bytes.NewReader(b), size, "", sha256Hex(b),
			minio.PutObjectOptions{DisableContentSha256: true}) // no second, streamed SHA-256
		return err
	})
}

func (s *Store) putParts(ctx context.Context, name string, size int64, r io.ReaderAt) error {
	key := s.prefix + name
	var id string
	err := again(ctx, func() (err error) {
		id, err = s.core.NewMultipartUpload(ctx, s.bucket, key, minio.PutObjectOptions{})
		return err
	})
	if err != nil {
		return err
	}
	parts, err := s.sendParts(ctx, key, id, size, r)
	if err == nil {
		err = again(ctx, func() error {
			_, err := s.core.CompleteMultipartUpload(ctx, s.bucket, key, id, parts, minio.PutObjectOptions{})
			return err
		})
		if minio.ToErrorResponse(err).Code == minio.NoSuchUpload && s.has(ctx, name, size) {
			err = nil // done by a request whose answer was lost
		}
	}
	if err == nil {
		return nil
	}
	// What cannot be aborted now, Sweep aborts later.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = s.core.AbortMultipartUpload(ctx, s.bucket, key, id)
	return err
}

func (s *Store) has(ctx context.Context, name string, size int64) bool {
	info, err := s.Stat(ctx, name)
	return err == nil && info.Size == size
}

// sendParts returns when nothing reads r any more.
func (s *Store) sendParts(ctx context.Context, key, id string, size int64, r io.ReaderAt) ([]minio.CompletePart, error) {
	parts := make([]minio.CompletePart, (size+partSize-1)/partSize)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(uploading)
	for i := range parts {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			off := int64(i) * partSize
			b, err := section(r, off, min(partSize, size-off))
			if err != nil {
				return err
			}
			return again(ctx, func() error {
				sent, err := s.core.PutObjectPart(ctx, s.bucket, key, id, i+1, bytes.NewReader(b), int64(len(b)),
					minio.PutObjectPartOptions{Sha256Hex: sha256Hex(b), DisableContentSha256: true})
				parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: sent.ETag}
				return err
			})
		})
	}
	return parts, group.Wait()
}

// section reads n bytes from off.
func section(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	return b, backend.ReadSource(r, b, off)
}
