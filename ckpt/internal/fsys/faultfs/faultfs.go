// Package faultfs is a file system in memory for tests. It forgets at a crash
// what has not been synced, and fails where it is told to.
package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys"
)

// What an injection may return besides errors of the operating system.
var (
	// ErrCrash crashes the machine before the call does anything. Every call
	// from then on fails.
	ErrCrash = errors.New("crash here")
	// ErrShort makes a write take only half, and then fail with ENOSPC.
	ErrShort = errors.New("short write")
	// ErrQuietShort makes a write take only half and say so only by its count.
	ErrQuietShort = errors.New("short write without an error")
)

// errCrashed is what calls get after a crash.
var errCrashed = errors.New("the machine has crashed")

// Call is one call of the file system.
type Call struct {
	N    int    // number of the call since Inject, from 1
	Kind string // "makeroot", "restrict", "lock", "mkdir", "create", "open", "scratch", "rename", "remove", "readdir", "stat", "syncdir", "free", "write", "writeat", "read", "sync", "size", "writeback" or "close"
	Path string // of a rename: the new one
}

// FS is a file system in memory. The zero value is not usable; see New.
type FS struct {
	mu      sync.Mutex
	root    *node
	calls   int
	crashed bool
	locked  map[string]bool
	now     time.Time
	inject  func(Call) error
	written func(path string, b []byte) []byte
}

var _ fsys.FS = (*FS)(nil)

// node is a file or directory. What of a file is durable is its beginning.
type node struct {
	dir     bool
	entries map[string]*node
	durable map[string]*node // entries as of the last sync
	data    []byte
	synced  int
	mod     time.Time
}

