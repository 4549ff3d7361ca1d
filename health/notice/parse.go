package notice

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Parse reads a notice in one of the forms that are in use, and returns nil
// where it says that there is none:
//
//	{"action": "terminate", "time": "2026-01-02T15:04:05Z"}        AWS, spot
//	{"Events": [{"EventType": "Preempt", "NotBefore": "…"}]}       Azure, scheduled events
//	TRUE, FALSE                                                    Google, preempted
//	NONE, MIGRATE_ON_HOST_MAINTENANCE, TERMINATE_ON_HOST_MAINTENANCE  Google, maintenance
//	{"kind": "maintenance", "at": "…", "reason": "…"}              a site's own
//	anything else                                                  is the message
func Parse(data []byte) (*Announcement, error) {
	text := strings.TrimSpace(string(data))
	if strings.HasPrefix(text, "{") {
		return parseJSON(data)
	}
	switch strings.ToUpper(text) {
	case "", "FALSE", "NONE":
		return nil, nil
	case "TRUE":
		return &Announcement{Kind: "preemption"}, nil
	case "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE":
		return &Announcement{Kind: "maintenance", Text: text}, nil
	}
	line, _, _ := strings.Cut(text, "\n")
	return &Announcement{Kind: "notice", Text: line}, nil
}

func parseJSON(data []byte) (*Announcement, error) {
	var n struct {
		Action string  `json:"action"`
		Time   string  `json:"time"`
		Kind   string  `json:"kind"`
		At     string  `json:"at"`
		Reason string  `json:"reason"`
		Events []event `json:"Events"`
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&n); err != nil {
		return nil, fmt.Errorf("the notice is no JSON: %w", err)
	}
	a := &Announcement{Kind: n.Kind, Text: n.Reason}
	when := n.At
	switch {
	case n.Action != "":
		a.Kind, a.Text, when = "preemption", n.Action, n.Time
	case n.Kind != "":
	case n.Events != nil:
		return nearest(n.Events)
	default:
		return nil, nil
	}
	if when == "" {
		return a, nil
	}
	var err error
	a.At, err = parseTime(when)
	return a, err
}

// event is one of Azure's scheduled events.
type event struct {
	Type      string `json:"EventType"`
	Status    string `json:"EventStatus"`
	NotBefore string `json:"NotBefore"`
	Text      string `json:"Description"`
}

// nearest returns the event that comes first. A freeze takes seconds and is
// none for us.
func nearest(events []event) (*Announcement, error) {
	var first *Announcement
	for _, e := range events {
		if e.Type == "Freeze" || e.Status == "Completed" || e.Status == "Canceled" {
			continue
		}
		a := &Announcement{Kind: "maintenance", Text: strings.TrimSpace(e.Type + " " + e.Text)}
		if e.Type == "Preempt" {
			a.Kind = "preemption"
		}
		if e.NotBefore != "" { // empty: it has begun
			var err error
			if a.At, err = parseTime(e.NotBefore); err != nil {
				return nil, err
			}
		}
		if first == nil || a.At.Before(first.At) {
			first = a
		}
	}
	return first, nil
}

// parseTime reads the forms of time that notices have: RFC 3339, HTTP's, and
// seconds since 1970.
func parseTime(text string) (time.Time, error) {
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 && n < 1<<40 {
		return time.Unix(n, 0), nil
	}
	for _, form := range []string{time.RFC3339Nano, http.TimeFormat, time.RFC1123} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want RFC 3339 or seconds since 1970", text[:min(len(text), 40)])
}
