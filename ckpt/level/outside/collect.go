package outside

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/object"
)

const (
	// Grace is how old a pack that no part names becomes: one that is on its
	// way to a level is sent before the part that names it.
	Grace = 24 * time.Hour
	// deletePhase bounds how long a collection deletes what it has decided on;
	// deadAfter is when others take it for dead. Both by their own clocks.
	deletePhase = 5 * time.Minute
	deadAfter   = 10 * time.Minute
)

// Remove removes parts of some epochs of a job. Collect frees what they took.
// What is not there is no error.
func (l *Level) Remove(ctx context.Context, job string, epochs []uint64) error {
	if err := ckpt.ValidateJob(job); err != nil {
		return err
	}
	var names []string
	if err := l.b.List(ctx, partsPrefix+job+"/", func(i backend.Info) error {
		if e, ok := epochOf(i.Name); ok && slices.Contains(epochs, e) {
			names = append(names, i.Name)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, n := range names {
		if err := l.b.Delete(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Collect deletes packs that no part names and that are older than Grace, and
// what interrupted writes have left for as long. It returns how many bytes were
// freed, also on an error. A part that cannot be read is an error, and nothing
// is deleted then. It may be killed at any time, and run several times at once.
func (l *Level) Collect(ctx context.Context) (freed int64, err error) {
	c := &collecting{Level: l, seen: map[string]backend.Info{}, named: map[string]bool{}}
	if err := c.run(ctx); err != nil {
		return c.freed, fmt.Errorf("collect at %s: %w", l, err)
	}
	return c.freed, nil
}

// collecting is a call of Collect.
type collecting struct {
	*Level
	seen  map[string]backend.Info // parts and claims that were read
	named map[string]bool         // packs
	freed int64
}

func (c *collecting) run(ctx context.Context) error {
	if err := c.b.Sweep(ctx, Grace); err != nil {
		return err
	}
	// Most is read before anybody is kept waiting.
	if err := c.look(ctx); err != nil {
		return err
	}
	doomed, err := c.old(ctx, packsPrefix)
	if err != nil {
		return err
	}
	doomed = c.unnamed(doomed)
	if len(doomed) > 0 {
		if err := c.delete(ctx, doomed); err != nil {
			return err
		}
	}
	return c.tidy(ctx)
}

// delete deletes those of the doomed packs that nobody has named meanwhile.
func (c *collecting) delete(ctx context.Context, doomed []backend.Info) error {
	// The limit begins before anybody can see the announcement.
	limited, cancel := context.WithTimeout(ctx, deletePhase)
	defer cancel()
	over, err := c.announce(limited, collectingPrefix, "")
	if err != nil {
		return err
	}
	defer over()
	if err := c.look(limited); err != nil {
		return err
	}
	doomed = c.unnamed(doomed)
	if err := c.opt.Faults.Hit(limited, FaultBeforeDelete); err != nil {
		return err
	}
	for _, i := range doomed {
		err := c.b.Delete(limited, i.Name)
		switch {
		case err != nil && limited.Err() != nil && ctx.Err() == nil:
			c.opt.Log.Info("a collection goes on next time", "deleted", c.freed)
			return nil
		case err != nil:
			return err
		}
		c.freed += i.Size
	}
	return nil
}

// look notes which packs parts and claims name, reading those that are new.
func (c *collecting) look(ctx context.Context) error {
	before := c.opt.Now().Add(-Grace)
	for _, prefix := range []string{claimsPrefix, partsPrefix} { // a claim becomes a part
		var fresh []backend.Info
		if err := c.b.List(ctx, prefix, func(i backend.Info) error {
			if prefix == claimsPrefix && i.Modified.Before(before) {
				return nil // who made it died
			}
			if known := c.seen[i.Name]; known.Size != i.Size || !known.Modified.Equal(i.Modified) {
				fresh = append(fresh, i)
			}
			return nil
		}); err != nil {
			return err
		}
		for _, i := range fresh {
			e, err := c.readEntry(ctx, i.Name)
			switch {
			case errors.Is(err, backend.ErrNotExist): // removed just now
				continue
			case err != nil:
				return err
			}
			c.seen[i.Name] = i
			for _, n := range e.packs {
				c.named[packName(n)] = true
			}
		}
	}
	return nil
}

// old lists what is older than Grace.
func (c *collecting) old(ctx context.Context, prefix string) (old []backend.Info, err error) {
	before := c.opt.Now().Add(-Grace)
	err = c.b.List(ctx, prefix, func(i backend.Info) error {
		if i.Modified.Before(before) {
			old = append(old, i)
		}
		return nil
	})
	return old, err
}

func (c *collecting) unnamed(packs []backend.Info) []backend.Info {
	return slices.DeleteFunc(packs, func(i backend.Info) bool {
		_, err := object.ParsePackName(strings.TrimPrefix(i.Name, packsPrefix))
		return err != nil || c.named[i.Name]
	})
}

// tidy removes announcements of those that died, and marks of packs that are no
// more.
func (c *collecting) tidy(ctx context.Context) error {
	var names []string
	for _, prefix := range []string{claimsPrefix, collectingPrefix} {
		old, err := c.old(ctx, prefix)
		if err != nil {
			return err
		}
		for _, i := range old {
			names = append(names, i.Name)
		}
	}
	if err := c.b.List(ctx, damagedPrefix, func(i backend.Info) error {
		_, err := c.b.Stat(ctx, packsPrefix+strings.TrimPrefix(i.Name, damagedPrefix))
		if errors.Is(err, backend.ErrNotExist) {
			names = append(names, i.Name)
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	for _, n := range names {
		if err := c.b.Delete(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
