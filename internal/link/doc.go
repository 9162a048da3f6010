// Package link carries many connections over one byte stream between a host and the
// daemon in its guest. It exists for virtio-serial ports, which have two habits that no
// multiplexer expects: the far end may be cut off in the middle of a frame, and after a
// snapshot is restored the guest goes on talking to a host that it has never met.
//
// # Frames
//
// Everything on the stream is a frame; integers are big-endian:
//
//	kind    1 byte    1 hello (host to guest), 2 welcome (guest to host), 3 data,
//	                  4 bye (host to guest: the session has ended),
//	                  5 call (host to guest), 6 reply (guest to host),
//	                  7 attend (host to guest)
//	length  2 bytes   of the payload
//	epoch   8 bytes   the session that the frame belongs to
//	payload           at most [maxHostPayload] from the host, [maxGuestPayload] from the guest
//	end     1 byte    0xA5
//
// A zero byte where a kind is due means nothing and is skipped.
//
// # Handshake
//
// A host that takes over the stream cannot know what its predecessor left in it. It
// sends as many zero bytes as the longest host frame has: they complete a frame that was
// cut off, whose end byte then is wrong, so that it is dropped as a whole. Then it sends
// hello with a random nonce. The guest ends the session it had, answers welcome with the
// same nonce, and starts a new session. The host discards everything until it sees
// exactly that answer: nothing sent before can contain it, since nobody could know the
// nonce. From there on both sides speak yamux inside data frames; the epoch, the first
// eight bytes of the nonce, keeps late writers of an older session out.
//
// # Calls
//
// A session costs the guest thousands of lines of code that it has not run before, which
// is what counts on an emulated processor. A call is the short way for the first words to
// a restored guest: one frame with a nonce and a request, which the guest's reader answers
// itself with one frame of the same nonce. It is sent by itself at first, because a guest
// that was at rest when it was captured has read all that came before; when no reply
// comes it is repeated behind zeros, like hello. A guest carries out a call with the nonce
// of the last one only once. There are no calls while the host has a session.
//
// Attend is a call without a request, made right before a capture. After its reply the guest
// looks for the next frame over and over instead of sleeping until an interrupt tells of
// it. A clone then has neither to wake from idleness nor to schedule its reader before it
// reads: nearly a quarter of all code up to its first reply. A guest that nobody speaks to goes to
// sleep after half a second.
//
// So the bytes of one session are never seen by another, whatever was cut off where.
// There is no keep-alive, because a VM may be paused for hours.
package link
