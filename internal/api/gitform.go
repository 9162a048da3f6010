package api

import "github.com/kilnvm/kiln"

// git reads the fields of a form whose context is to be fetched from a repository.
func (f *buildForm) git(req *NewTemplate) error {
	if f.tar != "" || len(f.files) > 0 || f.fields["dockerfile"] != "" || f.fields["image_ref"] != "" {
		return kiln.Errorf(kiln.CodeInvalid, "the form has a git repository and other sources")
	}
	req.Git = &kiln.GitSource{}
	if err := decodeStrict(f.fields["git"], req.Git); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "form field git: %v", err)
	}
	if req.Git.Commit != "" {
		return kiln.Errorf(kiln.CodeInvalid, "form field git: the commit is found by the server").WithHint("put it into ref")
	}
	if text := f.fields["git_credentials"]; text != "" {
		if err := decodeStrict(text, &req.GitCredentials); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "form field git_credentials is not an object of token, ssh_key and known_hosts")
		}
	}
	return nil
}
