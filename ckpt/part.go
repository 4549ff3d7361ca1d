package ckpt

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// PartID names one guest's share of one epoch of one job.
type PartID struct {
	Job   string
	Epoch uint64
	Guest int
}

// String returns the id for people.
func (id PartID) String() string {
	return fmt.Sprintf("job %s epoch %d guest %d", id.Job, id.Epoch, id.Guest)
}

// Validate returns an ErrName when the id cannot name a part.
func (id PartID) Validate() error {
	if err := ValidateJob(id.Job); err != nil {
		return err
	}
	if id.Guest < 0 {
		return fmt.Errorf("%w: guest %d: must not be negative", ErrName, id.Guest)
	}
	return nil
}

// maxJobName bounds a job's name, in bytes.
const maxJobName = 128

// ValidateJob returns an ErrName unless job can be the name of a directory on
// every file system: 1 to 128 of A–Z a–z 0–9 . _ -, not starting with . or -.
func ValidateJob(job string) error {
	bad := func(why string) error { return fmt.Errorf("%w: job %q: %s", ErrName, job, why) }
	switch {
	case job == "":
		return bad("is empty")
	case len(job) > maxJobName:
		return bad(fmt.Sprintf("is longer than %d bytes", maxJobName))
	case job[0] == '.' || job[0] == '-':
		return bad("must not start with . or -")
	}
	for _, c := range []byte(job) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return bad("may only have letters, digits, dot, underscore and dash")
		}
	}
	return nil
}

// Info describes a stored part.
type Info struct {
	ID            PartID
	Manifest      string // BLAKE3-256 of the manifest, lower-case hex
	Size          int64  // bytes that the part consists of: pages that are not zero, and the rest
	Changed       int64  // of them, bytes that the guest's part before did not have
	ChannelFrames int
	Incarnation   uint64
	Engine        string
	CutAt         time.Time // zero when it was not recorded
}

// Digest returns the name that the store gives to b: its BLAKE3-256 in
// lower-case hex.
func Digest(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// digestLen is the length of a digest in hex.
const digestLen = 64

// ValidateDigest returns an ErrName unless s can be a digest.
func ValidateDigest(s string) error {
	if len(s) == digestLen && strings.Trim(s, "0123456789abcdef") == "" {
		return nil
	}
	return fmt.Errorf("%w: digest %q: want %d lower-case hex digits", ErrName, s, digestLen)
}

// Names of what is in the store's directory, besides what the object store has.
const (
	formatName = "format"
	lockName   = "lock"
	tmpName    = "tmp"
	partsName  = "parts"
	blobsName  = "blobs"
)

func (s *Store) jobDir(job string) string { return filepath.Join(s.dir, partsName, job) }

func (s *Store) partPath(id PartID) string {
	return filepath.Join(s.jobDir(id.Job), partName(id.Epoch, id.Guest))
}

func partName(epoch uint64, guest int) string {
	return strconv.FormatUint(epoch, 10) + "." + strconv.Itoa(guest)
}

// parsePartName is the inverse of partName. It accepts nothing else.
func parsePartName(name string) (epoch uint64, guest int, ok bool) {
	e, g, _ := strings.Cut(name, ".")
	epoch, err := strconv.ParseUint(e, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	guest, err = strconv.Atoi(g)
	if err != nil || guest < 0 || partName(epoch, guest) != name {
		return 0, 0, false
	}
	return epoch, guest, true
}
