package stage

import (
	"context"
	"slices"
	"strings"
)

// Add puts what another plan packs into this one. What both have is packed
// once.
func (p *Plan) Add(o *Plan) {
	p.merge(o.Entries)
	for _, v := range o.Env {
		if !slices.Contains(p.Env, v) {
			p.Env = append(p.Env, v)
		}
	}
}

// AddDir packs a directory, without what is in it, and those above it.
func (p *Plan) AddDir(dir string) error {
	var entries []Entry
	if err := addDir(dir, func(e Entry) { entries = append(entries, e) }); err != nil {
		return err
	}
	p.merge(entries)
	return nil
}

func (p *Plan) merge(entries []Entry) {
	p.Entries = append(p.Entries, entries...)
	slices.SortStableFunc(p.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	p.Entries = slices.CompactFunc(p.Entries, func(a, b Entry) bool { return a.Name == b.Name })
}

// FlavourOf tells which MPI a program is linked with, directly or by way of
// its libraries; "" for a script, or for a program that uses neither.
func FlavourOf(ctx context.Context, program, libraryPath string) (Flavour, error) {
	binary, err := isELF(program)
	if err != nil {
		return "", &ProgramError{Path: program, Err: err}
	}
	if !binary {
		return "", nil
	}
	libs, err := newFinder(ctx, libraryPath).libraries(program)
	if err != nil {
		return "", err
	}
	for _, l := range libs {
		if f, ok := flavourOf(l.name); ok {
			return f, nil
		}
	}
	return "", nil
}
