package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/kilnvm/kiln"
)

// maxAnswer bounds the answers that are read as a whole, in bytes.
const maxAnswer = 1 << 20

// post sends body as JSON to one of the daemon's own endpoints.
func (c *Client) post(ctx context.Context, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("guest %s: %w", path, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("guest %s: %w", path, err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	return answer.Close()
}

// do sends r and returns the body of a successful answer.
func (c *Client) do(ctx context.Context, r *http.Request) (io.ReadCloser, error) {
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, translate(ctx, err)
	}
	if answer.StatusCode < 300 {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, translate(ctx, err)
	}
	return nil, statusError(answer.StatusCode, text)
}

// statusError reads the daemon's error body. Nothing else answers with one, so its absence
// means that somebody else answered.
func statusError(status int, text []byte) error {
	var body struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(text, &body); err != nil || body.Message == "" {
		body.Message = fmt.Sprintf("the sandbox answered with HTTP status %d", status)
	}
	if status == http.StatusBadGateway {
		return gone(fmt.Errorf("%s", body.Message))
	}
	return kiln.Errorf(statusCode(status), "%s", body.Message)
}

func statusCode(status int) kiln.ErrorCode {
	switch status {
	case http.StatusBadRequest:
		return kiln.CodeInvalid
	case http.StatusUnauthorized:
		return kiln.CodeUnauthorized
	case http.StatusForbidden:
		return kiln.CodeForbidden
	case http.StatusNotFound:
		return kiln.CodeNotFound
	case http.StatusConflict:
		return kiln.CodeConflict
	case http.StatusInsufficientStorage:
		return kiln.CodeExhausted
	}
	return kiln.CodeInternal
}
