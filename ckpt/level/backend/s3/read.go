package s3

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/minio/minio-go/v7"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// ReadAt implements backend.Backend. When a connection breaks, it asks for
// what is missing.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := backend.ValidateName(name); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: %s: offset %d", name, s, off)
	}
	n, fruitless := 0, 0
	for {
		got, err := s.readRange(ctx, name, p[n:], off+int64(n))
		if n += got; n == len(p) {
			return n, nil
		}
		if fruitless++; got > 0 {
			fruitless = 0
		}
		if !brokeOff(err) || fruitless == attempts {
			return n, s.wrap(ctx, "read", name, err)
		}
		pause(ctx, fruitless)
	}
}

// readRange reads with one request. It returns io.EOF at the end of the object.
func (s *Store) readRange(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, err
	}
	body, info, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+name, opts)
	if err != nil {
		if minio.ToErrorResponse(err).Code == minio.InvalidRange {
			err = io.EOF // nothing there
		}
		return 0, err
	}
	defer body.Close() //nolint:errcheck // nothing was written
	want := min(int64(len(p)), info.Size)
	n, err := io.ReadFull(body, p[:want])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // although it is not the end of the object
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
