package probe

import (
	"bytes"
	"encoding/binary"
)

const (
	// guestBase is where the guest's program is loaded and entered.
	guestBase = 0x100000
	// greeting is what the guest prints on its serial port.
	greeting = "kiln-probe-ok\r\n"
)

// program is the guest: entered in 32-bit protected mode, it builds page tables, goes to
// 64-bit mode, prints the greeting and resets the machine by a triple fault. Addresses are
// absolute from guestBase.
var program = append([]byte{
	0xfa,                                                       // cli
	0xc7, 0x05, 0x00, 0x00, 0x20, 0x00, 0x03, 0x10, 0x20, 0x00, // movl $0x201003,0x200000   PML4[0]
	0xc7, 0x05, 0x00, 0x10, 0x20, 0x00, 0x03, 0x20, 0x20, 0x00, // movl $0x202003,0x201000   PDPT[0]
	0xc7, 0x05, 0x00, 0x20, 0x20, 0x00, 0x83, 0x00, 0x00, 0x00, // movl $0x83,0x202000       PD[0]: 2 MiB page
	0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
	0xb8, 0x00, 0x00, 0x20, 0x00, 0x0f, 0x22, 0xd8, // cr3 = 0x200000
	0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, // rdmsr EFER
	0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, // EFER |= LME
	0x0f, 0x20, 0xc0, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0 |= PG|PE
	0x0f, 0x01, 0x15, 0x88, 0x00, 0x10, 0x00, // lgdt gdtr
	0xea, 0x57, 0x00, 0x10, 0x00, 0x08, 0x00, // ljmp $8,$long
	// long: 64-bit code
	0x48, 0x8d, 0x35, 0x3a, 0x00, 0x00, 0x00, // lea greeting(%rip),%rsi
	0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%edx
	0xb9, byte(len(greeting)), 0x00, 0x00, 0x00, // mov $len,%ecx
	0xac, 0xee, 0xe2, 0xfc, // lodsb; out %al,(%dx); loop
	0x0f, 0x01, 0x1d, 0x1b, 0x00, 0x00, 0x00, // lidt noidt(%rip)
	0x0f, 0x0b, // ud2
	0x0f, 0x1f, 0x00, // (alignment)
	0, 0, 0, 0, 0, 0, 0, 0, // gdt: null
	0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00, // gdt: 64-bit code
	0x0f, 0x00, 0x78, 0x00, 0x10, 0x00, // gdtr
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // noidt
}, greeting...)

// pvhNote is the ELF note (XEN_ELFNOTE_PHYS32_ENTRY) that names the entry point to VMMs
// which start a kernel directly (Xen, "PVH boot ABI").
type pvhNote struct {
	NameSize, DescSize, Type uint32
	Name                     [4]byte
	Entry                    uint64
}

// elfHeader is an ELF-64 file header as the System V ABI defines it.
type elfHeader struct {
	Ident                                        [16]byte
	Type, Machine                                uint16
	Version                                      uint32
	Entry, ProgramOffset, SectionOffset          uint64
	Flags                                        uint32
	Size, ProgramSize, ProgramCount              uint16
	SectionSize, SectionCount, SectionNamesIndex uint16
}

// programHeader is an entry of its program header table.
type programHeader struct {
	Type, Flags                                                   uint32
	Offset, VirtualAddress, PhysicalAddress, InFile, InMem, Align uint64
}

// image returns the guest as an ELF file that QEMU takes for a kernel.
func image() []byte {
	const (
		headerSize, programHeaderSize = 64, 56
		noteOffset                    = headerSize + 2*programHeaderSize
		codeOffset                    = 0x1000
		noteSize                      = 24
		executable, x86, load, note   = 2, 62, 1, 4
	)
	size := uint64(len(program))
	var b bytes.Buffer
	for _, part := range []any{
		elfHeader{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: executable, Machine: x86, Version: 1, Entry: guestBase,
			ProgramOffset: headerSize, Size: headerSize, ProgramSize: programHeaderSize, ProgramCount: 2,
		},
		programHeader{
			Type: load, Flags: 7, Offset: codeOffset, VirtualAddress: guestBase, PhysicalAddress: guestBase,
			InFile: size, InMem: size, Align: codeOffset,
		},
		programHeader{Type: note, Flags: 4, Offset: noteOffset, InFile: noteSize, InMem: noteSize, Align: 4},
		pvhNote{NameSize: 4, DescSize: 8, Type: 18, Name: [4]byte{'X', 'e', 'n'}, Entry: guestBase},
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // fixed-size values into memory
	}
	b.Write(make([]byte, codeOffset-b.Len()))
	b.Write(program)
	return b.Bytes()
}
