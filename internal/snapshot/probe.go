package snapshot

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ready"
)

// quiesce makes the VM fit for its capture. A connection to the outside that the
// template's commands hold would be dead in every clone, so it is their fault.
func (k *bake) quiesce(ctx context.Context) error {
	err := k.client.Quiesce(ctx)
	if kiln.CodeOf(err) == kiln.CodeConflict {
		return &kiln.BuildError{Stage: kiln.StageSnapshot, Message: err.Error(), Err: err,
			Hint: "such a connection would be dead in every sandbox: close it before ready_cmd succeeds"}
	}
	if err != nil {
		return fmt.Errorf("quiesce: %w", err)
	}
	return nil
}

// rehearse has the VM do before its capture what every sandbox does first, so that no clone
// pays for what a process does once: the daemon's first request, pages that are mapped at
// their first use.
func (k *bake) rehearse(ctx context.Context) error {
	for range rehearsals {
		if err := ready.Use(ctx, k.client); err != nil {
			return fmt.Errorf("rehearse: %w", err)
		}
	}
	return nil
}

// rehearsals: the first connection of a process allocates what the second finds.
const rehearsals = 2

// probe uses a restored clone as a sandbox would be used.
func (k *bake) probe(ctx context.Context) error {
	if err := k.client.SetIdentity(ctx, throwaway()); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return ready.Use(ctx, k.client)
}

// throwaway is the identity of the clone that tries a snapshot out. It reaches the
// clone's private memory only, which is gone with the clone.
func throwaway() kiln.Identity {
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy) // never fails: crypto/rand.Read aborts the program instead
	id := kiln.NewSandboxID()
	return kiln.Identity{SandboxID: id, Hostname: id, Entropy: entropy, AccessToken: kiln.NewID("")}
}
