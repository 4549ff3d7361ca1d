package health

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Recorder writes readings, one per line in JSON.
type Recorder struct{ enc *json.Encoder }

// NewRecorder returns a recorder that writes to w.
func NewRecorder(w io.Writer) *Recorder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &Recorder{enc}
}

// Write writes the readings of one run, with equal times.
func (r *Recorder) Write(readings []Reading) error {
	for i := range readings {
		if err := r.enc.Encode(&readings[i]); err != nil {
			return fmt.Errorf("recording readings: %w", err)
		}
	}
	return nil
}

// ErrRecording is wrapped by errors about a recording that cannot be read.
var ErrRecording = errors.New("bad recording")

// maxLine bounds a line of a recording.
const maxLine = 64 << 10

// Replay reads a recording and calls change for everything that an engine
// with these rules would have decided. It returns the engine as it is at the
// end, and how many readings there were.
func Replay(r io.Reader, rules *Rules, change func(Change)) (*Engine, int, error) {
	p := &player{engine: NewEngine(rules), change: change}
	in := bufio.NewReaderSize(r, maxLine)
	for line := 1; ; line++ {
		text, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, p.count, fmt.Errorf("%w: line %d has more than %d bytes", ErrRecording, line, maxLine)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, p.count, fmt.Errorf("reading the recording: %w", err)
		}
		if text = bytes.TrimSpace(text); len(text) > 0 && text[0] != '#' {
			if e := p.line(text); e != nil {
				return nil, p.count, fmt.Errorf("%w: line %d: %w", ErrRecording, line, e)
			}
		}
		if err != nil {
			p.flush()
			return p.engine, p.count, nil
		}
	}
}

// player feeds an engine from a recording. Readings of one probe at one time
// were one run and are observed together.
type player struct {
	engine *Engine
	change func(Change)
	batch  []Reading
	count  int
	first  time.Time // of the first line without up
	last   float64   // Up of the last such line
}

func (p *player) line(text []byte) error {
	var r Reading
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return err
	}
	if r.Up == 0 {
		p.place(&r)
	}
	if err := r.Check(); err != nil {
		return err
	}
	if n := len(p.batch); n > 0 && (p.batch[n-1].Probe != r.Probe || p.batch[n-1].Up != r.Up || n == maxSeries) {
		p.flush()
	}
	p.batch = append(p.batch, r)
	p.count++
	return nil
}

// place gives a reading without the time of a clock that is never set one from
// the wall clock, which may have been: it does not go back.
func (p *player) place(r *Reading) {
	if p.first.IsZero() {
		p.first = r.At
	}
	p.last = math.Max(p.last, 1+r.At.Sub(p.first).Seconds())
	r.Up = p.last
}

func (p *player) flush() {
	if len(p.batch) == 0 {
		return
	}
	if c, changed := p.engine.Observe(p.batch); changed {
		p.change(c)
	}
	p.batch = nil
}
