package sandboxd

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"os"
	"path/filepath"
)

// hostKeys matches the private keys of an SSH server.
const hostKeys = "etc/ssh/ssh_host_*_key"

// replaceHostKeys gives the machine an Ed25519 host key of its own if it has any host key,
// and removes the others. Those of other types are not made anew: an RSA key takes seconds
// on an emulated CPU, and a client needs only one. A running sshd takes up the new key.
func (s *Server) replaceHostKeys(hostname string) error {
	dir := filepath.Join(s.root, "etc/ssh")
	old, err := filepath.Glob(filepath.Join(s.root, hostKeys))
	if err != nil || len(old) == 0 {
		return err
	}
	private, public, err := newHostKey("root@" + hostname)
	if err != nil {
		return err
	}
	for _, key := range old {
		for _, file := range []string{key, key + ".pub"} {
			if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	path := filepath.Join(dir, "ssh_host_ed25519_key")
	if err := os.WriteFile(path, private, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(path+".pub", public, 0o644); err != nil {
		return err
	}
	return s.system.Reload(filepath.Join(s.root, "run/sshd.pid"), "sshd")
}

const keyType = "ssh-ed25519"

// newHostKey returns an unencrypted private key in OpenSSH's format (PROTOCOL.key in its
// source) and the line of the public key (RFC 8709).
func newHostKey(comment string) (private, public []byte, err error) {
	publicKey, privateKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	var publicBlob bytes.Buffer
	writeStrings(&publicBlob, []byte(keyType), publicKey)

	// A check number, twice, tells whether decryption succeeded; then the key itself.
	var secret bytes.Buffer
	var check [4]byte
	_, _ = rand.Read(check[:]) // it never fails
	secret.Write(check[:])
	secret.Write(check[:])
	writeStrings(&secret, []byte(keyType), publicKey, privateKey, []byte(comment))
	for pad := byte(1); secret.Len()%8 != 0; pad++ {
		secret.WriteByte(pad)
	}

	var file bytes.Buffer
	file.WriteString("openssh-key-v1\x00")
	writeStrings(&file, []byte("none"), []byte("none"), nil) // cipher, key derivation, its options
	_ = binary.Write(&file, binary.BigEndian, uint32(1))     // keys in the file
	writeStrings(&file, publicBlob.Bytes(), secret.Bytes())

	private = pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: file.Bytes()})
	public = []byte(keyType + " " + base64.StdEncoding.EncodeToString(publicBlob.Bytes()) + " " + comment + "\n")
	return private, public, nil
}

// writeStrings appends strings in SSH's notation (RFC 4251): length, then bytes.
func writeStrings(to *bytes.Buffer, list ...[]byte) {
	for _, s := range list {
		_ = binary.Write(to, binary.BigEndian, uint32(len(s)))
		to.Write(s)
	}
}
