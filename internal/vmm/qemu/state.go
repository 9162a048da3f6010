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
	err = m.offer(ctx, w)
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
		return writeFile(path, encodeState(got.stream))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load gives a machine that waits for it a state; it stays paused.
func (m *machine) load(ctx context.Context, stream []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	err = m.offer(ctx, r)
	r.Close()
	if err != nil {
		return err
	}
	go func() {
		_, _ = w.Write(stream) // QEMU says what it misses
		_ = w.Close()
	}()
	if err := m.qmp.run(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + stateName}); err != nil {
		return err
	}
	m.loaded = stream
	return m.qmp.awaitMigration(ctx)
}

// offer gives QEMU one end of a pipe and says how it is to be used.
func (m *machine) offer(ctx context.Context, end *os.File) error {
	capability := func(name string) any { return map[string]any{"capability": name, "state": true} }
	err := m.qmp.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{capability("x-ignore-shared"), capability("events")},
	})
	if err != nil {
		return err
	}
	return m.qmp.runWithFile(ctx, "getfd", map[string]any{"fdname": stateName}, end)
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
