package health

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Defaults and bounds of when a probe runs.
const (
	defaultEvery = Span(time.Minute)
	defaultLimit = Span(10 * time.Second)
	minEvery     = Span(time.Second)
)

func (c *ProbeConf) check() error {
	if c.Every != 0 && c.Every < minEvery {
		return fmt.Errorf("every %v; probes run every %v at most", c.Every, minEvery)
	}
	return nil
}

// Schedule returns how often a probe runs and how long a run may take.
func (c ProbeConf) Schedule() (every, limit time.Duration) {
	every, limit = time.Duration(c.Every), time.Duration(c.Limit)
	if every == 0 {
		every = time.Duration(defaultEvery)
	}
	if limit == 0 {
		limit = time.Duration(defaultLimit)
	}
	return every, limit
}

// applyScripts adds scripts, replaces those of the same name and drops those
// that are off.
func (r *Rules) applyScripts(list []ScriptConf) error {
	for _, s := range list {
		if s.Name == "" {
			return errors.New("a script needs a name")
		}
		r.Scripts = slices.DeleteFunc(r.Scripts, func(o ScriptConf) bool { return o.Name == s.Name })
		if s.Off {
			continue
		}
		if len(s.Run) == 0 {
			return fmt.Errorf("script %q: it needs a program: run", s.Name)
		}
		if !slices.Contains([]string{"nhc", "npd", "nagios"}, s.Convention) {
			return fmt.Errorf("script %q: convention: want nhc, npd or nagios, not %q", s.Name, s.Convention)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("script %q: %w", s.Name, err)
		}
		r.Scripts = append(r.Scripts, s)
	}
	return nil
}

func (r *Rules) applyNotices(list []NoticeConf) error {
	for _, n := range list {
		if n.Name == "" {
			return errors.New("a notice needs a name")
		}
		r.Notices = slices.DeleteFunc(r.Notices, func(o NoticeConf) bool { return o.Name == n.Name })
		if n.Off {
			continue
		}
		places := 0
		for _, p := range []string{n.File, n.URL, n.Environment} {
			if p != "" {
				places++
			}
		}
		if places != 1 {
			return fmt.Errorf("notice %q: it needs exactly one of file, url and environment", n.Name)
		}
		if err := n.check(); err != nil {
			return fmt.Errorf("notice %q: %w", n.Name, err)
		}
		r.Notices = append(r.Notices, n)
	}
	return nil
}
