package vm

import (
	"context"
	"fmt"

	"github.com/mpirun-vft/vft/vm/stream"
)

// Saved is a saved guest that is read for a restore. What it delivers must be
// verified: it goes to the loaders of all devices. No method may block for
// ever, since a guest waits.
type Saved interface {
	// Head and Tail are the parts of the stream around the pages.
	Head(ctx context.Context) ([]byte, error)
	Tail(ctx context.Context) ([]byte, error)
	// Blocks are the blocks that Head announces, in its order.
	Blocks() []stream.Block
	// Page reads page number of a block into dst, stream.PageSize bytes. When
	// it returns zero the page is all zero and dst may be left as it is.
	// Several goroutines call it at the same time.
	Page(ctx context.Context, block int, number uint64, dst []byte) (zero bool, err error)
	// Each calls fn for all pages of a block that are not zero, in order. The
	// data is valid during the call. An error of fn ends it and is returned.
	// Page may be called meanwhile.
	Each(ctx context.Context, block int, fn func(number uint64, data []byte) error) error
	// Hot are pages that the guest is likely to need first.
	Hot(ctx context.Context) ([]PageRange, error)
}

// PageRange is a range of pages of one block.
type PageRange struct {
	// Block is the index of the block.
	Block int
	// First is the number of the first page and Count how many they are.
	First, Count uint64
}

// PageError says which page of a saved guest cannot be had.
type PageError struct {
	// Block is the name of the block and Number the page's number in it.
	Block  string
	Number uint64
	// Err is what Saved reported.
	Err error
}

// Error implements the error interface.
func (e *PageError) Error() string {
	return fmt.Sprintf("page %d of block %q cannot be had: %v", e.Number, e.Block, e.Err)
}

// Unwrap returns what Saved reported.
func (e *PageError) Unwrap() error { return e.Err }

// RestoreWay names a way of getting a saved guest's memory into QEMU.
type RestoreWay string

// The ways of restoring; docs/VM.md compares them.
const (
	// RestoreAuto leaves the choice to Capabilities.RestoreWay.
	RestoreAuto RestoreWay = "auto"
	// RestoreLazy lets the guest run before its memory is there. Pages come
	// when they are needed, and all others in the background.
	RestoreLazy RestoreWay = "lazy"
	// RestoreFile puts the memory into a file that QEMU maps.
	RestoreFile RestoreWay = "file"
	// RestorePlain gives QEMU a stream with everything.
	RestorePlain RestoreWay = "plain"
)

// RestoreWays lists all ways, the one that lets a guest run soonest first.
func RestoreWays() []RestoreWay { return []RestoreWay{RestoreLazy, RestoreFile, RestorePlain} }

// otherMemory bounds what a machine has besides RAM: ROMs, memory of devices.
const otherMemory = 1 << 30

// checkSaved compares a saved guest's blocks with its head and the machine.
func checkSaved(spec Spec, head []byte, blocks []stream.Block) (stream.Head, error) {
	h, err := stream.ParseHead(head, stream.Limits{Memory: uint64(spec.MemoryMiB)<<20 + otherMemory})
	if err != nil {
		return h, err
	}
	if len(h.Blocks) != len(blocks) {
		return h, fmt.Errorf("the head announces %d blocks and %d were saved", len(h.Blocks), len(blocks))
	}
	for i, b := range h.Blocks {
		if b != blocks[i] {
			return h, fmt.Errorf("the head announces block %q of %d bytes and %q of %d bytes was saved", b.Name, b.Length, blocks[i].Name, blocks[i].Length)
		}
	}
	return h, nil
}
