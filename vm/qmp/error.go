package qmp

import (
	"errors"
	"fmt"
)

// ErrClosed is returned for commands that were pending when the monitor was
// closed by its owner, and for every command after that.
var ErrClosed = errors.New("qmp: monitor is closed")

// ErrMessageTooLong is returned when the peer sends a message of more than
// MaxMessage bytes. The connection cannot be used after it.
var ErrMessageTooLong = errors.New("qmp: message too long")

// Error classes of the QMP specification. Everything that is not one of the
// specific classes is ClassGeneric; its description is for people only.
const (
	ClassGeneric         = "GenericError"
	ClassCommandNotFound = "CommandNotFound"
	ClassDeviceNotActive = "DeviceNotActive"
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassKVMMissingCap   = "KVMMissingCap"
)

// Error is a command's error reply.
type Error struct {
	// Command is the command that failed.
	Command string
	// Class is the machine-readable error class, one of the Class constants.
	Class string
	// Desc is QEMU's description, for people.
	Desc string
}

// Error implements the error interface.
func (e *Error) Error() string {
	return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// ConnError says that the connection to QEMU failed. All commands that were
// pending fail with it.
type ConnError struct {
	// Op is what was being done: "read", "write" or "greeting".
	Op string
	// Err is the cause.
	Err error
}

// Error implements the error interface.
func (e *ConnError) Error() string { return "qmp: connection lost: " + e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }
