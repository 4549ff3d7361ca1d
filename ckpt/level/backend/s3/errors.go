package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// wrap says what was done to what, gives err the meaning it has for callers,
// and says what a user can do.
func (s *Store) wrap(ctx context.Context, op, name string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	what := op
	if name != "" {
		what += " " + name
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %s: %w", what, s, ctx.Err())
	}
	var source *backend.SourceError
	if errors.As(err, &source) {
		return fmt.Errorf("%s: %s: %w", what, s, err)
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return fmt.Errorf("%s: %s: %w", what, s, s.unanswered(err))
	}
	hint, meaning := s.meaning(answer)
	if meaning == nil {
		return fmt.Errorf("%s: %s: %w", what, s, err)
	}
	if hint != "" {
		hint = ": " + hint
	}
	return fmt.Errorf("%s: %s: %w%s: %w", what, s, meaning, hint, err)
}

// meaning returns which error of package backend an answer is, nil for none,
// and what to do about it.
func (s *Store) meaning(answer minio.ErrorResponse) (hint string, meaning error) {
	switch answer.Code {
	case minio.NoSuchKey, minio.NoSuchUpload:
		return "", backend.ErrNotExist
	case minio.NoSuchBucket:
		return "make the bucket " + s.bucket + ", or correct the level", backend.ErrLost
	case minio.InvalidAccessKeyID, minio.SignatureDoesNotMatch, "InvalidToken", "ExpiredToken", "InvalidClientTokenId", "XAdminUserNotFound":
		return "the credentials are wrong; they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from the AWS credentials files", backend.ErrDenied
	case minio.RequestTimeTooSkewed:
		return "this node's clock is wrong", backend.ErrDenied
	case minio.AuthorizationHeaderMalformed, minio.InvalidRegion:
		return "the region may be wrong; give it as ?region=REGION", backend.ErrDenied
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity", "InsufficientStorage":
		return "remove objects there, or give another bucket", backend.ErrNoSpace
	}
	switch answer.StatusCode {
	case http.StatusInsufficientStorage:
		return "remove objects there, or give another bucket", backend.ErrNoSpace
	case http.StatusUnauthorized, http.StatusForbidden:
		return "are there credentials, and may they read, write, list and delete in the bucket?", backend.ErrDenied
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return "", backend.ErrUnreachable
	}
	return "", nil
}

// unanswered explains an error that did not come from the store.
func (s *Store) unanswered(err error) error {
	var (
		request  *url.Error
		network  *net.OpError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		record   tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unknown), errors.As(err, &hostname):
		return fmt.Errorf("%w: its certificate is not trusted; SSL_CERT_FILE can name another authority: %w", backend.ErrUnreachable, err)
	case errors.As(err, &record), strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return fmt.Errorf("%w: it does not speak TLS; is it http:// rather than https://? %w", backend.ErrUnreachable, err)
	case errors.As(err, &request), errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", backend.ErrUnreachable, err)
	}
	return err
}

// again repeats do while answers to it break off, or the store says that what
// it received is not what was sent. What the library repeats by itself are
// requests without an answer.
func again(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if try == attempts || (!brokeOff(err) && !damaged(err)) {
			return err
		}
		pause(ctx, try)
	}
}

// brokeOff reports whether err is of reading an answer.
func brokeOff(err error) bool {
	var unanswered *url.Error
	var network *net.OpError
	if errors.As(err, &unanswered) {
		return false
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// damaged reports whether err says that a request was damaged on its way.
func damaged(err error) bool {
	switch minio.ToErrorResponse(err).Code {
	case minio.BadDigest, minio.InvalidDigest, "XAmzContentSHA256Mismatch", "ContentSHA256Mismatch":
		return true
	}
	return false
}

// pause waits before the next try, longer each time, or until ctx ends.
func pause(ctx context.Context, try int) {
	select {
	case <-ctx.Done():
	case <-time.After(min(time.Second, 100*time.Millisecond<<try)):
	}
}
