package outside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// entry is what a part, or a claim, says.
type entry struct {
	packs    []object.PackName
	manifest []byte // none: a claim
}

const (
	entryMagic = "vft-level-part 1 "
	// maxEntry bounds an entry, in bytes: a manifest and half a million packs.
	maxEntry = 17 << 20
)

// encode writes what parseEntry reads.
func (e *entry) encode() string {
	var body strings.Builder
	for _, n := range e.packs {
		body.WriteString(n.String())
		body.WriteByte('\n')
	}
	body.WriteByte('\n')
	body.Write(e.manifest)
	return entryMagic + ckpt.Digest([]byte(body.String())) + "\n" + body.String()
}

// parseEntry reads an entry. Everything in it is covered by its sum.
func parseEntry(b []byte) (*entry, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	sum, known := strings.CutPrefix(string(head), entryMagic)
	switch {
	case !ok || !known:
		return nil, errors.New("it does not begin as a part does")
	case ckpt.Digest(body) != sum:
		return nil, errors.New("its content has another sum")
	}
	e := &entry{}
	for {
		line, rest, ok := bytes.Cut(body, []byte("\n"))
		if !ok {
			return nil, errors.New("the names of its packs do not end")
		}
		if body = rest; len(line) == 0 {
			e.manifest = body
			return e, nil
		}
		name, err := object.ParsePackName(string(line))
		if err != nil {
			return nil, err
		}
		e.packs = append(e.packs, name)
	}
}

// damagedError is about an object, other than a pack, that is not what was put.
type damagedError struct {
	place, name string
	err         error
}

// Error names the object.
func (e *damagedError) Error() string {
	return fmt.Sprintf("%s: %s is corrupt: %v", e.place, e.name, e.err)
}

// Is makes the error a ckpt.ErrCorrupt.
func (e *damagedError) Is(target error) bool { return target == ckpt.ErrCorrupt }

// Unwrap returns the cause.
func (e *damagedError) Unwrap() error { return e.err }

// readEntry reads a part or a claim. Errors to decide on: backend.ErrNotExist,
// ckpt.ErrCorrupt.
func (l *Level) readEntry(ctx context.Context, name string) (*entry, error) {
	b, err := backend.ReadAll(ctx, l.b, name, maxEntry)
	if errors.Is(err, io.EOF) { // replaced, or cut off, just now
		err = &damagedError{l.String(), name, err}
	}
	if err != nil {
		return nil, err
	}
	e, err := parseEntry(b)
	if err != nil {
		return nil, &damagedError{l.String(), name, err}
	}
	return e, nil
}

// readPart reads the entry of a part, whose manifest has been verified.
func (l *Level) readPart(ctx context.Context, id ckpt.PartID, manifest string) (*entry, error) {
	if err := errors.Join(id.Validate(), ckpt.ValidateDigest(manifest)); err != nil {
		return nil, err
	}
	name := partName(id, manifest)
	e, err := l.readEntry(ctx, name)
	if err != nil {
		return nil, err
	}
	if got := ckpt.Digest(e.manifest); got != manifest {
		return nil, &damagedError{l.String(), name, fmt.Errorf("its manifest is %s", got)}
	}
	return e, nil
}

func partName(id ckpt.PartID, manifest string) string {
	return fmt.Sprintf("%s%s/%d.%d.%s", partsPrefix, id.Job, id.Epoch, id.Guest, manifest)
}

func packName(n object.PackName) string { return packsPrefix + n.String() }

// epochOf returns the epoch of the part with this name, if it is one.
func epochOf(name string) (epoch uint64, ok bool) {
	base := name[strings.LastIndexByte(name, '/')+1:]
	first, rest, _ := strings.Cut(base, ".")
	guest, digest, _ := strings.Cut(rest, ".")
	epoch, errEpoch := strconv.ParseUint(first, 10, 64)
	_, errGuest := strconv.ParseUint(guest, 10, 31)
	return epoch, errors.Join(errEpoch, errGuest, ckpt.ValidateDigest(digest)) == nil
}
