// Package bench measures a running server from the outside, as its clients use it, and says
// how the figures compare with what they should be.
//
// Machines differ and so do their moods, so a figure alone says little: what is compared is
// measured in turns within one run, and ratios are what counts. The common unit of the
// starts is the time in which a QEMU without any machine starts and answers.
package bench
