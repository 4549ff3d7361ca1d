package stage

import (
	"errors"
	"fmt"
)

// Reasons for which a program cannot be run; a [ProgramError] wraps one.
var (
	ErrMissing       = errors.New("no such program")
	ErrDirectory     = errors.New("is a directory")
	ErrNotExecutable = errors.New("is not executable")
)

// ProgramError says what is wrong with the program that was asked for.
type ProgramError struct {
	Path string
	Err  error
}

func (e *ProgramError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

func (e *ProgramError) Unwrap() error { return e.Err }

// ArchitectureError says that a program is for another processor.
type ArchitectureError struct {
	Path string
	// Architecture in words, such as "ARM64".
	Architecture string
}

func (e *ArchitectureError) Error() string {
	return fmt.Sprintf("%s is for %s; the guests are 64-bit x86", e.Path, e.Architecture)
}

// LibraryError says that a shared library is nowhere to be found.
type LibraryError struct {
	// Program is what was to be run, NeededBy the file that asks for Library.
	Program, NeededBy, Library string
}

func (e *LibraryError) Error() string {
	if e.NeededBy != e.Program {
		return fmt.Sprintf("%s needs the shared library %s (through %s), which is not found on this host",
			e.Program, e.Library, e.NeededBy)
	}
	return fmt.Sprintf("%s needs the shared library %s, which is not found on this host; LD_LIBRARY_PATH may lack its directory",
		e.Program, e.Library)
}
