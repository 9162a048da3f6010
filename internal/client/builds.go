package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// GetBuild returns one build.
func (c *Client) GetBuild(ctx context.Context, id string) (*api.Build, error) {
	out := &api.Build{}
	return out, c.call(ctx, http.MethodGet, "/v1/templates/builds/"+segment(id), nil, out)
}

// CancelBuild stops a build. One that has ended is a conflict.
func (c *Client) CancelBuild(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/v1/templates/builds/"+segment(id)+"/cancel", nil, nil)
}

// logRetries is how often a broken log stream is taken up again without a new line: for
// about half a minute.
const logRetries = 8

// LogOptions say what of a build's log is wanted. The zero value is the lines there are.
type LogOptions struct {
	Offset int64 // where to begin: 0, or what an earlier record gave as next
	Follow bool  // wait for more until the build has ended
	Events bool  // also pass the records that only displays need
}

// BuildLog passes the records of a build's log to line, whose error ends it, and returns
// the build as it was after the last one. A stream that breaks, because the server restarts, is taken up again.
func (c *Client) BuildLog(ctx context.Context, id string, o LogOptions, line func(api.LogLine) error) (*api.Build, error) {
	for failures := 0; ; failures++ {
		before := o.Offset
		build, err := c.readLog(ctx, id, &o, line)
		if o.Offset > before {
			failures = 0
		}
		var broken brokenStream
		retry := errors.As(err, &broken) || failures > 0 && kiln.CodeOf(err) == kiln.CodeUnavailable
		if !retry {
			return build, err
		}
		if failures >= logRetries {
			follow := ""
			if o.Follow {
				follow = "-f "
			}
			return nil, kiln.Errorf(kiln.CodeUnavailable, "the log of build %s broke off, and the server has not come back: %w", id, err).
				WithHint("when it is back, go on with: kiln templates logs %s%s --offset %d", follow, id, o.Offset)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Duration(failures+1) * time.Second): // there is no event for "the server is back"
		}
	}
}

// brokenStream is the end of a stream that did not say it was the end.
type brokenStream struct{ error }

func (e brokenStream) Unwrap() error { return e.error }

func (c *Client) readLog(ctx context.Context, id string, o *LogOptions, line func(api.LogLine) error) (*api.Build, error) {
	path := fmt.Sprintf("/v1/templates/builds/%s/logs?offset=%d", segment(id), o.Offset)
	if o.Follow {
		path += "&follow=1"
	}
	if o.Events {
		path += "&events=1"
	}
	resp, err := c.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	events := newEventReader(resp.Body)
	for {
		name, data, err := events.next()
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, brokenStream{fmt.Errorf("build log: %w", err)}
		}
		switch name {
		case "done":
			build := &api.Build{}
			if err := json.Unmarshal(data, build); err != nil {
				return nil, fmt.Errorf("build log: %w", err)
			}
			return build, nil
		case "error":
			var e api.Error
			if err := json.Unmarshal(data, &e); err != nil {
				return nil, fmt.Errorf("build log: %w", err)
			}
			if e.Code == kiln.CodeCanceled {
				return nil, brokenStream{asError(e)} // the server is stopping; we were not
			}
			return nil, asError(e)
		}
		var l api.LogLine
		if err := json.Unmarshal(data, &l); err != nil {
			return nil, fmt.Errorf("build log: %w", err)
		}
		if err := line(l); err != nil {
			return nil, err
		}
		o.Offset = l.Next
	}
}

// eventReader reads server-sent events.
type eventReader struct{ r *bufio.Reader }

func newEventReader(r io.Reader) *eventReader { return &eventReader{bufio.NewReaderSize(r, 64<<10)} }

// next returns the next event that has data.
func (e *eventReader) next() (name string, data []byte, err error) {
	for {
		line, err := e.r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0 && data != nil:
			return name, data, nil
		case len(line) == 0:
			name = ""
		case string(field) == "event":
			name = string(value)
		case string(field) == "data":
			data = append(data, value...)
		}
	}
}
