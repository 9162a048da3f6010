package kiln_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestCheckTemplateName(t *testing.T) {
	for _, good := range []string{"a", "my-ml", "python3.12", "a_b", "0x", strings.Repeat("a", 64)} {
		if err := kiln.CheckTemplateName(good); err != nil {
			t.Errorf("CheckTemplateName(%q): %v", good, err)
		}
	}
	for _, bad := range []string{"", "My-ML", "-a", "a-", "a b", "a/b", "../a", "a:b", "a@1", "ä", "tmpl_abc", strings.Repeat("a", 65)} {
		if kiln.CheckTemplateName(bad) == nil {
			t.Errorf("CheckTemplateName(%q) = nil, want an error", bad)
		}
	}
}

func TestParseTemplateRef(t *testing.T) {
	good := map[string]kiln.TemplateRef{
		"python":     {NameOrID: "python"},
		"python@3":   {NameOrID: "python", Version: 3},
		"python:v1":  {NameOrID: "python", Tag: "v1"},
		"tmpl_abc@1": {NameOrID: "tmpl_abc", Version: 1},
	}
	for text, want := range good {
		got, err := kiln.ParseTemplateRef(text)
		if err != nil || got != want {
			t.Errorf("ParseTemplateRef(%q) = %+v, %v, want %+v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("ParseTemplateRef(%q).String() = %q", text, got)
		}
	}
	for _, bad := range []string{"", "@1", "a@", "a@0", "a@-1", "a@x", ":v", "a:"} {
		if got, err := kiln.ParseTemplateRef(bad); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("ParseTemplateRef(%q) = %+v, %v, want an invalid error", bad, got, err)
		}
	}
}

func TestVersionLife(t *testing.T) {
	all := []kiln.VersionStatus{kiln.VersionPending, kiln.VersionBuilding, kiln.VersionReady, kiln.VersionFailed}
	allowed := map[string]bool{
		"pending>building": true, "pending>failed": true,
		"building>ready": true, "building>failed": true, "building>pending": true,
	}
	for _, from := range all {
		for _, to := range all {
			if got := from.CanBecome(to); got != allowed[string(from+">"+to)] {
				t.Errorf("%s.CanBecome(%s) = %v", from, to, got)
			}
		}
	}
	if kiln.VersionBuilding.Terminal() || !kiln.VersionReady.Terminal() || !kiln.VersionFailed.Terminal() {
		t.Error("ready and failed are the terminal states, and only they")
	}
}

func TestAFailedRebuildLeavesTheTemplateReady(t *testing.T) {
	tmpl := kiln.Template{Current: 1, Latest: &kiln.Version{Number: 2, Status: kiln.VersionFailed}}
	if got := tmpl.Status(); got != kiln.VersionReady {
		t.Errorf("status = %s, want ready", got)
	}
	tmpl.Current = 0
	if got := tmpl.Status(); got != kiln.VersionFailed {
		t.Errorf("status without a ready version = %s, want failed", got)
	}
}

func TestSandboxIDsAreDNSLabels(t *testing.T) {
	label := regexp.MustCompile(`^i[a-z0-9]{20}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := kiln.NewSandboxID()
		if !label.MatchString(id) || seen[id] {
			t.Fatalf("sandbox ID %q: not a fresh label", id)
		}
		seen[id] = true
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	var none error
	for _, c := range []struct {
		err  error
		want kiln.ErrorCode
	}{
		{none, ""},
		{kiln.Errorf(kiln.CodeNotFound, "template %q", "x"), kiln.CodeNotFound},
		{kiln.Errorf(kiln.CodeInvalid, "wrapped: %w", kiln.Errorf(kiln.CodeConflict, "inner")), kiln.CodeInvalid},
		{&kiln.BuildError{Stage: kiln.StageImage, Message: "exit 1"}, kiln.CodeBuildFailed},
		{errors.New("any other"), kiln.CodeInternal},
	} {
		if got := kiln.CodeOf(c.err); got != c.want {
			t.Errorf("CodeOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestBuildErrorNamesTheLine(t *testing.T) {
	err := &kiln.BuildError{Stage: kiln.StageImage, File: "./Dockerfile", Line: 7, Message: "command exited with 100", Hint: "see the output"}
	want := "image: ./Dockerfile:7: command exited with 100 (see the output)"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}
