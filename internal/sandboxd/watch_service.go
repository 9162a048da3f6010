package sandboxd

import (
	"context"
	"encoding/hex"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem"
)

// WatchDir streams changes below a directory.
func (f *filesystemService) WatchDir(ctx context.Context, req *connect.Request[filesystem.WatchDirRequest], stream *connect.ServerStream[filesystem.WatchDirResponse]) error {
	path, _, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return err
	}
	w, err := openWatch(path, req.Msg, f.server.accounts)
	if err != nil {
		return err
	}
	defer w.close()
	start := &filesystem.WatchDirResponse_Start{Start: &filesystem.WatchDirResponse_StartEvent{}}
	if err := stream.Send(&filesystem.WatchDirResponse{Event: start}); err != nil {
		return err
	}
	return w.run(ctx, func(e *filesystem.FilesystemEvent) error {
		return stream.Send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Filesystem{Filesystem: e}})
	}, keepaliveInterval(req.Header()), func() error {
		keepalive := &filesystem.WatchDirResponse_Keepalive{Keepalive: &filesystem.WatchDirResponse_KeepAlive{}}
		return stream.Send(&filesystem.WatchDirResponse{Event: keepalive})
	})
}

// maxPending bounds the events that a watcher keeps between two polls.
const maxPending = 65536

// watcher collects changes until they are asked for.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	pending []*filesystem.FilesystemEvent
	err     error // why it ended by itself
}

// watcherTable knows the watchers that clients poll.
type watcherTable struct {
	mu      sync.Mutex
	running map[string]*watcher
	closed  bool
}

// CreateWatcher starts to collect changes.
func (f *filesystemService) CreateWatcher(_ context.Context, req *connect.Request[filesystem.CreateWatcherRequest]) (*connect.Response[filesystem.CreateWatcherResponse], error) {
	path, _, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	watch, err := openWatch(path, req.Msg, f.server.accounts)
	if err != nil {
		return nil, err
	}
	id, err := f.server.watchers.add(watch)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.CreateWatcherResponse{WatcherId: id}), nil
}

func (t *watcherTable) add(watch *dirWatch) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		watch.close()
		return "", errorf(connect.CodeUnavailable, "the daemon is shutting down")
	}
	// A watcher outlives the request that made it.
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{cancel: cancel, done: make(chan struct{})}
	number := uuid()
	id := hex.EncodeToString(number[:])
	t.running[id] = w
	go func() {
		defer close(w.done)
		defer watch.close()
		err := watch.run(ctx, w.keep, time.Hour, func() error { return nil })
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}()
	return id, nil
}

func (w *watcher) keep(e *filesystem.FilesystemEvent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == maxPending {
		return errorf(connect.CodeResourceExhausted, "the watcher was not asked for its events in time; some are lost")
	}
	w.pending = append(w.pending, e)
	return nil
}

// take returns what was collected since the last call, then the error that ended it.
func (w *watcher) take() ([]*filesystem.FilesystemEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.pending
	w.pending = nil
	if len(events) == 0 && w.err != nil {
		return nil, w.err
	}
	return events, nil
}

func (t *watcherTable) find(id string, remove bool) (*watcher, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.running[id]
	if !ok {
		return nil, errorf(connect.CodeNotFound, "watcher %q does not exist", id)
	}
	if remove {
		delete(t.running, id)
	}
	return w, nil
}

func (t *watcherTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, w := range t.running {
		w.stop()
	}
	clear(t.running)
}

func (w *watcher) stop() {
	w.cancel()
	<-w.done
}

// GetWatcherEvents returns the changes since the last call.
func (f *filesystemService) GetWatcherEvents(_ context.Context, req *connect.Request[filesystem.GetWatcherEventsRequest]) (*connect.Response[filesystem.GetWatcherEventsResponse], error) {
	w, err := f.server.watchers.find(req.Msg.GetWatcherId(), false)
	if err != nil {
		return nil, err
	}
	events, err := w.take()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.GetWatcherEventsResponse{Events: events}), nil
}

// RemoveWatcher ends a watcher.
func (f *filesystemService) RemoveWatcher(_ context.Context, req *connect.Request[filesystem.RemoveWatcherRequest]) (*connect.Response[filesystem.RemoveWatcherResponse], error) {
	w, err := f.server.watchers.find(req.Msg.GetWatcherId(), true)
	if err != nil {
		return nil, err
	}
	w.stop()
	return connect.NewResponse(&filesystem.RemoveWatcherResponse{}), nil
}
