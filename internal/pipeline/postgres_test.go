package pipeline

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/testkit"
)

const (
	// postgresDir names the PostgreSQL server that tests use; without it they use SQLite.
	postgresDir = "KILN_TEST_PIPELINE_POSTGRES"
	// databaseURL is a file in a data directory whose database is not SQLite.
	databaseURL = "database.url"
)

// dataDir makes a data directory for a service, and its database where that is a server's.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if server := os.Getenv(postgresDir); server != "" {
		url := (&testkit.Postgres{Dir: server}).Database(t)
		if err := os.WriteFile(filepath.Join(dir, databaseURL), []byte(url), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openStore(ctx context.Context, dir string) (*store.Store, error) {
	url, err := os.ReadFile(filepath.Join(dir, databaseURL))
	if errors.Is(err, fs.ErrNotExist) {
		return store.Open(ctx, filepath.Join(dir, "kiln.db"))
	}
	if err != nil {
		return nil, err
	}
	return store.OpenPostgres(ctx, string(url))
}

// TestOnPostgres runs what touches database and queue once more, on PostgreSQL.
func TestOnPostgres(t *testing.T) {
	t.Setenv(postgresDir, testkit.StartPostgres(t).Dir)
	for name, test := range map[string]func(*testing.T){
		"BuildRunsEveryStageOnce":        TestBuildRunsEveryStageOnce,
		"RebuildWithoutChange":           TestRebuildWithoutChangeIsQuickAndMakesNothing,
		"Failures":                       TestFailures,
		"OurFaultIsTriedAgain":           TestOurFaultIsTriedAgain,
		"FailedRebuildKeepsTheOld":       TestFailedRebuildKeepsTheOldVersion,
		"CancelStopsEveryStage":          TestHazard22CancelStopsEveryStage,
		"CancelQueuedBuild":              TestCancelQueuedBuild,
		"ParallelIsBounded":              TestParallelIsBounded,
		"BuildStartsSoonAfterRequest":    TestBuildStartsSoonAfterRequest,
		"RequestErrorsLeaveNothing":      TestRequestErrorsLeaveNothing,
		"KilledServerResumesItsBuilds":   TestHazard24KilledServerResumesItsBuilds,
		"BuildThatKillsTheServerFails":   TestHazard24BuildThatKillsTheServerFails,
		"OrderlyStopPutsBuildsBack":      TestOrderlyStopPutsBuildsBack,
		"ManyRebuildsAtOnce":             TestHazard26ManyRebuildsAtOnce,
		"SlowOldBuildDoesNotOvertake":    TestHazard26SlowOldBuildDoesNotOvertake,
		"DeleteDuringBuild":              TestHazard26DeleteDuringBuild,
		"RebuildsAgainstDeletes":         TestHazard26RebuildsAgainstDeletes,
		"EnsureSnapshotBakesOnce":        TestEnsureSnapshotBakesOnce,
		"GarbageCollectionAgainstBuilds": TestGarbageCollectionAgainstBuilds,
	} {
		t.Run(name, test)
	}
}
