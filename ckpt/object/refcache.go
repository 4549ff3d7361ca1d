package object

import (
	"container/list"
	"sync"
)

// refCache keeps what is dear to make: things in use, and those used last up to
// a limit. Each is made once at a time, and freed when nobody uses it any more.
type refCache[K comparable, V any] struct {
	limit int64
	free  func(V)

	mu      sync.Mutex
	entries map[K]*cached[K, V]
	idle    list.List // of *cached[K, V], the one used last in front
	used    int64     // by entries in the map, in the unit of limit
}

type cached[K comparable, V any] struct {
	key   K
	value V
	cost  int64
	err   error
	ready chan struct{}

	// Guarded by the cache.
	refs    int
	element *list.Element // in idle
	dropped bool          // no longer in the map
}

func newRefCache[K comparable, V any](limit int64, free func(V)) *refCache[K, V] {
	return &refCache[K, V]{limit: limit, free: free, entries: map[K]*cached[K, V]{}}
}

// acquire returns the entry for key, made by load if there is none. It must be
// released.
func (c *refCache[K, V]) acquire(key K, load func() (V, int64, error)) (*cached[K, V], error) {
	c.mu.Lock()
	e := c.entries[key]
	if e != nil {
		e.refs++
		if e.element != nil {
			c.idle.Remove(e.element)
			e.element = nil
		}
		c.mu.Unlock()
		<-e.ready
	} else {
		e = &cached[K, V]{key: key, refs: 1, ready: make(chan struct{})}
		c.entries[key] = e
		c.mu.Unlock()
		value, cost, err := load()
		c.mu.Lock()
		e.value, e.cost, e.err = value, cost, err
		if err != nil {
			e.cost = 0
			c.dropLocked(e)
		} else if !e.dropped {
			c.used += e.cost
		}
		c.mu.Unlock()
		close(e.ready)
		c.trim()
	}
	if e.err != nil {
		return nil, e.err
	}
	return e, nil
}

// release gives an entry back.
func (c *refCache[K, V]) release(e *cached[K, V]) {
	c.mu.Lock()
	e.refs--
	unused := e.refs == 0
	if unused && !e.dropped {
		e.element = c.idle.PushFront(e)
		unused = false
	}
	c.mu.Unlock()
	if unused {
		c.free(e.value)
	}
	c.trim()
}

// trim frees what was used longest ago while there is too much.
func (c *refCache[K, V]) trim() {
	c.dropIdle(func(*cached[K, V]) bool { return true }, c.limit)
}

// drop forgets all entries that match. Who uses one may go on.
func (c *refCache[K, V]) drop(match func(K) bool) {
	c.mu.Lock()
	for key, e := range c.entries {
		if match(key) && e.element == nil {
			c.dropLocked(e)
		}
	}
	c.mu.Unlock()
	c.dropIdle(func(e *cached[K, V]) bool { return match(e.key) }, -1)
}

// dropIdle frees entries that match and that nobody uses, from the one used
// longest ago, until no more than limit is used.
func (c *refCache[K, V]) dropIdle(match func(*cached[K, V]) bool, limit int64) {
	var old []V
	c.mu.Lock()
	for at := c.idle.Back(); at != nil && c.used > limit; {
		e := at.Value.(*cached[K, V])
		at = at.Prev()
		if match(e) {
			c.idle.Remove(e.element)
			e.element = nil
			c.dropLocked(e)
			old = append(old, e.value)
		}
	}
	c.mu.Unlock()
	for _, v := range old {
		c.free(v)
	}
}

// dropLocked takes an entry out of the map.
func (c *refCache[K, V]) dropLocked(e *cached[K, V]) {
	if e.dropped {
		return
	}
	e.dropped = true
	delete(c.entries, e.key)
	c.used -= e.cost
}
