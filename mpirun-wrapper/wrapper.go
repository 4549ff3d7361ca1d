// Package wrapper is mpirun-vft: it reads an mpirun command line, decides how
// many guests it needs and where, submits the job, and makes the program in
// the guests look as if mpirun ran it here: standard streams, signals, files
// and exit code. docs/MPIRUN.md is its manual.
//
// [Parser.Parse] understands the command line, [Command.Plan] turns it into
// guests for the nodes there are, and [Run] does the rest.
package wrapper

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
)

// Exit codes of mpirun-vft's own failures. The program's exit code is passed
// on unchanged, and 128+n when signal n ended the job.
const (
	ExitUsage       = 64  // the command line is wrong
	ExitData        = 65  // a file named on the command line cannot be read as what it should be
	ExitSlots       = 67  // more ranks than slots
	ExitHost        = 68  // a host that is not a node of the cluster
	ExitUnavailable = 69  // no cluster, coordinator or sidecar answers
	ExitSoftware    = 70  // vft failed in a way that it did not foresee
	ExitFailed      = 71  // the job was given up: restarts used up, nothing to restart from, no node left
	ExitFiles       = 74  // the program ended well but files could not be brought back
	ExitStopped     = 75  // somebody stopped the job from elsewhere
	ExitClientGone  = 76  // the job was ended because its client was thought gone
	ExitDenied      = 77  // the job is somebody else's, or the certificate is not for people
	ExitConfig      = 78  // the configuration is wrong
	ExitNotExec     = 126 // the program is not executable here
	ExitNotFound    = 127 // the program does not exist
)

// Error is a failure that the user can do something about, and the exit code
// that stands for it.
type Error struct {
	Code int
	Msg  string // one line: what is wrong and what to do
	Err  error  // cause, may be nil
}

func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is the exit code for err: an [*Error]'s own, 0 for nil, [ExitDenied]
// for what the cluster refuses, else [ExitSoftware].
func ExitCode(err error) int {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return ExitDenied
	default:
		return ExitSoftware
	}
}

func failf(code int, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), Err: errors.Unwrap(err)}
}
