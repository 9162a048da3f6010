package vmm

import (
	"errors"
	"os"
	"os/exec"
)

// Confine starts cmd and bounds its process; see [Config].
type Confine func(cmd *exec.Cmd) error

// Start starts cmd as confine wants it; nil confines nothing. After an error no process is
// left.
func Start(cmd *exec.Cmd, confine Confine) error {
	if confine == nil {
		return cmd.Start()
	}
	err := confine(cmd)
	if err != nil && cmd.Process != nil {
		if kerr := cmd.Process.Kill(); kerr != nil && !errors.Is(kerr, os.ErrProcessDone) {
			err = errors.Join(err, kerr)
		}
		_ = cmd.Wait() // it was killed
	}
	return err
}
