package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riversqlite"
)

// SQLite cannot notify, so the queue's driver asks the database for news 20 times a
// second, which keeps an idle server at 2 % of a core. Nearly all jobs are queued by this
// process, which knows when to ask.
const (
	idlePoll    = time.Second            // pause between questions without a reason
	idleAnswer  = 40 * time.Millisecond  // less than the driver's own pause: one question
	awakeAnswer = 500 * time.Millisecond // news is there; the database may be busy
)

// promptDriver is the SQLite driver with a listener that waits to be woken.
type promptDriver struct {
	*riversqlite.Driver
	wake chan struct{}
}

// GetListener implements riverdriver.Driver.
func (d *promptDriver) GetListener(p *riverdriver.GetListenenerParams) riverdriver.Listener {
	return &listener{Listener: d.Driver.GetListener(p), wake: d.wake}
}

type listener struct {
	riverdriver.Listener
	wake <-chan struct{}
	more bool // the last question had an answer, so there may be another
}

// WaitForNotification implements riverdriver.Listener.
func (l *listener) WaitForNotification(ctx context.Context) (*riverdriver.Notification, error) {
	for {
		patience := idleAnswer
		if !l.more {
			select {
			case <-l.wake:
				patience = awakeAnswer
			case <-time.After(idlePoll):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		askCtx, cancel := context.WithTimeout(ctx, patience)
		n, err := l.Listener.WaitForNotification(askCtx)
		timedOut := askCtx.Err() != nil
		cancel()
		l.more = n != nil
		switch {
		case n != nil:
			return n, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !timedOut && !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
	}
}
