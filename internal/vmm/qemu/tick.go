package qemu

import (
	"encoding/binary"
	"time"
)

// tickDelay is by how much the first timer interrupt of a clone is put off: longer than it
// takes to its first answer. On an emulated processor a clone has to translate 400 blocks of
// code to find out that 4 ms have passed, which its clock tells it with the next interrupt
// as well. To the guest this is a processor that was away for so long.
const tickDelay = 30 * time.Millisecond

// putOffTick puts off the timer interrupts that a saved state waits for. It changes the
// stream, and leaves it as it is when it returns an error.
func putOffTick(stream []byte) error {
	// hw/intc/apic_common.c in QEMU: on its virtual clock, in nanoseconds; −1 if there is none.
	expiries, err := fieldsOf(stream, "apic", "timer_expiry", 8)
	if err != nil {
		return err
	}
	for _, expiry := range expiries {
		if at := int64(binary.BigEndian.Uint64(expiry)); at >= 0 {
			binary.BigEndian.PutUint64(expiry, uint64(at+tickDelay.Nanoseconds()))
		}
	}
	return nil
}
