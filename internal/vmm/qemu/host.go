package qemu

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
)

// oldest is the first major version that takes every option used here.
const oldest = 7

// install is the command that mends a missing or old QEMU on Debian and Ubuntu.
const install = "apt-get install qemu-system-x86 seabios"

var versionLine = regexp.MustCompile(`version (\d+)(\.[0-9.]+)`)

func versionOf(ctx context.Context, binary string) (string, error) {
	out, err := hostcmd.Output(ctx, binary, "--version")
	if err != nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s does not run: %w", binary, err).WithHint(install)
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s --version prints no version: %.80q", binary, out).WithHint(install)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major < oldest {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s is version %s%s; Kiln needs %d or later", binary, m[1], m[2], oldest).
			WithHint(install)
	}
	return m[1] + m[2], nil
}

// canSandbox reports whether QEMU was built with seccomp: it refuses the option if not.
func canSandbox(ctx context.Context, binary string) bool {
	_, err := hostcmd.Output(ctx, binary, "-sandbox", sandbox, "-version")
	return err == nil
}

// emulatedCPU fingerprints what a guest sees on TCG: a model that depends on QEMU's version
// only, with the host's time stamp counter, whose measured frequency is
// rounded to 10 MHz so that it is the same every time.
func emulatedCPU(khz uint64) string { return fmt.Sprintf(emulated+"-tsc%dMHz", (khz+5_000)/10_000*10) }

// hostCPU fingerprints what a guest sees with -cpu host.
func hostCPU(cpuinfo string) (string, error) {
	text, err := os.ReadFile(cpuinfo)
	if err != nil {
		return "", fmt.Errorf("CPU fingerprint: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n\n")
	key := kiln.NewKey(kiln.StageSnapshot, 1)
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		switch name = strings.TrimSpace(name); name {
		case "vendor_id", "cpu family", "model", "stepping", "flags":
			key.Add(name, strings.TrimSpace(value))
		}
	}
	return "host-" + key.Key().Short(), nil
}
