package guest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// Setup is how commands run in sandboxes of a template. It is part of the snapshot.
type Setup struct {
	Env        []string // KEY=value; of equal keys the later wins
	User       string   // notation of an image's USER; "" means root
	WorkingDir string   // "" means the user's home
	Folders    []string // made as root's where they are missing
}

// Pauses between attempts to reach a daemon that is starting.
const (
	firstPause = 2 * time.Millisecond
	longPause  = 50 * time.Millisecond
)

// WaitReady returns when the daemon answers, or with an error when ctx ends.
func (c *Client) WaitReady(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := c.health(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			code := kiln.CodeOf(translate(ctx, ctx.Err()))
			return &kiln.Error{Code: code, Message: "the sandbox's daemon does not answer", Err: err}
		}
	}
}

func (c *Client) health(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/health", nil)
	if err != nil {
		return fmt.Errorf("guest health: %w", err)
	}
	body, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	return body.Close()
}

// initRequest is the body of the daemon's POST /init. What is nil stays as it is.
type initRequest struct {
	Timestamp      *time.Time         `json:"timestamp,omitempty"`
	Entropy        []byte             `json:"entropy,omitempty"`
	Hostname       string             `json:"hostname,omitempty"`
	AccessToken    string             `json:"accessToken,omitempty"`
	EnvVars        *map[string]string `json:"envVars,omitempty"`
	ImageEnv       *map[string]string `json:"imageEnv,omitempty"`
	DefaultUser    *string            `json:"defaultUser,omitempty"`
	DefaultWorkdir *string            `json:"defaultWorkdir,omitempty"`
	Folders        []string           `json:"folders,omitempty"`
}

// Configure tells the daemon of a booted VM how commands run there. It is done before the
// capture, so that clones know it. A user that the image lacks is an error of the template:
// its code is invalid.
func (c *Client) Configure(ctx context.Context, s Setup) error {
	env := map[string]string{}
	for _, pair := range s.Env {
		if name, value, ok := strings.Cut(pair, "="); ok {
			env[name] = value
		}
	}
	user := s.User
	if user == "" {
		user = "root"
	}
	return c.post(ctx, "/init", initRequest{ImageEnv: &env, DefaultUser: &user, DefaultWorkdir: &s.WorkingDir, Folders: s.Folders})
}

// Refresh tells a clone that goes on after a pause what changed meanwhile: the time, and
// its random state, lest a fork of it have the same. Requests of this client carry token.
func (c *Client) Refresh(ctx context.Context, token string, entropy []byte) error {
	c.UseToken(token)
	now := time.Now()
	if err := c.post(ctx, "/init", initRequest{Timestamp: &now, Entropy: entropy, AccessToken: token}); err != nil {
		return err
	}
	return c.correctClock(ctx, time.Since(now))
}

// ReplaceIdentity makes a clone of a sandbox, which has an identity and asks for token,
// another sandbox.
func (c *Client) ReplaceIdentity(ctx context.Context, token string, id kiln.Identity) error {
	c.UseToken(token)
	begun := time.Now()
	if err := c.postIdentity(ctx, id); err != nil {
		return err
	}
	c.UseToken(id.AccessToken)
	return c.correctClock(ctx, time.Since(begun))
}

// Quiesce makes a VM fit for a capture: its data is on its disk. If connections to the
// outside are open, which would be dead in every clone, the error lists them; its code is
// conflict.
func (c *Client) Quiesce(ctx context.Context) error {
	return c.post(ctx, "/quiesce", struct{}{})
}

// Shutdown asks the VM to end in order. It returns when the daemon has accepted that and
// the commands that ran have ended.
func (c *Client) Shutdown(ctx context.Context) error { return c.post(ctx, "/shutdown", struct{}{}) }
