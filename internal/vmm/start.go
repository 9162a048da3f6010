package vmm

import (
	"errors"
	"os"
	"os/exec"
)

// Confine starts a process by start and bounds it; see [Config].
type Confine func(start func() (pid int, err error)) error

// Start starts cmd as confine wants it; nil confines nothing. After an error no process is
// left.
func Start(cmd *exec.Cmd, confine Confine) error {
	if confine == nil {
		return cmd.Start()
	}
	err := confine(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil && cmd.Process != nil {
		if kerr := cmd.Process.Kill(); kerr != nil && !errors.Is(kerr, os.ErrProcessDone) {
			err = errors.Join(err, kerr)
		}
		_ = cmd.Wait() // it was killed
	}
	return err
}
