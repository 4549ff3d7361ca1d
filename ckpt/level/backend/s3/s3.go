// Package s3 keeps objects in a bucket of an S3-compatible store.
//
// An object NAME is the key PREFIX/NAME. Objects above 8 MiB are sent in parts,
// several at a time. The SHA-256 of everything that is sent is in the signed
// header of its request, so that the store refuses what was damaged on its
// way; this needs no extension of the protocol. Requests that fail for a
// reason that may pass are repeated with growing pauses.
package s3

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/mpirun-vft/vft/ckpt/level/backend"
)

// attempts is how often a request is sent, at most. Pauses between grow from
// 0.2 s to 1 s.
const attempts = 6

// Config says which bucket to use, and how.
type Config struct {
	// Endpoint is "http[s]://HOST[:PORT]". Empty means AWS_ENDPOINT_URL_S3 or
	// AWS_ENDPOINT_URL of the environment, else AWS.
	Endpoint string
	// Region of the bucket. Empty means AWS_REGION or AWS_DEFAULT_REGION of
	// the environment, else the store is asked.
	Region string
	Bucket string
	Prefix string // of all keys, without slashes at its ends; may be empty

	Credentials Credentials

	// Silence is how long a connection may neither take nor give a byte before
	// it is given up. Zero means a minute.
	Silence time.Duration
}

// Credentials say who asks. When there is no AccessKey, the environment
// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) is used, else
// the AWS credentials files, else, at AWS, the role of the machine.
type Credentials struct {
	AccessKey, SecretKey, SessionToken string
	File                               string // credentials file instead of AWS's
	Profile                            string // in the files; empty: AWS_PROFILE, else "default"
}

// Store is a bucket, or what has a prefix in it, as a backend.Backend.
type Store struct {
	core      minio.Core
	transport *http.Transport
	endpoint  string
	bucket    string
	prefix    string // empty, or ends with a slash
	now       func() time.Time
}

var _ backend.Backend = (*Store)(nil)

// New returns a Store. It does not send anything. now gives the time to which
// the ages of interrupted uploads are compared.
func New(cfg Config, now func() time.Time) (*Store, error) {
	endpoint := cmp.Or(cfg.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"))
	lookup := minio.BucketLookupPath // stores of one's own seldom have a name per bucket
	aws := endpoint == ""
	if aws {
		endpoint, lookup = "https://s3.amazonaws.com", minio.BucketLookupAuto
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("S3 endpoint %q: want http[s]://HOST[:PORT]", endpoint)
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("S3 endpoint %q: %w", endpoint, err)
	}
	silence := cmp.Or(cfg.Silence, time.Minute)
	transport.DialContext = dialer(silence)
	transport.ResponseHeaderTimeout = silence
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds:        cfg.Credentials.chain(aws),
		Secure:       u.Scheme == "https",
		Transport:    transport,
		Region:       cmp.Or(cfg.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
		BucketLookup: lookup,
		MaxRetries:   attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("S3 endpoint %q: %w", endpoint, err)
	}
	s := &Store{core: *core, transport: transport, endpoint: endpoint, bucket: cfg.Bucket, now: now}
	if cfg.Prefix != "" {
		s.prefix = cfg.Prefix + "/"
	}
	return s, nil
}

// chain returns where credentials are looked for, in this order.
func (c Credentials) chain(aws bool) *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	}
	file := &credentials.FileAWSCredentials{Filename: c.File, Profile: c.Profile}
	if c.File != "" || c.Profile != "" {
		return credentials.New(file)
	}
	providers := []credentials.Provider{&credentials.EnvAWS{}, file}
	if aws {
		providers = append(providers, &credentials.IAM{})
	}
	return credentials.NewChainCredentials(providers)
}

// String implements backend.Backend.
func (s *Store) String() string {
	return "bucket " + strings.TrimSuffix(s.bucket+"/"+s.prefix, "/") + " at " + s.endpoint
}

// Close implements backend.Backend.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Stat implements backend.Backend.
func (s *Store) Stat(ctx context.Context, name string) (backend.Info, error) {
	if err := backend.ValidateName(name); err != nil {
		return backend.Info{}, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+name, minio.StatObjectOptions{})
	if minio.ToErrorResponse(err).StatusCode == http.StatusNotFound {
		// The answer to HEAD has no room to say what is absent: the object,
		// the bucket or, at some stores, the user.
		if _, why := s.readRange(ctx, name, make([]byte, 1), 0); why != nil && !errors.Is(why, io.EOF) {
			err = why
		}
	}
	if err != nil {
		return backend.Info{}, s.wrap(ctx, "stat", name, err)
	}
	return backend.Info{Name: name, Size: info.Size, Modified: info.LastModified}, nil
}

// List implements backend.Backend.
func (s *Store) List(ctx context.Context, prefix string, each func(backend.Info) error) error {
	if err := backend.ValidatePrefix(prefix); err != nil {
		return err
	}
	var after string // the last key that each has seen
	var stopped error
	err := again(ctx, func() error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the listing when each fails
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, StartAfter: after}
		for info := range s.core.ListObjectsIter(ctx, s.bucket, opts) {
			if info.Err != nil {
				return info.Err
			}
			after = info.Key
			name := strings.TrimPrefix(info.Key, s.prefix)
			if backend.ValidateName(name) != nil {
				continue // not ours
			}
			stopped = each(backend.Info{Name: name, Size: info.Size, Modified: info.LastModified})
			if stopped != nil {
				return nil
			}
		}
		return ctx.Err()
	})
	return cmp.Or(s.wrap(ctx, "list", prefix, err), stopped)
}

// Delete implements backend.Backend.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := backend.ValidateName(name); err != nil {
		return err
	}
	err := s.wrap(ctx, "delete", name, s.core.RemoveObject(ctx, s.bucket, s.prefix+name, minio.RemoveObjectOptions{}))
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// Sweep implements backend.Backend: it aborts old multipart uploads.
func (s *Store) Sweep(ctx context.Context, age time.Duration) error {
	before := s.now().Add(-age)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for upload := range s.core.ListIncompleteUploads(ctx, s.bucket, s.prefix, true) {
		if upload.Err != nil {
			return s.wrap(ctx, "list uploads", "", upload.Err)
		}
		if !upload.Initiated.Before(before) {
			continue
		}
		err := s.wrap(ctx, "abort upload", "", s.core.AbortMultipartUpload(ctx, s.bucket, upload.Key, upload.UploadID))
		if err != nil && !errors.Is(err, backend.ErrNotExist) {
			return err
		}
	}
	return ctx.Err()
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
