# Every target works as root on a bare Debian 12; `make setup` installs what is missing.
SHELL := /bin/bash
CACHE := $(CURDIR)/.cache
export PATH := $(CACHE)/go/bin:$(CACHE)/tools:/usr/local/go/bin:$(PATH)
export GOTOOLCHAIN := local
export CGO_ENABLED := 0
# One flag for all, so that programs, tests and linters share what is compiled: a thousand packages.
export GOFLAGS += -trimpath
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: all setup build demo test soak bench lint leaks generate clean

all: build

setup: ## install apt packages and the Go toolchain (idempotent)
	@scripts/setup

build: setup ## bin/kiln and bin/kiln-sandboxd
	@scripts/build "$(LDFLAGS)"

demo: build ## the main job end to end, in real VMs
	@scripts/demo

test: build ## the whole suite
	@scripts/test

soak: build ## the tests that repeat something, many more times
	@KILN_SOAK=1 scripts/test

bench: build ## every figure of docs/benchmarks.md
	@scripts/bench

lint: setup ## gofmt, vet, golangci-lint, shellcheck, generated files up to date
	@scripts/lint

generate: setup ## regenerate what is generated from .proto files
	@scripts/generate

leaks: ## list what a run left behind; prints nothing when clean
	@scripts/leaks

clean: ## remove build results, keep caches
	@rm -rf bin
