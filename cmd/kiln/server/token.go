package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

const localTokenName = "local"

// ensureToken makes sure that DIR/token holds a token that the server accepts. The file
// is the only place where the secret is; if it was deleted or damaged there is a new one
// and the old one is void.
func ensureToken(ctx context.Context, st *store.Store, path string) error {
	secret, err := os.ReadFile(path)
	if err == nil {
		_, err = st.Authenticate(ctx, strings.TrimSpace(string(secret)))
		if err == nil {
			return os.Chmod(path, 0o600)
		}
		if kiln.CodeOf(err) != kiln.CodeUnauthorized {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local token: %w", err)
	}
	if _, err := st.RevokeToken(ctx, kiln.LocalOrgID, localTokenName); err != nil && kiln.CodeOf(err) != kiln.CodeNotFound {
		return err
	}
	fresh, err := st.CreateToken(ctx, kiln.Token{
		ID: kiln.NewID(kiln.TokenIDPrefix), OrgID: kiln.LocalOrgID, Name: localTokenName, Scopes: []kiln.Scope{kiln.ScopeAdmin}, CreatedAt: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	return writeFile(path, []byte(fresh+"\n"), 0o600)
}
