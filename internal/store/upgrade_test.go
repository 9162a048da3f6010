package store_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/testkit"
)

// TestUpgrade opens databases that an earlier program has left.
func TestUpgrade(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "kiln.db")
		writeFirstSchema(t, goose.DialectSQLite3, "sqlite", path)
		checkUpgraded(t, open(t, path))
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		url := testkit.StartPostgres(t).Database(t)
		writeFirstSchema(t, goose.DialectPostgres, "pgx", url)
		checkUpgraded(t, openPostgres(t, url))
	})
}

// firstRows are a template that was built twice, a built-in one, and warm slots of both: also
// those that an organisation wanted of the built-in one.
const firstRows = `
INSERT INTO templates (id, org_id, name, description, author, icon, tags_json, current, promoted, latest, created_at, updated_at) VALUES
	('tmpl_own', 'org_a', 'own', '', '', '', 'null', 1, 1, 2, 1, 1), ('tmpl_python', '', 'python', '', '', '', 'null', 1, 1, 1, 1, 1);
INSERT INTO versions (template_id, number, build_id, status, created_at, source_blob, source_digest, options_json, metadata_json) VALUES
	('tmpl_own', 1, 'build_1', 'ready', 1, '', '', '{}', '{}'), ('tmpl_own', 2, 'build_2', 'failed', 1, '', '', '{}', '{}'),
	('tmpl_python', 1, 'build_3', 'ready', 1, '', '', '{}', '{}');
INSERT INTO warm_targets (org_id, template_id, size, slots) VALUES
	('org_a', 'tmpl_own', 'shared-cpu-1x', 2), ('org_a', 'tmpl_python', 'shared-cpu-1x', 0), ('local', 'tmpl_python', 'shared-cpu-1x', 3);
`

// writeFirstSchema makes a database as the first migration leaves it, with rows in it.
func writeFirstSchema(t *testing.T, dialect goose.Dialect, driver, source string) {
	t.Helper()
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p, err := goose.NewProvider(dialect, db, os.DirFS("migrations"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), firstRows); err != nil {
		t.Fatal(err)
	}
}

func checkUpgraded(t *testing.T, s *store.Store) {
	t.Helper()
	own, err := s.FindTemplate(t.Context(), "org_a", "own")
	if err != nil || own.Recipe != 2 || own.Current != 1 {
		t.Errorf("%+v, %v", own, err)
	}
	targets, err := s.WarmTargets(t.Context())
	want := []kiln.WarmTarget{
		{OrgID: "org_a", TemplateID: "tmpl_own", Size: "shared-cpu-1x", Slots: 2}, {TemplateID: "tmpl_python", Size: "shared-cpu-1x", Slots: 3},
	}
	if err != nil || !reflect.DeepEqual(targets, want) {
		t.Errorf("warm targets %+v, %v", targets, err)
	}
}
