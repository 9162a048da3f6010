// Package tandem computes the SHA-256 of a stream and of every chunk of it in one go.
//
// An image is named by the digest of the whole and transferred by the digests of its
// chunks, so each byte is hashed twice. Both hashes see the same blocks, so the message
// schedule is needed once only, and the rounds of the two, each of which waits for itself
// most of the time, fill one another's gaps: on processors with the SHA extensions two
// digests cost little more than one. Elsewhere the two run side by side.
package tandem
