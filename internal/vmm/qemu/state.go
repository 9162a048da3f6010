package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kilnvm/kiln/internal/vmm"
)

// A state file is QEMU's migration stream behind a header:
//
//	magic    8 bytes   "KILNQEM1"
//	length   8 bytes   of the stream, big-endian
//	digest  32 bytes   SHA-256 of the stream
//
// so that an empty, truncated or altered file is refused before QEMU sees any of it.
const (
	stateMagic  = "KILNQEM1"
	stateHeader = len(stateMagic) + 8 + sha256.Size
	// maxState is far beyond what devices need; memory is not part of the stream.
	maxState = 64 << 20
)

// encodeState returns the content of a state file.
func encodeState(stream []byte) []byte {
	sum := sha256.Sum256(stream)
	b := append(make([]byte, 0, stateHeader+len(stream)), stateMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(stream)))
	return append(append(b, sum[:]...), stream...)
}

// decodeState returns the stream in a state file.
func decodeState(b []byte) ([]byte, error) {
	if len(b) < stateHeader || string(b[:len(stateMagic)]) != stateMagic {
		return nil, errors.New("is not a saved state")
	}
	stream := b[stateHeader:]
	if length := binary.BigEndian.Uint64(b[len(stateMagic):]); length != uint64(len(stream)) {
		return nil, fmt.Errorf("has %d bytes of state where it should have %d", len(stream), length)
	}
	if sum := sha256.Sum256(stream); !bytes.Equal(sum[:], b[stateHeader-sha256.Size:stateHeader]) {
		return nil, errors.New("was altered")
	}
	return stream, nil
}

func readState(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: state: %w", vmm.ErrBadState, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(stateHeader)+maxState))
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	stream, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("%w: state %s %w", vmm.ErrBadState, path, err)
	}
	return stream, nil
}

// stateName is under what name QEMU knows the pipe that carries a state.
const stateName = "state"

// save writes the state of CPUs and devices, without memory, to path.
func (m *machine) save(ctx context.Context, path string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = m.all(ctx, ignoreMemory, take(w))
	w.Close()
	if err != nil {
		return err
	}
	type result struct {
		stream []byte
		err    error
	}
	read := make(chan result, 1)
	go func() {
		stream, err := io.ReadAll(io.LimitReader(r, maxState+1))
		read <- result{stream, err}
	}()
	if err := m.qmp.run(ctx, "migrate", map[string]any{"uri": "fd:" + stateName}); err != nil {
		return err
	}
	if err := m.qmp.awaitMigration(ctx); err != nil {
		return err
	}
	select {
	case got := <-read:
		if got.err != nil {
			return got.err
		}
		if len(got.stream) > maxState {
			return fmt.Errorf("state has more than %d bytes", maxState)
		}
		if m.driver.accel == TCG {
			if err := putOffTick(got.stream); err != nil { // of a QEMU that nobody tried: a slower start, and no more
				m.driver.log.Warn("clones begin with a timer interrupt", "err", err)
			}
		}
		return writeFile(path, encodeState(got.stream))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load tells a machine that was just started to take a state; it stays paused. Nothing of
// it waits until QEMU has started: what it answers to hello, and to the rest, comes later.
func (m *machine) load(stream []byte) (greeted reply, loaded []reply, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return reply{}, nil, err
	}
	replies, err := m.send(hello, ignoreMemory, take(r), command{Execute: "migrate-incoming", Arguments: map[string]any{"uri": "fd:" + stateName}})
	r.Close()
	if err != nil {
		w.Close()
		return reply{}, nil, err
	}
	go func() { // ends at the latest when QEMU does
		_, _ = w.Write(stream) // QEMU says what it misses
		_ = w.Close()
	}()
	m.loaded = stream
	return replies[0], replies[1:], nil
}

// awaitLoad waits until the state has been taken.
func (m *machine) awaitLoad(ctx context.Context, loaded []reply) error {
	if err := await(ctx, loaded); err != nil {
		return err
	}
	return m.qmp.awaitMigration(ctx)
}

// ignoreMemory has a migration leave out the memory that is in a file, and say how it ends.
var ignoreMemory = command{Execute: "migrate-set-capabilities", Arguments: map[string]any{
	"capabilities": []any{
		map[string]any{"capability": "x-ignore-shared", "state": true},
		map[string]any{"capability": "events", "state": true},
	},
}}

// take gives QEMU one end of a pipe.
func take(end *os.File) command {
	return command{Execute: "getfd", Arguments: map[string]any{"fdname": stateName}, File: end}
}

// all sends commands and waits until all are carried out.
func (m *machine) all(ctx context.Context, commands ...command) error {
	replies, err := m.send(commands...)
	if err != nil {
		return err
	}
	return await(ctx, replies)
}

func (m *machine) send(commands ...command) ([]reply, error) {
	replies := make([]reply, len(commands))
	for i, c := range commands {
		var err error
		if replies[i], err = m.qmp.send(c); err != nil {
			return nil, err
		}
	}
	return replies, nil
}

func await(ctx context.Context, replies []reply) error {
	for _, r := range replies {
		if err := r.await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes a file whose content is on disk when it returns.
func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
