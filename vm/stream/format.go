package stream

import (
	"fmt"
	"io"
)

// PageSize is the size of a page in the stream, in bytes.
const PageSize = 4096

// What a stream begins with.
const (
	magic   = 0x5145564d // "QEVM"
	version = 3
)

// Types of sections.
const (
	secEOF         = 0x00
	secStart       = 0x01
	secPart        = 0x02
	secEnd         = 0x03
	secFull        = 0x04
	secSubsection  = 0x05
	secDescription = 0x06
	secConfig      = 0x07
	secCommand     = 0x08
	secFooter      = 0x7e
)

// The RAM section.
const (
	ramName    = "ram"
	ramVersion = 4
)

// Flags of a record in a RAM section: the low bits of the page's offset.
const (
	flagZero     = 0x002
	flagMemSize  = 0x004
	flagPage     = 0x008
	flagEOS      = 0x010
	flagContinue = 0x020

	flagMask = PageSize - 1
)

// Commands.
const (
	cmdOpenReturnPath  = 1
	cmdAdvise          = 3
	cmdListen          = 4
	cmdRun             = 5
	cmdDiscard         = 6
	cmdPackaged        = 7
	cmdSwitchoverStart = 11
)

// Block is one block of guest memory: RAM, a ROM, a device's memory.
type Block struct {
	// Name is QEMU's name of the block.
	Name string
	// Length in bytes, a multiple of PageSize.
	Length uint64
}

// Pages is the number of pages of the block.
func (b Block) Pages() uint64 { return b.Length / PageSize }

// Limits bound what a stream may make its reader keep or pass on. The zero
// value stands for DefaultLimits.
type Limits struct {
	// Head and Tail are the greatest sizes of these parts, in bytes.
	Head, Tail int64
	// Blocks is the greatest number of RAM blocks.
	Blocks int
	// Memory is the greatest total length of the blocks, in bytes.
	Memory uint64
}

// DefaultLimits are generous: a usual guest has a head below 1 KiB, a tail of
// some 100 KiB and ten blocks.
func DefaultLimits() Limits {
	return Limits{Head: 1 << 20, Tail: 64 << 20, Blocks: 256, Memory: 1 << 46}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	if l.Head <= 0 {
		l.Head = d.Head
	}
	if l.Tail <= 0 {
		l.Tail = d.Tail
	}
	if l.Blocks <= 0 {
		l.Blocks = d.Blocks
	}
	if l.Memory == 0 {
		l.Memory = d.Memory
	}
	return l
}

// FormatError says where a stream is not what this package knows.
type FormatError struct {
	// Offset in the stream, in bytes.
	Offset int64
	// Problem is what was expected there and what was found.
	Problem string
	// Truncated says that the stream ends at Offset.
	Truncated bool
}

// Error implements the error interface.
func (e *FormatError) Error() string {
	return fmt.Sprintf("migration stream, byte %d: %s", e.Offset, e.Problem)
}

// Unwrap returns io.ErrUnexpectedEOF for a truncated stream.
func (e *FormatError) Unwrap() error {
	if e.Truncated {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func malformed(offset int64, format string, a ...any) *FormatError {
	return &FormatError{Offset: offset, Problem: fmt.Sprintf(format, a...)}
}

func sectionName(t byte) string {
	switch t {
	case secEOF:
		return "end of sections (00)"
	case secStart:
		return "START section (01)"
	case secPart:
		return "PART section (02)"
	case secEnd:
		return "END section (03)"
	case secFull:
		return "FULL section (04)"
	case secSubsection:
		return "subsection (05)"
	case secDescription:
		return "description (06)"
	case secConfig:
		return "configuration (07)"
	case secCommand:
		return "command (08)"
	case secFooter:
		return "section footer (7e)"
	}
	return fmt.Sprintf("byte %#02x, which is no known section", t)
}
