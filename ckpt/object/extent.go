package object

import (
	"errors"
	"fmt"
	"slices"
)

// Extent is some objects of one kind, stored as one: what moves from pack to
// pack, and from node to node, without being compressed again.
type Extent struct {
	Kind       Kind
	IDs        []ID     // of the objects, in order
	Lengths    []uint32 // of the objects in bytes; nil for pages
	Length     int      // of all objects together, bytes
	Compressed bool     // Stored is a zstd frame, not the objects themselves
	Stored     []byte
}

// badObjectError is about an object that is not what its id says.
type badObjectError struct{ id ID }

// Error names the object.
func (e *badObjectError) Error() string {
	return fmt.Sprintf("object %v: the content has another id", e.id)
}

// Check fails when the extent contradicts itself or the limits of the format.
func (e *Extent) Check() error {
	entry, err := e.entry()
	if err != nil {
		return err
	}
	if err := entry.check(0); err != nil {
		return err
	}
	if slices.ContainsFunc(e.IDs, ID.IsZero) {
		return errNoID
	}
	x := index{extents: []extentEntry{entry}, lengths: e.Lengths}
	return x.checkLengths()
}

func (e *Extent) entry() (extentEntry, error) {
	want := len(e.IDs)
	if e.Kind == KindPage {
		want = 0
	}
	switch {
	case len(e.IDs) > maxExtentObjects:
		return extentEntry{}, fmt.Errorf("%d objects in one extent", len(e.IDs))
	case len(e.Lengths) != want:
		return extentEntry{}, fmt.Errorf("%d objects and %d lengths", len(e.IDs), len(e.Lengths))
	case e.Length < 0 || e.Length > MaxSize || len(e.Stored) > MaxSize:
		return extentEntry{}, fmt.Errorf("extent of %d bytes, stored as %d", e.Length, len(e.Stored))
	}
	entry := extentEntry{
		stored: uint32(len(e.Stored)), raw: uint32(e.Length), objects: uint16(len(e.IDs)), kind: e.Kind,
	}
	if e.Compressed {
		entry.codec = codecZstd
	}
	return entry, nil
}

// Decode returns the objects, one after the other, in the memory of dst where
// there is room. Every one has been verified against its id.
func (e *Extent) Decode(dst []byte) ([]byte, error) {
	raw, err := e.decode(dst)
	if err != nil {
		return nil, err
	}
	for i, b := range e.split(raw) {
		if Sum(e.Kind, b) != e.IDs[i] {
			return nil, &badObjectError{e.IDs[i]}
		}
	}
	return raw, nil
}

// decode returns the objects without verifying them.
func (e *Extent) decode(dst []byte) ([]byte, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	c := codecRaw
	if e.Compressed {
		c = codecZstd
	}
	return decode(c, e.Stored, e.Length, dst)
}

// split cuts the decoded extent into its objects.
func (e *Extent) split(raw []byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for i := range e.IDs {
			n := PageSize
			if e.Kind != KindPage {
				n = int(e.Lengths[i])
			}
			if !yield(i, raw[:n:n]) {
				return
			}
			raw = raw[n:]
		}
	}
}

var errNoID = errors.New("object without an id")
