# The commands a newcomer needs: make run, make demo, make test, make bench.

SHELL := /bin/bash
BUILD := $(CURDIR)/.build
BIN := $(CURDIR)/target/release
STATIC := $(CURDIR)/target/x86_64-unknown-linux-gnu/agent
IMAGES := $(BUILD)/images
RACK_BIN := $(BIN)/croft-rack
RACK := $(RACK_BIN) enter
E2E := $(BIN)/croft-e2e

# Debian has ovsdb-server, nft, dnsmasq, nginx and tgtd in root's directories, which an ordinary
# user's PATH lacks; they need no more rights than that user has.
export PATH := $(PATH):/usr/sbin:/sbin
export CROFT_BIN_DIR := $(BIN)
export CROFT_IMAGE_DIR := $(IMAGES)

.PHONY: help run shell demo soak fuzz conformance clean
.PHONY: packages build programs agent images image-store
.PHONY: lint format clippy test test-programs test-scenarios test-others
.PHONY: bench bench-boot bench-dhcp bench-iscsi bench-tftp

help:
	@echo "make run    a virtual rack with a farm in it, until Ctrl-C"
	@echo "make shell  a shell in that rack, from another terminal: croft node ls, croft explain shop/web"
	@echo "make demo   the whole path, unattended: boot, load, grow, shrink, replace"
	@echo "make test   every test"
	@echo "make soak   ten thousand crashes of a volume store (CROFT_CRASH_SEEDS=N for another number)"
	@echo "make fuzz   every fuzz target in turn (SECONDS_EACH=n; TARGETS='a b' for those whose names hold a or b)"
	@echo "make conformance  libiscsi's conformance suite against bootd's iSCSI target"
	@echo "make bench  every benchmark against its peers; one by one: bench-boot, bench-dhcp, bench-iscsi, bench-tftp"
	@echo "            (PAIRS=n for n pairs of each; ROWS='a b' for rows whose names hold a or b: bench-iscsi, bench-boot)"

# The one step that needs root; says what it installs.
packages:
	@tests/install-packages

# What can be made side by side is: the agent is optimized as a whole, by one processor. The plus
# signs let cargo share make's processors.
build: packages
	@$(MAKE) --no-print-directory -j$(shell nproc) programs agent

programs:
	+cargo build --release --workspace

agent:
	@mkdir -p $(BUILD)
	+RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile agent -p croft-agent --target x86_64-unknown-linux-gnu
	install $(STATIC)/croft-agent $(BUILD)/croft-agent

images: build
	@$(MAKE) --no-print-directory image-store

image-store:
	$(BIN)/croft-images build --store $(IMAGES) --agent $(BUILD)/croft-agent --packages-cache $(BUILD)/packages --test

run: images
	$(RACK) --dir $(BUILD)/run -- $(E2E) run

# A shell in the rack of `make run`, beside control: another terminal's way in.
shell:
	@$(RACK_BIN) exec --dir $(BUILD)/run -- env PATH="$(BIN):$(PATH)" \
		CROFT_PROFILE=$(BUILD)/run/site/control/operator.toml $(SHELL)

demo: images
	$(RACK) --dir $(BUILD)/demo -- $(E2E) demo

lint: format clippy

format:
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check

clippy:
	+cargo clippy --workspace --all-targets --release -- -D warnings

# Always the whole workspace: another selection of packages would build the dependencies anew. Many
# tests wait more than they work, so more run at once than there are processors, and the scenarios in
# the virtual rack beside the others.
test: export RUST_TEST_THREADS ?= 4
test: format build
	@$(MAKE) --no-print-directory -j$(shell nproc) image-store test-programs
	@$(MAKE) --no-print-directory -j2 test-scenarios test-others

test-programs: clippy
	+cargo test --release --workspace --no-run

test-scenarios:
	cargo test --release --workspace --test scenarios

test-others:
	cargo test --release --workspace -- --skip scenario::

# Ends each volume with a line CONFORMANCE; part of `make test`, too.
conformance: packages
	cargo test --release --workspace --test conformance -- --nocapture

# The crash test of volumes with many more seeds than the tests run.
soak: export CROFT_CRASH_SEEDS ?= 10000
soak:
	cargo test --release --workspace --lib -- --nocapture no_crash_loses_what_was_promised

# cargo-fuzz runs on the stable toolchain as long as no sanitizer is asked for; docs/fuzzing.md.
CARGO_FUZZ := $(BUILD)/cargo-fuzz/bin/cargo-fuzz
SECONDS_EACH ?= 60
TARGETS ?=

$(CARGO_FUZZ):
	cargo install cargo-fuzz --version 0.13.2 --locked --root $(BUILD)/cargo-fuzz

fuzz: packages $(CARGO_FUZZ)
	CARGO_FUZZ=$(CARGO_FUZZ) fuzz/run --dir $(BUILD)/fuzz --seconds $(SECONDS_EACH) $(TARGETS)

bench: bench-iscsi bench-dhcp bench-tftp bench-boot

# Alternating pairs of each row, and which rows; docs/benchmarks.md.
PAIRS ?= 7
ROWS ?=
BENCH := $(BIN)/croft-bench

# A thousand sessions are a thousand open files in each of two processes.
bench-iscsi: build
	ulimit -n 4096 && $(BENCH) iscsi --dir $(BUILD)/bench-iscsi --pairs $(PAIRS) $(ROWS)

bench-dhcp: build
	@tests/install-packages kea-dhcp4-server kea-admin ethtool
	$(BENCH) dhcp --dir $(BUILD)/bench-dhcp --pairs $(PAIRS)

bench-tftp: build
	@tests/install-packages ethtool
	$(BENCH) tftp --dir $(BUILD)/bench-tftp --pairs $(PAIRS)

bench-boot: images
	$(RACK) --dir $(BUILD)/bench-boot -- $(E2E) bench-boot --pairs $(PAIRS) $(ROWS)

clean:
	rm -rf $(BUILD)
	cargo clean
