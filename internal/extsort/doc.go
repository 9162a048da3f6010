// Package extsort sorts and keeps more records than should be held in memory.
//
// A [Sorter] takes records in any order and yields them sorted, as often as asked. A
// [Log] takes records and yields them in the order in which they came. Both keep their
// records in memory up to a limit and in unlinked temporary files beyond it, so small
// inputs never touch the disk and large ones need bounded memory.
package extsort
