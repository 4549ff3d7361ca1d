package object

import (
	"iter"
	"maps"
)

// Usage says what is in a store, and what it takes.
type Usage struct {
	Packs       int
	Objects     int64 // copies of objects that can be found
	StoredBytes int64 // of the packs' files
	RawBytes    int64 // of the objects in them, uncompressed
	IndexBytes  int64 // of memory for the index
	Pending     int64 // bytes of memory that is on its way to the disk
	Unreadable  int   // packs whose index cannot be read
}

// Usage returns what the store takes now.
func (s *Store) Usage() Usage {
	var u Usage
	for _, p := range s.packs.all() {
		u.Packs++
		u.StoredBytes += p.size
		u.RawBytes += p.raw
		u.IndexBytes += p.memory()
	}
	copies, bytes := s.table.size()
	u.Objects = copies
	u.IndexBytes += bytes
	s.gate.mu.Lock()
	u.Pending = s.gate.used
	s.gate.mu.Unlock()
	u.Unreadable = len(s.Unreadable())
	return u
}

// Packs lists the packs with the sizes of their files in bytes, as they are now.
func (s *Store) Packs() iter.Seq2[PackName, int64] {
	return func(yield func(PackName, int64) bool) {
		for _, p := range s.packs.all() {
			if !yield(p.name, p.size) {
				return
			}
		}
	}
}

// Unreadable returns the packs whose index cannot be read, with the reasons.
// What is in them is missing; they are deleted by the first collection that
// finds nothing missing.
func (s *Store) Unreadable() map[PackName]*CorruptError {
	s.packs.mu.RLock()
	defer s.packs.mu.RUnlock()
	return maps.Clone(s.packs.unreadable)
}
