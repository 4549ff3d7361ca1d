package cutcheck

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// pair is two guests of which guest 0 had sent some frames to guest 1.
func pair(sent, seen, channel uint64) []Guest {
	return []Guest{
		{Sent: []uint64{0, sent}, Seen: []uint64{0, 0}, Channel: []uint64{0, channel}},
		{Sent: []uint64{0, 0}, Seen: []uint64{seen, 0}, Channel: []uint64{0, 0}},
	}
}

func TestCut(t *testing.T) {
	assert.NoError(t, Cut(pair(3, 3, 0)))
	assert.NoError(t, Cut(pair(3, 1, 0)))
	assert.ErrorContains(t, Cut(pair(3, 4, 0)), "I4")
	assert.NoError(t, Whole(pair(3, 1, 2)))
	assert.Error(t, Whole(pair(3, 1, 1)), "one is lost")
	assert.Error(t, Whole(pair(3, 1, 3)), "one will come twice")
}

func TestCommit(t *testing.T) {
	good := Epoch{Number: 2, Incarnation: 1, ByOrder: []bool{true, true}, Durable: []bool{true, true}, Guests: pair(3, 1, 2)}
	assert.NoError(t, Commit(1, 1, good))
	assert.ErrorContains(t, Commit(2, 1, good), "I1", "twice")
	assert.ErrorContains(t, Commit(1, 2, good), "I1", "of an earlier incarnation")
	for name, spoil := range map[string]func(*Epoch){
		"part":    func(e *Epoch) { e.Durable = []bool{true, false} },
		"release": func(e *Epoch) { e.ByOrder = []bool{false, true} },
		"I4":      func(e *Epoch) { e.Guests = pair(1, 2, 0) },
	} {
		e := good
		spoil(&e)
		assert.ErrorContains(t, Commit(1, 1, e), name)
	}
}

func TestDeliver(t *testing.T) {
	good := Delivery{To: 1, Frame: 1, At: 1, Number: 3, Sent: 3, Seen: 2}
	assert.NoError(t, Deliver(good))
	for name, spoil := range map[string]func(*Delivery){
		"I3":    func(d *Delivery) { d.At = 2 },
		"I4":    func(d *Delivery) { d.Sent = 2 },
		"after": func(d *Delivery) { d.Seen = 3 },
		"lost":  func(d *Delivery) { d.Seen = 1 },
	} {
		d := good
		spoil(&d)
		assert.ErrorContains(t, Deliver(d), name)
	}
	good.Seen, good.Lossy = 1, true
	assert.NoError(t, Deliver(good))
}

func TestHarmless(t *testing.T) {
	assert.NoError(t, Harmless("release", 1, 1))
	assert.ErrorContains(t, Harmless("release", 1, 2), "I6")
}
