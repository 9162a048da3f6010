package git

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// tokenUser is the user name that goes with a token when the URL has none. GitHub and
// GitLab take any; others want one of their own in the URL.
const tokenUser = "x-access-token"

// access is what git needs to know to get into one repository.
type access struct {
	env     []string
	secrets []*os.File
}

// newAccess prepares the environment of git. Close it when no git runs any more.
func newAccess(u *url.URL, cred kiln.GitCredentials) (*access, error) {
	a := &access{}
	config := [][2]string{
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"fetch.fsckObjects", "true"},
		{"transfer.bundleURI", "false"},
		{"protocol.version", "2"},
		{"http.lowSpeedLimit", "1"},
		{"http.lowSpeedTime", "60"}, // seconds without a byte until git gives up
	}
	if cred.Token != "" {
		user := u.User.Username()
		if user == "" {
			user = tokenUser
		}
		basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + cred.Token))
		// Another host must not get the token: redirects are not followed with it.
		config = append(config, [2]string{"http.extraHeader", "Authorization: Basic " + basic}, [2]string{"http.followRedirects", "false"})
	}
	if u.Scheme == "ssh" {
		command, err := a.ssh(cred)
		if err != nil {
			return nil, err
		}
		a.env = append(a.env, "GIT_SSH_COMMAND="+command, "GIT_SSH_VARIANT=ssh")
	}
	a.env = append(a.env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, kv := range config {
		a.env = append(a.env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return a, nil
}

// ssh returns the command that git runs for ssh. Host keys are always checked.
func (a *access) ssh(cred kiln.GitCredentials) (string, error) {
	args := []string{
		"ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "IdentityAgent=none", "-o", "ForwardAgent=no", "-o", "ClearAllForwardings=yes", "-o", "ConnectTimeout=20",
	}
	hosts, err := a.memory("known_hosts", cred.KnownHosts)
	if err != nil {
		return "", err
	}
	args = append(args, "-o", "UserKnownHostsFile="+hosts)
	if cred.SSHKey != "" {
		key, err := a.memory("key", strings.TrimRight(cred.SSHKey, "\n")+"\n")
		if err != nil {
			return "", err
		}
		args = append(args, "-i", key)
	}
	return strings.Join(args, " "), nil // no word holds a blank: git splits it with a shell
}

// memory puts content into a file that is on no disk and returns a path that processes of
// the same user can open while this one lives. ssh closes inherited descriptors, so they
// cannot be handed over.
func (a *access) memory(name, content string) (string, error) {
	fd, err := unix.MemfdCreate("kiln-git-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("git credentials: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	a.secrets = append(a.secrets, f)
	if err := f.Chmod(0o600); err != nil { // ssh refuses keys that others can read
		return "", fmt.Errorf("git credentials: %w", err)
	}
	if _, err := f.WriteString(content); err != nil {
		return "", fmt.Errorf("git credentials: %w", err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
}

func (a *access) close() {
	for _, f := range a.secrets {
		f.Close()
	}
}