// New returns an empty file system. Its clock stands at 2000-01-01 UTC.
func New() *FS {
	return &FS{root: newDir(), locked: map[string]bool{}, now: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func newDir() *node {
	return &node{dir: true, entries: map[string]*node{}, durable: map[string]*node{}}
}

// Inject sets what is asked before every call, nil for nothing, and counts
// calls from 0 again. What f returns is the result of the call unless it is
// nil. f may block: only the call that asks waits.
func (m *FS) Inject(f func(Call) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inject, m.calls = f, 0
}

// CrashAt makes an injection that crashes at the n-th call.
func CrashAt(n int) func(Call) error { return FailAt(n, ErrCrash) }

// FailAt makes an injection that fails the n-th call with err.
func FailAt(n int, err error) func(Call) error {
	return func(c Call) error {
		if c.N == n {
			return err
		}
		return nil
	}
}

// Distort sets what a successful write really stores, nil for what it was given.
func (m *FS) Distort(f func(path string, b []byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written = f
}

// Calls returns how many calls there were since Inject.
func (m *FS) Calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// Advance moves the clock that gives files their times.
func (m *FS) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

// enter counts a call and fails where it must. The lock is held on return.
func (m *FS) enter(kind, path string) error {
	m.mu.Lock()
	if m.crashed {
		return errCrashed
	}
	m.calls++
	if m.inject == nil {
		return nil
	}
	inject, call := m.inject, Call{N: m.calls, Kind: kind, Path: path}
	m.mu.Unlock()
	err := inject(call)
	m.mu.Lock()
	switch {
	case m.crashed:
		return errCrashed
	case errors.Is(err, ErrCrash):
		m.crashed = true
	}
	if err != nil {
		return &fs.PathError{Op: kind, Path: path, Err: err}
	}
	return nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (m *FS) find(path string) *node {
	n := m.root
	for _, name := range split(path) {
		if n == nil || !n.dir {
			return nil
		}
		n = n.entries[name]
	}
	return n
}

func fail(kind, path string, errno syscall.Errno) error {
	return &fs.PathError{Op: kind, Path: path, Err: errno}
}

// MakeRoot implements fsys.FS.
func (m *FS) MakeRoot(dir string) error {
	defer m.mu.Unlock()
	if err := m.enter("makeroot", dir); err != nil {
		return err
	}
	n := m.root
	for _, name := range split(dir) {
		next := n.entries[name]
		if next == nil {
			next = newDir()
			n.entries[name], n.durable[name] = next, next
		}
		n = next
	}
	return nil
}

// Restrict implements fsys.FS.
func (m *FS) Restrict(dir string) error {
	defer m.mu.Unlock()
	return m.enter("restrict", dir)
}

type lock struct {
	m    *FS
	path string
}

// Close gives the lock back.
func (l lock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.locked[l.path] = false
	return nil
}

// Lock implements fsys.FS.
func (m *FS) Lock(path string) (io.Closer, error) {
	defer m.mu.Unlock()
	if err := m.enter("lock", path); err != nil {
		return nil, err
	}
	if m.locked[path] {
		return nil, fsys.ErrLocked
	}
	if m.find(path) == nil {
		if err := m.add("lock", path, &node{mod: m.now}); err != nil {
			return nil, err
		}
	}
	m.locked[path] = true
	return lock{m, path}, nil
}

func (m *FS) add(kind, path string, n *node) error {
	parent := m.find(filepath.Dir(path))
	if parent == nil || !parent.dir {
		return fail(kind, path, syscall.ENOENT)
	}
	if parent.entries[filepath.Base(path)] != nil {
		return fail(kind, path, syscall.EEXIST)
	}
	parent.entries[filepath.Base(path)] = n
	return nil
}

// Mkdir implements fsys.FS.
func (m *FS) Mkdir(path string) error {
	defer m.mu.Unlock()
	if err := m.enter("mkdir", path); err != nil {
		return err
	}
	return m.add("mkdir", path, newDir())
}

// Create implements fsys.FS.
func (m *FS) Create(path string) (fsys.File, error) {
	defer m.mu.Unlock()
	if err := m.enter("create", path); err != nil {
		return nil, err
	}
	n := &node{mod: m.now}
	if err := m.add("create", path, n); err != nil {
		return nil, err
	}
	return &file{m, n, path}, nil
}

// Open implements fsys.FS.
func (m *FS) Open(path string) (fsys.File, error) {
	defer m.mu.Unlock()
	if err := m.enter("open", path); err != nil {
		return nil, err
	}
	n := m.find(path)
	if n == nil {
		return nil, fail("open", path, syscall.ENOENT)
	}
	return &file{m, n, path}, nil
}

// OpenScratch implements fsys.FS.
func (m *FS) OpenScratch(path string) (fsys.Scratch, error) {
	defer m.mu.Unlock()
	if err := m.enter("scratch", path); err != nil {
		return nil, err
	}
	n := m.find(path)
	switch {
	case n != nil && n.dir:
		return nil, fail("scratch", path, syscall.EISDIR)
	case n == nil:
		n = &node{mod: m.now}
		if err := m.add("scratch", path, n); err != nil {
			return nil, err
		}
	}
	return &file{m, n, path}, nil
}

// Rename implements fsys.FS.
func (m *FS) Rename(from, to string) error {
	defer m.mu.Unlock()
	if err := m.enter("rename", to); err != nil {
		return err
	}
	n := m.find(from)
	target, parent := m.find(to), m.find(filepath.Dir(to))
	switch {
	case n == nil || parent == nil || !parent.dir:
		return fail("rename", to, syscall.ENOENT)
	case target != nil && target.dir && (!n.dir || len(target.entries) > 0):
		return fail("rename", to, syscall.ENOTEMPTY)
	case target != nil && n.dir && !target.dir:
		return fail("rename", to, syscall.ENOTDIR)
	}
	delete(m.find(filepath.Dir(from)).entries, filepath.Base(from))
	parent.entries[filepath.Base(to)] = n
	return nil
}

// Remove implements fsys.FS.
func (m *FS) Remove(path string) error {
	defer m.mu.Unlock()
	if err := m.enter("remove", path); err != nil {
		return err
	}
	n := m.find(path)
	if n == nil {
		return fail("remove", path, syscall.ENOENT)
	}
	if len(n.entries) > 0 {
		return fail("remove", path, syscall.ENOTEMPTY)
	}
	delete(m.find(filepath.Dir(path)).entries, filepath.Base(path))
	return nil
}

// ReadDir implements fsys.FS.
func (m *FS) ReadDir(path string) ([]string, error) {
	defer m.mu.Unlock()
	if err := m.enter("readdir", path); err != nil {
		return nil, err
	}
	n := m.find(path)
	switch {
	case n == nil:
		return nil, fail("readdir", path, syscall.ENOENT)
	case !n.dir:
		return nil, fail("readdir", path, syscall.ENOTDIR)
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

// Stat implements fsys.FS.
func (m *FS) Stat(path string) (fsys.Info, error) {
	defer m.mu.Unlock()
	if err := m.enter("stat", path); err != nil {
		return fsys.Info{}, err
	}
	n := m.find(path)
	if n == nil {
		return fsys.Info{}, fail("stat", path, syscall.ENOENT)
	}
	return fsys.Info{Size: int64(len(n.data)), Dir: n.dir, ModTime: n.mod}, nil
}

// SyncDir implements fsys.FS.
func (m *FS) SyncDir(path string) error {
	defer m.mu.Unlock()
	if err := m.enter("syncdir", path); err != nil {
		return err
	}
	n := m.find(path)
	if n == nil || !n.dir {
		return fail("syncdir", path, syscall.ENOENT)
	}
	n.durable = maps.Clone(n.entries)
	return nil
}

// Free implements fsys.FS.
func (m *FS) Free(path string) (int64, error) {
	defer m.mu.Unlock()
	return 1 << 40, m.enter("free", path)
}
