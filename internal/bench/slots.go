package bench

import (
	"context"
	"errors"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
)

// withSlots keeps warm slots of a template for as long as use takes, and none afterwards.
func withSlots(ctx context.Context, c *client.Client, template, size string, slots int, use func() error) (err error) {
	if _, err := c.SetWarmSlots(ctx, template, size, slots); err != nil {
		return err
	}
	defer func() {
		_, uerr := c.SetWarmSlots(context.WithoutCancel(ctx), template, size, 0)
		err = errors.Join(err, uerr)
	}()
	return use()
}

// slotsOf returns the state of the slots of a template at a size.
func slotsOf(ctx context.Context, c *client.Client, template, size string) (kiln.WarmShelf, error) {
	t, err := c.GetTemplate(ctx, template)
	if err != nil {
		return kiln.WarmShelf{}, err
	}
	shelves, err := c.WarmSlots(ctx)
	for _, s := range shelves {
		if s.TemplateID == t.ID && s.Size == size {
			return s, err
		}
	}
	return kiln.WarmShelf{}, err
}

// wait waits for d.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
