package testkit_test

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// The parts of a VM come out of the cache the second time.
func TestPartsAreMadeOnce(t *testing.T) {
	bundle := testkit.BootBundle(t)
	if again := testkit.BootBundle(t); again != bundle {
		t.Errorf("two boot bundles: %v, %v", bundle, again)
	}
	rootfs := testkit.MinimalRootfs(t)
	if again := testkit.MinimalRootfs(t); again != rootfs {
		t.Errorf("two root filesystems: %s, %s", rootfs, again)
	}
	for _, image := range []string{rootfs, testkit.ScratchDisk(t, 64)} {
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", image, err, out)
		}
	}
}

// leave tells a second run of this test binary to leave things behind.
const leave = "KILN_TESTKIT_LEAVE"

func TestLeavesThingsBehind(t *testing.T) {
	if os.Getenv(leave) == "" {
		return // this is the run that TestLeaksAreFound looks at
	}
	process := exec.Command("sleep", "600")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.MkdirTemp("", "forgotten"); err != nil {
		t.Fatal(err)
	}
}

func TestLeaksAreFound(t *testing.T) {
	run := exec.Command(os.Args[0], "-test.run=^TestLeavesThingsBehind$")
	run.Env = append(os.Environ(), leave+"=1")
	var out strings.Builder
	run.Stdout, run.Stderr = &out, &out
	run.WaitDelay = 1 // nanosecond: the process that is left keeps the output open
	if err := run.Run(); err == nil {
		t.Error("the run passed")
	}
	if !strings.Contains(out.String(), "left behind: file ") || !strings.Contains(out.String(), "/forgotten") {
		t.Errorf("the folder is not reported:\n%s", out.String())
	}
	m := regexp.MustCompile(`left behind: process (\d+): sleep 600`).FindStringSubmatch(out.String())
	if m == nil {
		t.Fatalf("the process is not reported:\n%s", out.String())
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}
