package ipmi

import (
	"strings"

	"github.com/mpirun-vft/vft/health"
)

// log follows the event log: what was there at the first look is not news,
// and may be years old.
type log struct {
	begun  bool
	last   string // the newest entry seen, whole
	counts map[string]float64
	texts  map[string]string
}

// kinds are what entries are told apart into, by the sensor's type as ipmitool
// prints it. The first that matches counts.
var kinds = []struct{ word, kind string }{
	{"memory", "memory"},
	{"processor", "processor"},
	{"power supply", "power"},
	{"power unit", "power"},
	{"temperature", "temperature"},
	{"fan", "fan"},
	{"voltage", "voltage"},
	{"drive", "drive"},
	{"critical interrupt", "bus"},
	{"add-in card", "bus"},
	{"cable", "bus"},
}

// entry is one line of the event log.
type entry struct{ line, sensor, event string }

// take reads the newest entries, oldest first, and returns the counts.
func (l *log) take(text string) []health.Reading {
	entries := parseLog(text)
	if l.counts == nil {
		l.counts, l.texts = map[string]float64{}, map[string]string{}
	}
	for _, e := range l.fresh(entries) {
		k := e.kind()
		l.counts[k]++
		l.texts[k] = e.sensor + ": " + e.event
	}
	if n := len(entries); n > 0 {
		l.last = entries[n-1].line
	}
	l.begun = true
	readings := []health.Reading{{Metric: "sel_entries", Value: float64(len(entries)), Unit: "entries"}}
	for _, k := range []string{"memory", "processor", "power", "temperature", "fan", "voltage", "drive", "bus", "other"} {
		readings = append(readings, health.Reading{
			Metric: "sel_events", Subject: k, Value: l.counts[k], Unit: "entries", Counter: true, Text: l.texts[k],
		})
	}
	return readings
}

// fresh returns the entries after the newest one seen. When that is gone the
// log was cleared or has run over, and all are new.
func (l *log) fresh(entries []entry) []entry {
	if !l.begun {
		return nil
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].line == l.last {
			return entries[i+1:]
		}
	}
	return entries
}

// parseLog reads lines such as
//
//	1 | 11/20/26 | 14:09:28 UTC | Memory #0x02 | Correctable ECC | Asserted
func parseLog(text string) []entry {
	var list []entry
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		if len(fields) < 5 {
			continue // "SEL has no entries"
		}
		e := entry{line: line, sensor: strings.TrimSpace(fields[3]), event: strings.TrimSpace(fields[4])}
		if len(fields) > 5 && strings.Contains(fields[5], "Deasserted") {
			e.event += " (over)"
		}
		list = append(list, e)
	}
	return list
}

func (e *entry) kind() string {
	if strings.HasSuffix(e.event, "(over)") {
		return "other"
	}
	low := strings.ToLower(e.sensor)
	for _, k := range kinds {
		if strings.Contains(low, k.word) {
			return k.kind
		}
	}
	return "other"
}
