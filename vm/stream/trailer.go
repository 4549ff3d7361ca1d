package stream

// trailer watches a tail go by and tells whether it is complete. A tail ends
// with the end of sections (00) and the description: 06, be32 length, JSON of
// that length. What stands before it is opaque, so each place that may be the
// beginning of the description is noted with the end that it foretells.
type trailer struct {
	pos    int64
	window uint64 // the last eight bytes
	ends   []int64
}

// maxEnds bounds the places under watch. A real tail has one or two.
const maxEnds = 64

func (t *trailer) write(b []byte) {
	for _, c := range b {
		t.window = t.window<<8 | uint64(c)
		t.pos++
		// 00 06 length length length length '{'
		if c == '{' && t.window>>40&0xffff == secEOF<<8|secDescription {
			t.note(t.pos - 1 + int64(uint32(t.window>>8)))
		}
	}
}

func (t *trailer) note(end int64) {
	live := t.ends[:0]
	for _, e := range t.ends {
		if e >= t.pos {
			live = append(live, e)
		}
	}
	if t.ends = live; len(live) < maxEnds {
		t.ends = append(live, end)
	}
}

func (t *trailer) complete() bool {
	if byte(t.window) != '}' {
		return false
	}
	for _, e := range t.ends {
		if e == t.pos {
			return true
		}
	}
	return false
}
