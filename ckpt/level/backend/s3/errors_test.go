package s3

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// Answers that a test's server does not give.
func TestMeanings(t *testing.T) {
	s, err := New(Config{Endpoint: "http://host", Bucket: "bucket"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code   string
		status int
		want   error
	}{
		{"XMinioStorageFull", 507, backend.ErrNoSpace},
		{"QuotaExceeded", 403, backend.ErrNoSpace},
		{"Other", 507, backend.ErrNoSpace},
		{"RequestTimeTooSkewed", 403, backend.ErrDenied},
		{"ExpiredToken", 400, backend.ErrDenied},
		{"Other", 403, backend.ErrDenied},
		{"SlowDown", 503, backend.ErrUnreachable},
		{"NoSuchBucket", 404, backend.ErrLost},
		{"NoSuchKey", 404, backend.ErrNotExist},
		{"Other", 400, nil},
	} {
		answer := minio.ErrorResponse{Code: c.code, StatusCode: c.status, Message: "message"}
		err := s.wrap(t.Context(), "put", "o", fmt.Errorf("wrapped: %w", answer))
		for _, kind := range []error{backend.ErrNoSpace, backend.ErrDenied, backend.ErrUnreachable, backend.ErrLost, backend.ErrNotExist} {
			if errors.Is(err, kind) != errors.Is(c.want, kind) {
				t.Errorf("%s, %d: %v", c.code, c.status, err)
			}
		}
		if !errors.As(err, &answer) {
			t.Errorf("%s: the answer is lost", c.code)
		}
	}
}
