package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/kilnvm/kiln"
)

// codePort is where the service of the code-interpreter template listens, and E2B's.
const codePort = "49999"

// RunCode is code for the interpreter that runs in a sandbox.
type RunCode struct {
	Code      string            `json:"code"`
	ContextID string            `json:"context_id,omitempty"` // "" is the one that was in the snapshot
	Env       map[string]string `json:"env_vars,omitempty"`   // while this code runs
}

// CodeEvent is one thing that happened while code ran. Which fields are set depends on
// Type: stdout, stderr, result, error, number_of_executions, keepalive or end_of_execution.
type CodeEvent struct {
	Type           string `json:"type"`
	Text           string `json:"text,omitempty"`
	IsMainResult   bool   `json:"is_main_result,omitempty"`
	PNG            string `json:"png,omitempty"` // base64, as all pictures
	JPEG           string `json:"jpeg,omitempty"`
	SVG            string `json:"svg,omitempty"`
	HTML           string `json:"html,omitempty"`
	Name           string `json:"name,omitempty"`
	Value          string `json:"value,omitempty"`
	Traceback      string `json:"traceback,omitempty"`
	ExecutionCount int    `json:"execution_count,omitempty"`
	// Raw is the whole event.
	Raw json.RawMessage `json:"-"`
}

// RunCode runs code in a sandbox of the code-interpreter template and passes on what
// happens as it happens. An error of the code's own is an event like the others.
func (c *Client) RunCode(ctx context.Context, id string, req RunCode, event func(CodeEvent) error) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("run code: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base.String()+"/execute", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("run code: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := (&throughProxy{c: c, id: id, port: codePort}).RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return codeRefused(resp)
	}
	return codeEvents(ctx, resp.Body, event)
}

func codeRefused(resp *http.Response) error {
	said, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	switch resp.StatusCode {
	case http.StatusBadGateway:
		return kiln.Errorf(kiln.CodeUnavailable, "no code interpreter answers in the sandbox").
			WithHint("start the sandbox from the template code-interpreter")
	case http.StatusNotFound:
		return kiln.Errorf(kiln.CodeNotFound, "code interpreter: %s", strings.TrimSpace(string(said)))
	case http.StatusBadRequest:
		return kiln.Errorf(kiln.CodeInvalid, "code interpreter: %s", strings.TrimSpace(string(said)))
	}
	return kiln.Errorf(kiln.CodeInternal, "the code interpreter answered %s: %s", resp.Status, strings.TrimSpace(string(said)))
}

func codeEvents(ctx context.Context, body io.Reader, event func(CodeEvent) error) error {
	for dec := json.NewDecoder(body); ; {
		var e CodeEvent
		err := dec.Decode(&e.Raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = json.Unmarshal(e.Raw, &e)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("run code: answer: %w", err)
		}
		if err := event(e); err != nil {
			return err
		}
	}
}
