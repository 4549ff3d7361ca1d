package health

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Span is a length of time that files write as Go does, or in whole days: 30s,
// 1h30m, 7d.
type Span time.Duration

// ParseSpan reads a span; it is not negative and at most a hundred years.
func ParseSpan(s string) (Span, error) {
	const most = 100 * 365 * 24 * time.Hour
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n <= uint64(most/(24*time.Hour)) {
			return Span(time.Duration(n) * 24 * time.Hour), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > most {
		return 0, fmt.Errorf("%q is no length of time; write for example 30s, 5m, 12h or 7d", s)
	}
	return Span(d), nil
}

// Seconds returns the span in seconds.
func (s Span) Seconds() float64 { return time.Duration(s).Seconds() }

// String writes the span as ParseSpan reads it.
func (s Span) String() string {
	const day = 24 * time.Hour
	if d := time.Duration(s); d >= day && d%day == 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	text := time.Duration(s).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// MarshalText implements encoding.TextMarshaler.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Span) UnmarshalText(text []byte) error {
	v, err := ParseSpan(string(text))
	if err != nil {
		return err
	}
	*s = v
	return nil
}
