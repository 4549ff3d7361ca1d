package wrapper

import (
	"fmt"
	"io"
	"sync"
)

// outStream shows one output stream of the program. After a restart part of
// it comes again: what is identical to what was shown is not shown twice, and
// from the first byte that differs on the new output is shown.
type outStream struct {
	name   string
	show   func([]byte) error // blocks until the bytes are out
	notice func(kind, text string, figures map[string]int64)

	mu          sync.Mutex
	shown       *spool // what was shown of the latest account
	cursor      int64  // next byte expected from the present incarnation
	incarnation uint64
	fresh       bool // nothing arrived from this incarnation yet
	spooled     bool // false once keeping a copy failed
}

func newOutStream(name, tmp string, show func([]byte) error, notice func(string, string, map[string]int64)) *outStream {
	return &outStream{name: name, show: show, notice: notice, shown: newSpool(tmp), spooled: true}
}

// begin returns the first byte to ask an incarnation for.
func (o *outStream) begin(incarnation uint64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if incarnation != o.incarnation {
		o.incarnation, o.fresh, o.cursor = incarnation, true, o.shown.base
	}
	return o.cursor
}

// position is how far the present incarnation's output was taken.
func (o *outStream) position() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursor
}

// kept is how many bytes the copy holds.
func (o *outStream) kept() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.shown.end - o.shown.base
}

// trim lets go of what lies below off.
func (o *outStream) trim(off int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shown.trim(min(off, o.cursor))
}

// take accepts bytes that stand at offset. begin, take and finish are for one
// goroutine at a time.
func (o *outStream) take(offset int64, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset < o.cursor {
		skip := o.cursor - offset
		if skip >= int64(len(data)) {
			return nil
		}
		offset, data = o.cursor, data[skip:]
	}
	if offset > o.shown.end {
		o.notice("output-lost", fmt.Sprintf("bytes %d to %d of %s were lost", o.shown.end, offset-1, o.name),
			map[string]int64{"from": o.shown.end, "to": offset})
		o.shown.reset(offset)
	}
	o.cursor, o.fresh = offset, false
	data, err := o.compare(data)
	if err != nil || len(data) == 0 {
		return err
	}
	// Whoever reads our stdout may let us wait for long.
	o.mu.Unlock()
	err = o.show(data)
	o.mu.Lock()
	if err != nil {
		return err
	}
	o.cursor += int64(len(data))
	o.keep(data)
	return nil
}

// keep adds what was shown to the copy. Without room for one, output goes on
// and replayed bytes can no longer be compared.
func (o *outStream) keep(data []byte) {
	if o.spooled {
		if err := o.shown.append(data); err != nil {
			o.spooled = false
			o.notice("output-uncompared", fmt.Sprintf("%v; after a restart output that was shown before is not compared", err), nil)
		}
	}
	if !o.spooled {
		o.shown.reset(max(o.shown.end, o.cursor))
	}
}

// compare skips what was shown already and returns the rest of data.
func (o *outStream) compare(data []byte) ([]byte, error) {
	buf := make([]byte, 32<<10)
	for len(data) > 0 && o.cursor < o.shown.end {
		if o.cursor < o.shown.base { // before the oldest checkpoint: the same for certain
			n := min(int64(len(data)), o.shown.base-o.cursor)
			o.cursor += n
			data = data[n:]
			continue
		}
		n, err := o.shown.read(buf[:min(len(buf), len(data))], o.cursor)
		if err != nil {
			return nil, err
		}
		same := 0
		for same < n && buf[same] == data[same] {
			same++
		}
		o.cursor += int64(same)
		data = data[same:]
		if same < n {
			o.notice("output-differs", fmt.Sprintf("output after the restart differs from what was shown at byte %d of %s", o.cursor, o.name),
				map[string]int64{"byte": o.cursor})
			o.shown.truncate(o.cursor)
		}
	}
	return data, nil
}

// finish is told how long the stream was in the end, and reports whether all
// of it was taken.
func (o *outStream) finish(total int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fresh {
		o.cursor = max(o.cursor, min(total, o.shown.end))
	}
	if total < o.shown.end {
		o.notice("output-differs", fmt.Sprintf("output after the restart differs from what was shown at byte %d of %s: it ends there", total, o.name),
			map[string]int64{"byte": total})
		o.shown.truncate(total)
	}
	return o.cursor >= total
}

func (o *outStream) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shown.close()
}

// writeAll writes p completely.
func writeAll(w io.Writer, p []byte) error {
	for len(p) > 0 {
		n, err := w.Write(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
