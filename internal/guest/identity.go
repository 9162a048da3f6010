package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestapi/identity"
)

// SetIdentity makes a clone itself: random state, clock, names, token, environment. When it
// returns the sandbox may be handed out, and requests of this client carry the token.
func (c *Client) SetIdentity(ctx context.Context, id kiln.Identity) error {
	begun := time.Now()
	err := c.identify(ctx, id)
	if errors.Is(err, errors.ErrUnsupported) {
		begun = time.Now()
		err = c.postIdentity(ctx, id)
	}
	if err != nil {
		return err
	}
	c.UseToken(id.AccessToken)
	return c.correctClock(ctx, time.Since(begun))
}

// postIdentity gives the identity as a request.
func (c *Client) postIdentity(ctx context.Context, id kiln.Identity) error {
	now := time.Now()
	env := id.Env
	if env == nil {
		env = map[string]string{}
	}
	return c.post(ctx, "/init", initRequest{
		Timestamp: &now, Entropy: id.Entropy, Hostname: id.Hostname, AccessToken: id.AccessToken, EnvVars: &env,
	})
}

// identify gives the identity as a call.
func (c *Client) identify(ctx context.Context, id kiln.Identity) error {
	env, err := identity.MarshalEnv(id.Env)
	if errors.Is(err, identity.ErrTooLong) || len(id.Entropy) == 0 {
		return errors.ErrUnsupported
	}
	r := identity.Request{
		Time: time.Now(), Entropy: id.Entropy, Hostname: []byte(id.Hostname), AccessToken: []byte(id.AccessToken), Env: env,
	}
	_, _ = rand.Read(r.MachineID[:]) // never fails: crypto/rand.Read aborts the program instead
	_, _ = rand.Read(r.BootID[:])
	return c.send(ctx, r)
}

func (c *Client) send(ctx context.Context, r identity.Request) error {
	if c.call == nil {
		return errors.ErrUnsupported
	}
	request, err := r.Marshal()
	if err != nil {
		return errors.ErrUnsupported
	}
	reply, err := c.call(ctx, request)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return err
	case err != nil:
		return translate(ctx, err)
	case len(reply) > 0:
		return kiln.Errorf(kiln.CodeInternal, "the sandbox's daemon: %s", reply)
	}
	return nil
}

// Bounds of the clock's error. The time that a request carries is as old as the request
// when the daemon reads it, and the first one of a clone waits for code that runs for the
// first time.
const (
	clockError    = 50 * time.Millisecond
	clockAttempts = 5
)

// correctClock sends the time again while the last request to carry it took too long to be
// exact. On a host with time to spare it sends nothing.
func (c *Client) correctClock(ctx context.Context, took time.Duration) error {
	for range clockAttempts {
		if took <= clockError {
			return nil
		}
		now := time.Now()
		err := c.send(ctx, identity.Request{Time: now})
		if errors.Is(err, errors.ErrUnsupported) {
			err = c.post(ctx, "/init", initRequest{Timestamp: &now})
		}
		if err != nil {
			return err
		}
		took = time.Since(now)
	}
	return nil
}
