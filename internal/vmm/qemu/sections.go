package qemu

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// description is what QEMU writes behind the device sections of a migration stream: what
// each of them consists of, in order (migration/{savevm,vmstate}.c in QEMU).
type description struct {
	Devices []struct {
		Name     string `json:"name"`
		Instance uint32 `json:"instance_id"`
		block
	} `json:"devices"`
}

// block describes a device or one of its subsections.
type block struct {
	VMSD        string  `json:"vmsd_name"`
	Fields      []field `json:"fields"`
	Subsections []block `json:"subsections"`
}

// field describes a run of bytes. Equal elements of an array are described once.
type field struct {
	Name  string `json:"name"`
	Size  int    `json:"size"`
	Count *int   `json:"array_len"`
}

func (f field) bytes() int {
	if f.Count != nil {
		return f.Size * *f.Count
	}
	return f.Size
}

// subsectionHeader is the type, the length of the name, and the version.
const subsectionHeader = 1 + 1 + 4

func (b block) bytes() int {
	n := 0
	for _, f := range b.Fields {
		n += f.bytes()
	}
	for _, s := range b.Subsections {
		n += subsectionHeader + len(s.VMSD) + s.bytes()
	}
	return n
}

// cut returns the field of this name and size in the content of a block.
func (b block) cut(content []byte, name string, size int) ([]byte, bool) {
	offset := 0
	for _, f := range b.Fields {
		if f.Name == name && f.bytes() == size {
			return content[offset : offset+size], true
		}
		offset += f.bytes()
	}
	return nil, false
}

// describe reads the description of a stream, which is its end.
func describe(stream []byte) (d description, err error) {
	const header = 1 + 4 // type and length
	for end := len(stream); ; {
		end = bytes.LastIndexByte(stream[:end], sectionVMDesc)
		if end < 0 {
			return d, fmt.Errorf("%w: no description of devices", errStream)
		}
		if rest := stream[end:]; len(rest) > header && int(binary.BigEndian.Uint32(rest[1:])) == len(rest)-header {
			if err := json.Unmarshal(rest[header:], &d); err != nil {
				return d, fmt.Errorf("%w: description of devices: %w", errStream, err)
			}
			return d, nil
		}
	}
}

// fieldsOf returns a field of size bytes in every device of this name, as parts of stream.
func fieldsOf(stream []byte, device, name string, size int) ([][]byte, error) {
	start, err := preambleLength(stream)
	if err != nil {
		return nil, err
	}
	d, err := describe(stream)
	if err != nil {
		return nil, err
	}
	var found [][]byte
	p := &streamParser{rest: stream[start:]}
	for _, dev := range d.Devices {
		content := p.device(dev.Name, dev.Instance, dev.bytes())
		if p.err != nil {
			return nil, p.err
		}
		if dev.Name != device {
			continue
		}
		f, ok := dev.cut(content, name, size)
		if !ok {
			return nil, fmt.Errorf("%w: device %q has no %q of %d bytes", errStream, device, name, size)
		}
		found = append(found, f)
	}
	return found, nil
}

// device takes the section of a device and returns its content.
func (p *streamParser) device(name string, instance uint32, size int) []byte {
	if kind := p.u8(); kind != sectionFull {
		p.fail("section type %#x", kind)
	}
	id := p.u32()
	if gotName, gotInstance := p.name(), p.u32(); gotName != name || gotInstance != instance {
		p.fail("device %q (%d), not %q (%d)", gotName, gotInstance, name, instance)
	}
	p.u32() // version
	content := p.take(size)
	if p.u8() != sectionFooter || p.u32() != id {
		p.fail("the end of device %q", name)
	}
	return content
}
