package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// chunkSize of streamed messages: large enough to be cheap, small enough for
// HTTP/2's flow control.
const chunkSize = 256 << 10

// fetchBlob makes sure that the node holds a staged archive.
func (s *Sidecar) fetchBlob(ctx context.Context, b *vftv1.Blob, peers []string) error {
	if b.GetDigest() == "" {
		return nil
	}
	if has, err := s.blobs.Has(b.GetDigest()); has || err != nil {
		return err
	}
	var errs []error
	for _, address := range peers {
		if address == s.cfg.Node.GetAddress() {
			continue
		}
		err := s.fetchBlobFrom(ctx, b, address)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return fmt.Errorf("no node has the job's staged files (%s): %w", b.GetDigest(), errors.Join(errs...))
}

func (s *Sidecar) fetchBlobFrom(ctx context.Context, b *vftv1.Blob, address string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.cfg.Peer(address).GetBlob(ctx, connect.NewRequest(&vftv1.GetBlobRequest{Blob: b}))
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // the reader reports what matters
	_, err = s.blobs.Put(ctx, b.GetDigest(), b.GetSize(), &messageReader{next: func() ([]byte, error) {
		if !stream.Receive() {
			return nil, endOf(stream.Err())
		}
		return stream.Msg().GetData(), nil
	}})
	return err
}

// uploadGrace is how long an archive that somebody sent is kept although no
// job here needs it: the job that it was sent for may not be submitted yet.
const uploadGrace = time.Minute

func (s *Sidecar) noteUpload(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for d, at := range s.uploads {
		if now.Sub(at) > uploadGrace {
			delete(s.uploads, d)
		}
	}
	s.uploads[digest] = now
}

// dropBlob removes an archive that the leader says no other job needs.
func (s *Sidecar) dropBlob(digest string) error {
	if digest == "" {
		return nil
	}
	for _, inc := range s.incarnations() {
		if inc.spec.GetStage().GetDigest() == digest {
			return nil
		}
	}
	s.mu.Lock()
	at, recent := s.uploads[digest]
	s.mu.Unlock()
	if recent && time.Since(at) < uploadGrace {
		return nil
	}
	return s.blobs.Delete(digest)
}

// endOf turns a stream's error into a reader's.
func endOf(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// messageReader reads the bytes of a stream of messages.
type messageReader struct {
	next func() ([]byte, error)
	rest []byte
}

func (r *messageReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		var err error
		if r.rest, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// messageWriter sends bytes as messages of at most chunkSize.
type messageWriter struct {
	send func([]byte) error
}

func (w *messageWriter) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		end := min(sent+chunkSize, len(p))
		if err := w.send(p[sent:end]); err != nil {
			return sent, err
		}
		sent = end
	}
	return sent, nil
}
