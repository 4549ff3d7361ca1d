package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/shirou/gopsutil/v3/disk"
	"golang.org/x/sys/unix"
)

// Usage is how full a file system is. Of what only root may use, nothing is
// counted as free.
type Usage struct {
	Total         float64 `json:"total"` // bytes
	Free          float64 `json:"free"`
	UsedPercent   float64 `json:"used_percent"`
	InodesPercent float64 `json:"inodes_percent"` // 0 where there are no inodes to run out of
}

// usageLimit bounds the question: the file server may be gone.
const usageLimit = 2 * time.Second

// ErrStalled says that a file system does not answer.
var ErrStalled = errors.New("the file system does not answer")

// Usage asks a file system how full it is. It asks in a goroutine, which
// stays for as long as the kernel does not answer; the caller does not ask
// again before it has ended: done is closed then.
func (h *Host) Usage(ctx context.Context, mount string) (u Usage, done <-chan struct{}, err error) {
	if !h.Live() {
		u, err = h.recordedUsage(mount)
		return u, nil, err
	}
	type answer struct {
		stat *disk.UsageStat
		err  error
	}
	got, ended := make(chan answer, 1), make(chan struct{})
	go func() {
		defer close(ended)
		stat, err := disk.UsageWithContext(ctx, mount)
		got <- answer{stat, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return Usage{}, nil, fmt.Errorf("asking how full %s is: %w", mount, a.err)
		}
		return Usage{float64(a.stat.Total), float64(a.stat.Free), a.stat.UsedPercent, a.stat.InodesUsedPercent}, nil, nil
	case <-time.After(usageLimit):
	case <-ctx.Done():
	}
	return Usage{}, ended, ErrStalled
}

func (h *Host) recordedUsage(mount string) (Usage, error) {
	var all map[string]Usage
	if err := h.recordedJSON("usage.json", &all); err != nil {
		return Usage{}, err
	}
	u, ok := all[mount]
	if !ok {
		return Usage{}, fmt.Errorf("how full %s is was not recorded: %w", mount, os.ErrNotExist)
	}
	return u, nil
}

func (h *Host) recordedJSON(name string, into any) error {
	data, err := h.ReadFile("recorded", name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", h.Path("recorded", name), err)
	}
	return nil
}

// Clock is what the kernel knows about its clock's quality.
type Clock struct {
	Synchronized bool    `json:"synchronized"`
	MaxError     float64 `json:"max_error"` // seconds
	Offset       float64 `json:"offset"`    // seconds the kernel still has to correct
}

// Clock asks the kernel; fs.ErrNotExist where a recorded machine has no answer.
func (h *Host) Clock() (Clock, error) {
	if !h.Live() {
		var c Clock
		return c, h.recordedJSON("clock.json", &c)
	}
	var t unix.Timex // no mode: it only asks
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return Clock{}, fmt.Errorf("adjtimex: %w", err)
	}
	unit := time.Microsecond
	if t.Status&unix.STA_NANO != 0 {
		unit = time.Nanosecond
	}
	return Clock{
		Synchronized: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		MaxError:     (time.Duration(t.Maxerror) * time.Microsecond).Seconds(),
		Offset:       (time.Duration(t.Offset) * unit).Seconds(),
	}, nil
}
