package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Output is what a program did.
type Output struct {
	Stdout []byte
	Stderr []byte // its beginning
	Exit   int    // a status other than 0 is no error
}

// ErrNoProgram says that a program is not installed.
var ErrNoProgram = errors.New("not installed")

// ErrSignal says that a program was ended by a signal that was not ours.
var ErrSignal = errors.New("ended by a signal")

// TimeoutError says that a program was cut off. errors.Is finds
// context.DeadlineExceeded in it.
type TimeoutError struct {
	Program string
	After   time.Duration
	// Stuck says that it has not even died yet: the kernel holds it. It is
	// not started again while it lives.
	Stuck bool
}

// Error implements error.
func (e *TimeoutError) Error() string {
	if e.Stuck {
		return fmt.Sprintf("%s hangs in the kernel since %v and cannot be killed", e.Program, e.After.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s was cut off after %v", e.Program, e.After.Round(time.Millisecond))
}

// Unwrap returns context.DeadlineExceeded.
func (e *TimeoutError) Unwrap() error { return context.DeadlineExceeded }

// programs runs programs, or has recorded what they did.
type programs interface {
	run(ctx context.Context, limit time.Duration, argv []string) (Output, error)
	has(program string) bool
}

// Run runs a program of the machine for at most limit. A program that is not
// there is ErrNoProgram; one that was cut off is a *TimeoutError.
func (h *Host) Run(ctx context.Context, limit time.Duration, argv ...string) (Output, error) {
	return h.programs.run(ctx, limit, argv)
}

// Has says whether a program is installed.
func (h *Host) Has(program string) bool { return h.programs.has(program) }

// recorded has what programs did in files.
type recorded struct{ dir string }

// slug is the name of the file of a command's arguments.
func slug(args []string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune(".,=-", c):
			return c
		}
		return '_'
	}, strings.Join(args, " "))
}

func (r *recorded) has(program string) bool {
	_, err := os.Stat(filepath.Join(r.dir, filepath.Base(program)))
	return err == nil
}

func (r *recorded) run(_ context.Context, _ time.Duration, argv []string) (Output, error) {
	program := filepath.Base(argv[0])
	if !r.has(program) {
		return Output{}, fmt.Errorf("%s: %w", program, ErrNoProgram)
	}
	file := filepath.Join(r.dir, program, slug(argv[1:]))
	stdout, err := os.ReadFile(file + ".out")
	if err != nil {
		return Output{}, fmt.Errorf("this command was not recorded: %w", err)
	}
	out := Output{Stdout: stdout}
	text, err := os.ReadFile(file + ".exit")
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		out.Exit, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return Output{}, fmt.Errorf("recorded exit status: %w", err)
	}
	return out, nil
}
