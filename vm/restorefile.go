package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mpirun-vft/vft/vm/stream"
)

// restoreFile fills a file in memory with the guest's RAM while QEMU starts
// and maps it privately, and gives QEMU a stream with everything else. The
// file has no name: it ends with QEMU.
func restoreFile(ctx context.Context, spec Spec, saved Saved, opts Options) (*Machine, error) {
	spec.memFile = true
	size := int64(spec.MemoryMiB) << 20
	f, err := memoryFile(size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var env envelope
	m, err := startWhile(ctx, spec, opts, func(ctx context.Context) (err error) {
		if env, err = readEnvelope(ctx, spec, saved); err != nil {
			return err
		}
		return fillFile(ctx, f, size, saved, env.head.Blocks)
	}, f)
	if err != nil {
		return nil, err
	}
	err = m.orAbandon(ctx, m.load(ctx, func(conn net.Conn) error {
		return env.write(ctx, conn, saved, func(block string) bool { return block != ramBlock })
	}))
	if err != nil {
		return nil, err
	}
	return m, nil
}

func memoryFile(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("vft-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for the guest's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "vft-ram")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("make a file for the guest's memory: %w", err), f.Close())
	}
	return f, nil
}

// fillFile writes the pages of main memory to f; the others are holes.
func fillFile(ctx context.Context, f *os.File, size int64, saved Saved, blocks []stream.Block) error {
	for i, b := range blocks {
		if b.Name != ramBlock {
			continue
		}
		if b.Length != uint64(size) {
			return fmt.Errorf("the saved guest has %d bytes of memory and the machine %d", b.Length, size)
		}
		return eachPage(ctx, saved, i, b, func(number uint64, data []byte) error {
			_, err := f.WriteAt(data, int64(number*stream.PageSize))
			return err
		})
	}
	return fmt.Errorf("the saved guest has no block %q", ramBlock)
}
