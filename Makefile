# kami's make targets. `make help` lists them; docs/development.md explains.

GO        ?= go
TAGS      := -tags libvirt_dlopen
BUILD     := CGO_ENABLED=1 $(GO) build $(TAGS) -trimpath -buildvcs=false
# Root has no libvirt session: where no libvirtd answers, this brings one.
WITH      := hack/with-libvirt.sh
TEST      := CGO_ENABLED=1 $(WITH) $(GO) test $(TAGS) -buildvcs=false
# Tests wait for disks, clocks and other processes: more packages at once than cores.
AT_ONCE   := -p $(shell echo $$((2 * $$(nproc))))
UNITS      = $(shell $(GO) list $(TAGS) ./... | grep -v /test/e2e)

.DEFAULT_GOAL := build
.PHONY: build setup demo test unit e2e race bench lint fmt clean help

build: ## compile bin/kami
	$(BUILD) -o bin/kami ./cmd/kami

setup: ## install the Debian packages that are missing
	@hack/setup.sh

demo: setup build ## build an image, launch it, change it, save it, launch that
	@$(WITH) hack/demo.sh

test: setup build ## vet, unit tests, command scripts, real guests
	$(GO) vet $(TAGS) ./...
	$(TEST) $(AT_ONCE) -timeout 20m $(UNITS)
	$(TEST) -count=1 -timeout 50m ./test/e2e/...

unit: ## only what needs no guest
	$(TEST) $(AT_ONCE) -timeout 20m $(UNITS)

e2e: setup ## only the real guests
	$(TEST) -count=1 -v -timeout 50m ./test/e2e/...

race: ## unit tests under the race detector
	$(TEST) -race -timeout 40m $(UNITS)

bench: setup build ## kami beside the bare tools, into docs/benchmarks.md (ONLY=part,part)
	@hack/setup.sh bench
	$(WITH) $(GO) run $(TAGS) -buildvcs=false ./test/bench -kami bin/kami -out docs/benchmarks.md -only '$(ONLY)'

lint: ## gofumpt, golangci-lint, shell syntax
	@hack/lint.sh

fmt: ## format all Go files
	@hack/lint.sh fmt

clean: ## remove what make made
	rm -rf bin .cache dist

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## /{printf "  %-8s %s\n", $$1, $$2}' Makefile
