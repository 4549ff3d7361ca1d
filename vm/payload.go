package vm

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// payloadExit is the exit status of a QEMU that ran the payload with an
// isa-debug-exit device: the byte written is v, the status 2v+1.
const payloadExit = 0x2a<<1 | 1

// payloadCounter is the guest-physical address of the 16-bit word that the
// payload counts in.
const payloadCounter = 0x8000

// biosPayload is a firmware image of 64 KiB, the smallest that QEMU takes. It
// runs in real mode from the reset vector, ends QEMU if there is a debug exit
// device, and else counts for ever.
func biosPayload() []byte {
	rom := make([]byte, 64<<10)
	copy(rom, []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xba, 0x01, 0x05, // mov dx, 0x501
		0xb0, 0x2a, // mov al, 0x2a
		0xee,                   // out dx, al
		0xff, 0x06, 0x00, 0x80, // again: inc word [0x8000]
		0xeb, 0xfa, // jmp again
	})
	copy(rom[0xfff0:], []byte{0xe9, 0x0d, 0x00}) // jmp to offset 0
	return rom
}

// kernelMarker is what the probe's init writes to the console.
const kernelMarker = "vft-probe-alive"

// probeInit is a static x86-64 Linux program: write the marker, reboot.
func probeInit() []byte {
	const base, header = 0x400000, 64 + 56
	var code []byte
	imm := func(op byte, v uint32) {
		code = append(code, op)
		code = binary.LittleEndian.AppendUint32(code, v)
	}
	msg := []byte(kernelMarker + "\n")
	imm(0xb8, 1)                                // mov eax, SYS_write
	imm(0xbf, 1)                                // mov edi, 1
	code = append(code, 0x48, 0x8d, 0x35)       // lea rsi, [rip + msg]
	patch := len(code)                          //
	code = append(code, 0, 0, 0, 0)             //
	after := len(code)                          //
	imm(0xba, uint32(len(msg)))                 //nolint:gosec // mov edx, len
	code = append(code, 0x0f, 0x05)             // syscall
	imm(0xb8, 169)                              // mov eax, SYS_reboot
	imm(0xbf, 0xfee1dead)                       // mov edi, LINUX_REBOOT_MAGIC1
	imm(0xbe, 0x28121969)                       // mov esi, LINUX_REBOOT_MAGIC2
	imm(0xba, 0x01234567)                       // mov edx, LINUX_REBOOT_CMD_RESTART
	code = append(code, 0x45, 0x31, 0xd2)       // xor r10d, r10d
	code = append(code, 0x0f, 0x05, 0xeb, 0xfe) // syscall; jmp $
	binary.LittleEndian.PutUint32(code[patch:], uint32(len(code)-after))
	code = append(code, msg...)

	le := binary.LittleEndian
	elf := append([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, make([]byte, 9)...)
	elf = le.AppendUint16(elf, 2)                    // executable
	elf = le.AppendUint16(elf, 62)                   // x86-64
	elf = le.AppendUint32(elf, 1)                    // version
	elf = le.AppendUint64(elf, base+header)          // entry
	elf = le.AppendUint64(elf, 64)                   // program headers
	elf = le.AppendUint64(elf, 0)                    // section headers
	elf = le.AppendUint32(elf, 0)                    // flags
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} { // sizes and counts
		elf = le.AppendUint16(elf, v)
	}
	size := uint64(header + len(code))
	elf = le.AppendUint32(elf, 1) // load
	elf = le.AppendUint32(elf, 5) // read, execute
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		elf = le.AppendUint64(elf, v)
	}
	return append(elf, code...)
}

// cpioFile is one entry of an initramfs.
type cpioFile struct {
	name         string
	mode         uint32 // with the file type bits of stat
	major, minor uint32 // of a device
	data         []byte
}

// cpioArchive is an initramfs in the "newc" format of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func cpioArchive(files []cpioFile) []byte {
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	for i, f := range append(files, cpioFile{name: "TRAILER!!!"}) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			i+1, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, f.major, f.minor, len(f.name)+1, 0)
		b.WriteString(f.name)
		b.WriteByte(0)
		pad()
		b.Write(f.data)
		pad()
	}
	return b.Bytes()
}

// probeInitrd boots to probeInit.
func probeInitrd() []byte {
	return cpioArchive([]cpioFile{
		{name: "dev", mode: 0o040755},
		{name: "dev/console", mode: 0o020600, major: 5, minor: 1},
		{name: "init", mode: 0o100755, data: probeInit()},
	})
}
