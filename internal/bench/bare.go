package bench

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// BareQEMU measures what starting QEMU costs without any machine: from the start of the
// process to its greeting on QMP.
func BareQEMU(ctx context.Context, program string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, program, "-M", "none", "-nodefaults", "-nographic", "-qmp", "stdio")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, kiln.Errorf(kiln.CodeUnavailable, "the unit of the figures is a bare QEMU's start: %w", err).
			WithHint("apt-get install qemu-system-x86, or name the program with --qemu")
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begun)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if err != nil || !strings.Contains(line, "QMP") {
		return 0, fmt.Errorf("%s says %q instead of greeting: %w", program, line, err)
	}
	return took, nil
}
