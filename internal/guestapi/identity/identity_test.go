package identity

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestRoundTrip(t *testing.T) {
	env := map[string]string{"A": "", "LONG": strings.Repeat("v", 60_000), "B": "\x00\xff"}
	pairs, err := MarshalEnv(env)
	if err != nil {
		t.Fatal(err)
	}
	in := Request{
		Time: time.Unix(1_800_000_000, 123_456_789), MachineID: [16]byte{1, 15: 2}, BootID: [16]byte{3, 15: 4},
		Entropy: []byte("entropy"), Hostname: []byte("name"), AccessToken: []byte("token"), Env: pairs,
	}
	wire, err := in.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Unmarshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	got, err := out.Pairs()
	if err != nil || !maps.Equal(got, env) {
		t.Errorf("environment of %d, %v", len(got), err)
	}
	if !out.Time.Equal(in.Time) || out.MachineID != in.MachineID || out.BootID != in.BootID ||
		string(out.Entropy) != "entropy" || string(out.Hostname) != "name" || string(out.AccessToken) != "token" {
		t.Errorf("got %+v, want %+v", out, in)
	}
	for cut := range len(wire) - len(pairs) {
		if _, err := Unmarshal(wire[:cut]); err == nil {
			t.Errorf("a request cut after %d bytes was accepted", cut)
		}
	}
	if _, err := MarshalEnv(map[string]string{"A": strings.Repeat("v", 1<<16)}); err == nil {
		t.Error("a value of 64 KiB was accepted")
	}
}

func FuzzUnmarshal(f *testing.F) {
	wire, _ := (&Request{Entropy: make([]byte, 64), Env: []byte{0, 1, 'A', 0, 1, 'b'}}).Marshal()
	f.Add(wire)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if r, err := Unmarshal(b); err == nil {
			_, _ = r.Pairs()
		}
	})
}
