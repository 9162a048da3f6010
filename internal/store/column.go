package store

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"time"
)

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// jsonColumn stores and loads the value that V points to as JSON.
type jsonColumn struct{ V any }

// Value implements driver.Valuer.
func (c jsonColumn) Value() (driver.Value, error) {
	b, err := json.Marshal(c.V)
	return string(b), err
}

// Scan implements sql.Scanner.
func (c jsonColumn) Scan(src any) error {
	switch s := src.(type) {
	case string:
		return json.Unmarshal([]byte(s), c.V)
	case []byte:
		return json.Unmarshal(s, c.V)
	}
	return fmt.Errorf("JSON column holds %T", src)
}

// timeColumn stores a time as nanoseconds since 1970, the zero time as 0.
type timeColumn struct{ T *time.Time }

// Scan implements sql.Scanner.
func (c timeColumn) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("time column holds %T", src)
	}
	*c.T = time.Time{}
	if n != 0 {
		*c.T = time.Unix(0, n).UTC()
	}
	return nil
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
