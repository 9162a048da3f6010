package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// A migration stream begins with a preamble, the configuration and the RAM sections, and
// goes on with one full section per device. What QEMU saves of devices alone
// (xen-save-devices-state) lacks the preamble. A clone's preamble is the one that it was
// loaded from: memory is mapped and not in it, and the ROMs that are never change.
// (docs/devel/migration.rst and migration/{savevm,ram}.c in QEMU.)
const (
	streamMagic       = "QEVM\x00\x00\x00\x03"
	sectionStart      = 0x01
	sectionPart       = 0x02
	sectionEnd        = 0x03
	sectionFull       = 0x04
	subsection        = 0x05
	sectionVMDesc     = 0x06
	sectionConfig     = 0x07
	sectionFooter     = 0x7e
	ramZero           = 0x02
	ramMemSize        = 0x04
	ramPage           = 0x08
	ramEnd            = 0x10
	ramContinue       = 0x20
	ramFlags          = 0xfff
	ramPageSize       = 4096
	ramSection        = "ram"
	capabilitiesConf  = "configuration/capabilities"
	pageBitsConf      = "configuration/target-page-bits"
	configNameMax     = 256
	sectionHeaderSize = 4 // the ID, after the type
)

var errStream = errors.New("the saved state is not in the form that this QEMU writes")

// withDevices returns a stream with the preamble of stream and the device sections of
// devices, a file that xen-save-devices-state wrote.
func withDevices(stream, devices []byte) ([]byte, error) {
	n, err := preambleLength(stream)
	if err != nil {
		return nil, err
	}
	sections, ok := bytes.CutPrefix(devices, []byte(streamMagic))
	if !ok || len(sections) == 0 || sections[0] != sectionFull {
		return nil, fmt.Errorf("%w: device sections", errStream)
	}
	out := append(make([]byte, 0, n+len(sections)+7), stream[:n]...)
	out = append(out, sections...)
	// QEMU expects a description of the devices at the end, which only debuggers read.
	out = append(out, sectionVMDesc)
	out = binary.BigEndian.AppendUint32(out, 2)
	return append(out, "{}"...), nil
}

// preambleLength returns where the first full section of a stream begins.
func preambleLength(stream []byte) (int, error) {
	p := &streamParser{rest: stream}
	if string(p.take(len(streamMagic))) != streamMagic {
		return 0, fmt.Errorf("%w: header", errStream)
	}
	for p.err == nil {
		switch kind := p.peek(); kind {
		case sectionFull:
			return len(stream) - len(p.rest), nil
		case sectionConfig:
			p.take(1)
			p.configuration()
		case sectionStart, sectionPart, sectionEnd:
			p.take(1)
			p.ram(kind == sectionStart)
		default:
			p.fail("section type %#x", kind)
		}
	}
	return 0, p.err
}

// streamParser takes a stream apart. After an error it takes nothing more.
type streamParser struct {
	rest []byte
	err  error
}

func (p *streamParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", errStream, fmt.Sprintf(format, args...))
	}
}

func (p *streamParser) take(n int) []byte {
	if p.err != nil || n > len(p.rest) {
		p.fail("it ends early")
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

func (p *streamParser) peek() byte {
	if len(p.rest) == 0 {
		p.fail("it ends early")
		return 0
	}
	return p.rest[0]
}

func (p *streamParser) u8() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *streamParser) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *streamParser) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (p *streamParser) name() string { return string(p.take(int(p.u8()))) }

// configuration skips the name of the machine and what the sender could do.
func (p *streamParser) configuration() {
	n := p.u32()
	if n > configNameMax {
		p.fail("machine name of %d bytes", n)
		return
	}
	p.take(int(n))
	for p.err == nil && p.peek() == subsection {
		p.take(1)
		name := p.name()
		p.u32() // version
		switch name {
		case capabilitiesConf:
			for i := p.u32(); i > 0 && p.err == nil; i-- {
				p.name()
			}
		case pageBitsConf:
			p.u32()
		default:
			p.fail("subsection %q", name)
		}
	}
}

// ram skips one section of the memory that is not mapped from a file.
func (p *streamParser) ram(first bool) {
	p.take(sectionHeaderSize)
	if first {
		if name := p.name(); name != ramSection {
			p.fail("section %q", name)
		}
		p.u32() // instance
		p.u32() // version
	}
	for p.err == nil {
		head := p.u64()
		flags := head & ramFlags
		if flags&(ramZero|ramPage) != 0 && flags&ramContinue == 0 {
			p.name() // of the block
		}
		switch flags &^ ramContinue {
		case ramMemSize:
			p.blocks(head &^ ramFlags)
		case ramZero:
			p.take(1)
		case ramPage:
			p.take(ramPageSize)
		case ramEnd:
			if p.err == nil && p.peek() == sectionFooter {
				p.take(1 + sectionHeaderSize)
			}
			return
		default:
			p.fail("memory record %#x", flags)
		}
	}
}

// blocks skips the list of blocks, which have total bytes altogether.
func (p *streamParser) blocks(total uint64) {
	for total > 0 && p.err == nil {
		p.name()
		length := p.u64()
		p.u64() // guest address, written because of x-ignore-shared
		if length > total {
			p.fail("blocks are larger than memory")
			return
		}
		total -= length
	}
}
