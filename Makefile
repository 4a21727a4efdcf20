# Short names for cargo and shell commands; whatever is more than a line is a script of its own.
.DEFAULT_GOAL := help
.PHONY: help deps build images bare-metal lab-shell demo demo-network test mutants model bench bench-network soak clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

deps: ## look for what is needed; as root install it, else say how
	@tests/deps

build: ## make target/release/ckvmm, one file that needs no libraries
	@cargo rustc --release --package ckvmm --bin ckvmm -- --codegen target-feature=+crt-static

images: deps ## make the guests in build/guest/ (UPDATE=1: from the newest packages)
	@guest-images/debian/build
	@guest-images/bare-metal/build

bare-metal: ## make our own small guest, build/guest/bare-metal.elf
	@guest-images/bare-metal/build

lab-shell: deps ## a shell in the lab, an emulated machine on whose /dev/kvm Linux guests run
	@tests/lab/lab -i

demo: deps images ## see a guest checkpointed, killed and restored
	@cargo build --package ckvmm
	@tests/lab/run-linux -- tests/demo "$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/ckvmm"

demo-network: deps images ## see four guests that compute together checkpointed, killed and restored
	@cargo build --package ckvmm
	@tests/lab/run-linux -- tests/demo-network "$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/ckvmm"

test: deps images ## all tests
	@tests/all

mutants: deps bare-metal ## see that each test of bad input fails without its check
	@tests/mutants

model: ## every order of events of small networks, a million of larger ones; ten minutes
	@cargo test --quiet --package ckvmm-net --test proof larger -- --ignored --nocapture
	@CKVMM_RUNS=1000000 cargo test --quiet --package ckvmm-net --test proof very_many_runs -- --nocapture

bench: deps build bare-metal ## what checkpoints and restores cost the guest (ARGS=--quick: in two minutes)
	@cargo build --quiet --release --package ckvmm-bench
	@"$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/ckvmm-bench" $(ARGS)

bench-network: override ARGS += --network
bench-network: bench ## what checkpoints of a network cost (ARGS=--quick: fewer and smaller ones)

soak: deps images ## the long tests
	@tests/deps --soak
	@guest-images/debian/stock
	@tests/all --soak

clean: ## remove what was made, except cargo's target/
	rm -rf build
