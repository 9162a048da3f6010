package guest

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Root streams the file system of the sandbox as a tar archive. What the sandbox sends is
// to be trusted no more than any archive. Close it; an archive that breaks off ends with
// an error, not with io.EOF.
func (c *Client) Root(ctx context.Context) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/root", nil)
	if err != nil {
		return nil, fmt.Errorf("guest root: %w", err)
	}
	return c.do(ctx, r)
}
