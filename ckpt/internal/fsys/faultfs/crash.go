package faultfs

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
)

// Survival says what a crash leaves of what was not synced.
type Survival struct {
	entry func() bool                           // of a directory: the newer state of a name?
	data  func(unsynced int) (n int, zero bool) // how many bytes of a file, and whether they read as zeros
}

// Survivals returns kinds of crashes that tests should go through, by name.
func Survivals() map[string]Survival {
	return map[string]Survival{"all": All(), "nothing": Nothing(), "some": Some(1), "some other": Some(2)}
}

// All leaves everything, as when only the process died.
func All() Survival {
	return Survival{func() bool { return true }, func(n int) (int, bool) { return n, false }}
}

// Nothing leaves only what was synced.
func Nothing() Survival {
	return Survival{func() bool { return false }, func(int) (int, bool) { return 0, false }}
}

// Some leaves a random choice of names and random lengths of data; some of
// the data are zeros, as when a length reached the device before the content.
func Some(seed uint64) Survival {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's dice
	return Survival{
		func() bool { return r.IntN(2) == 0 },
		func(n int) (int, bool) { return r.IntN(n + 1), r.IntN(3) == 0 },
	}
}

// AfterCrash crashes the machine, if it has not crashed, and returns what is
// there when it comes up again.
func (m *FS) AfterCrash(left Survival) *FS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	next := New()
	next.now = m.now
	next.root = m.root.survivor(left)
	return next
}

func (n *node) survivor(left Survival) *node {
	if !n.dir {
		data := bytes.Clone(n.data[:n.synced])
		if unsynced := n.data[n.synced:]; len(unsynced) > 0 {
			length, zero := left.data(len(unsynced))
			if zero {
				unsynced = make([]byte, length)
			}
			data = append(data, unsynced[:length]...)
		}
		return &node{data: data, synced: len(data), mod: n.mod}
	}
	d := newDir()
	names := maps.Clone(n.durable)
	maps.Copy(names, n.entries)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		child := n.durable[name]
		if child != n.entries[name] && left.entry() {
			child = n.entries[name]
		}
		if child == nil {
			continue
		}
		c := child.survivor(left)
		d.entries[name], d.durable[name] = c, c
	}
	return d
}

// Revive undoes a crash: only the process has died, not the machine. Nothing
// is injected any more, and locks are free.
func (m *FS) Revive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed, m.inject = false, nil
	clear(m.locked)
}

// Files returns the paths of all files below path, sorted.
func (m *FS) Files(path string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var walk func(path string, n *node) []string
	walk = func(path string, n *node) (out []string) {
		if n == nil {
			return nil
		}
		if !n.dir {
			return []string{path}
		}
		for _, name := range slices.Sorted(maps.Keys(n.entries)) {
			out = append(out, walk(path+"/"+name, n.entries[name])...)
		}
		return out
	}
	return walk(path, m.find(path))
}

// Bytes returns a copy of a file's content, nil when there is none.
func (m *FS) Bytes(path string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(path)
	if n == nil {
		return nil
	}
	return bytes.Clone(n.data)
}

// Edit changes a file's bytes, durably, as a failing device does. A file that
// is not there is left alone.
func (m *FS) Edit(path string, change func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(path)
	if n == nil {
		return
	}
	n.data = change(bytes.Clone(n.data))
	n.synced = len(n.data)
}

// Flip inverts one bit of a file.
func (m *FS) Flip(path string, bit int64) {
	m.Edit(path, func(b []byte) []byte {
		b[bit/8] ^= 1 << (bit % 8)
		return b
	})
}
