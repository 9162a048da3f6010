package main

import (
	"slices"
	"testing"

	"github.com/kilnvm/kiln/internal/api"
)

// TestListHasKilnsOwnWords: the status of the newest version is said in the words of the
// status beside it, not in those of the wire.
func TestListHasKilnsOwnWords(t *testing.T) {
	for status, want := range map[api.BuildStatus]string{
		api.BuildQueued: "2 pending", api.BuildRunning: "2 building", api.BuildBaking: "2 building", api.BuildDone: "2 ready", api.BuildFailed: "2 failed",
	} {
		rows := templateRows([]api.Template{{Name: "a", Latest: api.Build{Version: 2, Status: status}}}, true)
		if got := rows[1][slices.Index(rows[0], "LATEST")]; got != want {
			t.Errorf("%s: %q, want %q", status, got, want)
		}
	}
}
