package wrapper

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// OpenEvents opens what --vft-events names: a file, which is replaced, "-" for
// stdout, or "fd:N".
func OpenEvents(where string) (io.WriteCloser, error) {
	if where == "-" {
		return keepOpen{os.Stdout}, nil
	}
	if fd, ok := strings.CutPrefix(where, "fd:"); ok {
		n, err := strconv.Atoi(fd)
		if err != nil || n < 0 {
			return nil, failf(ExitUsage, "--vft-events %s: not a file descriptor", where)
		}
		f := os.NewFile(uintptr(n), where)
		if _, err := f.Stat(); err != nil {
			return nil, failf(ExitUsage, "--vft-events %s is not open: %w", where, err)
		}
		return keepOpen{f}, nil
	}
	f, err := os.Create(where)
	if err != nil {
		return nil, failf(ExitUsage, "--vft-events: %w", err)
	}
	return f, nil
}

// keepOpen leaves closing to whoever opened the file.
type keepOpen struct{ io.Writer }

// Close leaves the file to whom it belongs.
func (keepOpen) Close() error { return nil }

// EventLine is one line of --vft-events. docs/MPIRUN.md lists the kinds.
type EventLine struct {
	Time        time.Time         `json:"time"`
	Job         string            `json:"job"`
	Number      uint64            `json:"number,omitempty"` // in the job's history; 0: said by mpirun-vft itself
	Incarnation uint64            `json:"incarnation,omitempty"`
	Kind        string            `json:"kind"`
	Text        string            `json:"text"`
	Figures     map[string]int64  `json:"figures,omitempty"` // durations in ns, sizes in bytes
	Labels      map[string]string `json:"labels,omitempty"`
}

// reporter tells the user and whoever reads --vft-events what happens.
type reporter struct {
	screen *screen
	job    string

	mu    sync.Mutex
	lines io.WriteCloser // nil: nobody reads them
}

// job's own history.
func (r *reporter) event(e *vftv1.Event, incarnation uint64) {
	if silent[e.GetKind()] {
		r.write(e, incarnation)
		return
	}
	text := e.GetText()
	if text == "" {
		text = e.GetKind()
	}
	r.screen.line(text)
	r.write(e, incarnation)
}

// silent are the kinds that are no news to the user who started the job.
var silent = map[string]bool{"submitted": true, "started": true, "ended": true, "level-safe": true}

func (r *reporter) write(e *vftv1.Event, incarnation uint64) {
	r.put(EventLine{
		Time: time.Unix(0, e.GetAt()).UTC(), Job: r.job, Number: e.GetNumber(), Incarnation: incarnation,
		Kind: e.GetKind(), Text: e.GetText(), Figures: e.GetFigures(), Labels: e.GetLabels(),
	})
}

// notice tells what only this client knows.
func (r *reporter) notice(kind, text string, figures map[string]int64) {
	r.screen.line(text)
	r.put(EventLine{Time: time.Now().UTC(), Job: r.job, Kind: kind, Text: text, Figures: figures})
}

func (r *reporter) put(l EventLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lines == nil {
		return
	}
	data, err := json.Marshal(l)
	if err == nil {
		err = writeAll(r.lines, append(data, '\n'))
	}
	if err != nil {
		_ = r.lines.Close()
		r.lines = nil
		r.screen.line(fmt.Sprintf("no more events are written: %v", err))
	}
}

func (r *reporter) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lines != nil {
		_ = r.lines.Close()
		r.lines = nil
	}
}

// clock writes d as people read it.
func clock(d time.Duration) string {
	d = d.Round(time.Second)
	if d >= time.Hour {
		return fmt.Sprintf("%d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}
