// Package store remembers templates, versions, builds, snapshots, sandboxes and tokens in
// a SQL database.
//
// Three rules hold everywhere:
//
//   - A row is written after the files that it names are durable, and nothing is visible
//     before its row is.
//   - A status changes only along the tables in the root package; anything else is a
//     *kiln.Error with code conflict. Who loses a race is told so by the database.
//   - What does not exist, is deleted, or belongs to another organisation is one and the
//     same *kiln.Error with code not_found.
//
// SQLite is opened with one writing connection, so writers queue in this process rather
// than fail, and with several reading ones beside it (WAL). The SQL keeps to what
// PostgreSQL understands too, and package storetest is the suite for either.
package store
