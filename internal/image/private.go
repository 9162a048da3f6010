package image

import (
	"context"
	"fmt"
	"slices"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// What a step sees through a mount of the type secret or cache, or through the proxy that a
// build argument names, is not in BuildKit's key for it: another organisation with the same
// instruction would be given the result, or could choose what goes into it. So each such
// step, and each cache, is its organisation's own.

// privately returns gw for builds of an organisation.
func privately(gw gateway.Client, orgID string) gateway.Client {
	if orgID == "" {
		return gw
	}
	return privateClient{gw, orgID}
}

type privateClient struct {
	gateway.Client
	orgID string
}

// Solve implements [gateway.Client].
func (c privateClient) Solve(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	if req.Definition != nil {
		def, err := privateDefinition(req.Definition, c.orgID)
		if err != nil {
			return nil, fmt.Errorf("steps of the organisation's own: %w", err)
		}
		req.Definition = def
	}
	return c.Client.Solve(ctx, req)
}

// privateDefinition returns def with those of its steps whose key does not cover what they
// see made the organisation's own. A step is named by the digest of its content, in which the steps before
// it have their names: those after it get new ones, too.
func privateDefinition(def *pb.Definition, orgID string) (*pb.Definition, error) {
	renamed := map[digest.Digest]digest.Digest{}
	private := &pb.Definition{Def: make([][]byte, len(def.Def)), Metadata: map[string]*pb.OpMetadata{}, Source: proto.CloneOf(def.Source)}
	for i, content := range def.Def { // each after its inputs
		op := &pb.Op{}
		if err := proto.Unmarshal(content, op); err != nil {
			return nil, err
		}
		changed := makePrivate(op.GetExec(), orgID)
		for _, in := range op.Inputs {
			if now, ok := renamed[digest.Digest(in.Digest)]; ok {
				in.Digest, changed = string(now), true
			}
		}
		was := digest.FromBytes(content)
		now := was
		if changed {
			var err error
			if content, err = (proto.MarshalOptions{Deterministic: true}).Marshal(op); err != nil {
				return nil, err
			}
			now = digest.FromBytes(content)
			renamed[was] = now
		}
		private.Def[i] = content
		if m, ok := def.Metadata[string(was)]; ok {
			private.Metadata[string(now)] = m
		}
	}
	if private.Source != nil {
		locations := map[string]*pb.Locations{}
		for was, l := range private.Source.Locations {
			if now, ok := renamed[digest.Digest(was)]; ok {
				was = string(now)
			}
			locations[was] = l
		}
		private.Source.Locations = locations
	}
	return private, nil
}

// makePrivate changes a step, if it needs it, and reports whether it did. Its mark is a secret
// that nobody has: part of the key, and nothing that the step could see.
func makePrivate(step *pb.ExecOp, orgID string) bool {
	if step == nil || len(step.Secretenv) == 0 && step.GetMeta().GetProxyEnv() == nil && !slices.ContainsFunc(step.Mounts, isPrivate) {
		return false
	}
	for _, m := range step.Mounts {
		if m.CacheOpt != nil {
			m.CacheOpt.ID = orgID + "/" + m.CacheOpt.ID
		}
	}
	step.Mounts = append(step.Mounts, &pb.Mount{
		Input: int64(pb.Empty), Output: int64(pb.SkipOutput), Dest: "/run/secrets/organisation", MountType: pb.MountType_SECRET,
		SecretOpt: &pb.SecretOpt{ID: "organisation/" + orgID, Optional: true},
	})
	return true
}

func isPrivate(m *pb.Mount) bool {
	switch m.MountType {
	case pb.MountType_CACHE, pb.MountType_SECRET, pb.MountType_SSH:
		return true
	default:
		return false
	}
}
