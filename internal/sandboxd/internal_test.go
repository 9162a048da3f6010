package sandboxd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenConnections(t *testing.T) {
	proc := t.TempDir()
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(local, remote, state, inode string) string {
		return "   0: " + local + " " + remote + " " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1\n"
	}
	for path, text := range map[string]string{
		"net/tcp": heading +
			line("0100007F:1F90", "00000000:0000", "0A", "1") + // listens
			line("0200000A:9C40", "010200C0:01BB", "01", "22") + // 10.0.0.2 to 192.0.2.1
			line("0200000A:9C41", "010200C0:01BB", "06", "0") + // TIME_WAIT
			line("0100007F:1F90", "0100007F:9C42", "01", "3") + // both ends here
			line("0200000A:9C43", "0200000A:1F90", "01", "4") + // both ends here
			line("0200000A:9C44", "010200C0:0050", "08", "5"), // CLOSE_WAIT
		"net/tcp6": heading +
			line("0000000000000000FFFF00000200000A:9C45", "0000000000000000FFFF0000010200C0:0050", "02", "6") +
			line("00000000000000000000000001000000:9C46", "00000000000000000000000001000000:0050", "01", "7"),
		"12/comm": "curl\n",
	} {
		path = filepath.Join(proc, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(proc+"/12/fd", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("socket:[22]", proc+"/12/fd/3"); err != nil {
		t.Fatal(err)
	}
	got, err := openConnections(proc)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"10.0.0.2:40000 to 192.0.2.1:443 of curl (process 12)",
		"10.0.0.2:40004 to 192.0.2.1:80",
		"10.0.0.2:40005 to 192.0.2.1:80",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestHostKeyIsReadable has OpenSSH derive the public key from the private one.
func TestHostKeyIsReadable(t *testing.T) {
	private, public, err := newHostKey("root@clone")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, private, 0o600); err != nil {
		t.Fatal(err)
	}
	derived, err := exec.Command("ssh-keygen", "-y", "-f", path).CombinedOutput()
	if err != nil || string(derived) != string(public) {
		t.Errorf("%s (%v), want %s", derived, err, public)
	}
}

func TestEntropyRequest(t *testing.T) {
	got := appendRandPoolInfo(nil, []byte{1, 2, 3})
	if want := "\x18\x00\x00\x00\x03\x00\x00\x00\x01\x02\x03"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAccountsOfOddImages(t *testing.T) {
	root := t.TempDir()
	a := accounts{root: root}
	if got, err := a.lookup("root"); err != nil || got.uid != 0 || got.home != "/root" {
		t.Errorf("no passwd: %+v, %v", got, err)
	}
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	text := "# comment\nbroken\nneg:x:-1:0::/:\nbig:x:99999999999:0::/:\nnohome:x:5:6:::\n77:x:88:99::/n:\ntwice:x:5:7::/t:\n"
	if err := os.WriteFile(root+"/etc/passwd", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		spec string
		ok   bool
		uid  uint32
		gid  uint32
		home string
	}{
		{"nohome", true, 5, 6, "/"},
		{"5", true, 5, 6, "/"},
		{"77", true, 88, 99, "/n"},
		{"4294967295", true, 4294967295, 0, "/"},
		{"4294967296", false, 0, 0, ""},
		{"neg", false, 0, 0, ""},
		{"", false, 0, 0, ""},
		{"5:0", true, 5, 0, "/"},
		{"5:", true, 5, 6, "/"},
	} {
		got, err := a.lookup(test.spec)
		if (err == nil) != test.ok || test.ok && (got.uid != test.uid || got.gid != test.gid || got.home != test.home) {
			t.Errorf("%q: %+v, %v", test.spec, got, err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]string{
		"": "plain", "gzip": "plain", "gzip, deflate": "plain", "identity": "plain", "*": "plain", "br;q=1.0, gzip;q=0.8, *;q=0.1": "plain",
		"gzip, identity;q=0": "gzip", "gzip;q=0.5, *;q=0": "gzip", "*, identity;q=0": "gzip",
		"identity;q=0": "none", "br, *;q=0": "none", "gzip;q=0, identity;q=0, *": "none",
	} {
		compressed, err := negotiate(accept)
		got := map[bool]string{false: "plain", true: "gzip"}[compressed]
		if err != nil {
			got = "none"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}
