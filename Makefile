# What to run. `make demo` and `make up` are the two to begin with.
.DEFAULT_GOAL := help
.PHONY: help setup setup-bench setup-all demo up test test-all e2e e2e-kube soak lint fuzz bench bench-kube

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the stock Envoy into target/envoy (or set WEFT_ENVOY) and the network tools
	@e2e/scripts/setup

setup-bench: ## As setup, with what calls in benchmarks
	@e2e/scripts/setup --bench

setup-all: ## As setup, with every Envoy that the tests run
	@e2e/scripts/setup --all

demo: setup ## Run the shop in a mesh, exercise it, and print what was expected and what was seen
	cargo build --release --locked --workspace
	cargo run --release --locked --package weft-e2e --bin demo

up: setup ## Run the shop in a mesh until Ctrl-C; edit target/shop and see (examples/shop/TRY.md)
	cargo build --release --locked
	rm -rf target/shop && cp -r examples/shop target/shop
	target/release/weft up target/shop

test: setup-all ## Run every test and print how many passed and failed
	@e2e/scripts/test

test-all: setup-all ## Run every test, and those on a real Kubernetes API server (root needed): what a change has to pass
	@e2e/scripts/test --all

e2e: setup-all ## Run every scenario on stock Envoys, the slow ones too, and write target/e2e/report.json
	@e2e/scripts/jaeger
	cargo build --locked --bin weft
	rm -rf target/e2e/scenarios
	status=0; cargo test --locked --package weft-e2e --features slow --no-fail-fast || status=1; \
		cargo run --locked --quiet --package weft-e2e --bin report && exit $$status

e2e-kube: setup-all ## Run what needs a real Kubernetes API server (root needed), and write target/e2e/kube-report.json
	@e2e/scripts/test --kube

SECONDS ?= 600

soak: setup-all ## Change everything under constant load for SECONDS (600), on each Envoy, and expect no loss
	WEFT_SOAK_SECONDS=$(SECONDS) cargo test --locked --package weft-e2e --test scenarios churn -- --show-output

lint: ## Check the format, clippy's lints, the licences and the Dockerfile
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@e2e/scripts/licences
	@e2e/scripts/dockerfile

FUZZ_SECONDS ?= 600

fuzz: ## Feed arbitrary input to each fuzz target for FUZZ_SECONDS (600), at low priority
	cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	@for target in directory_source xds_session; do \
		RUSTC_BOOTSTRAP=1 nice -n 19 cargo fuzz run --codegen-units 16 $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

bench: setup-bench ## Measure each stage of a change by mesh size, the way to 20 Envoys and to thousands of fake ones
	cargo bench --locked --bench stages --bench source
	cargo build --release --locked --workspace
	@e2e/scripts/go-control-plane
	target/release/bench
	target/release/footprint
	target/release/dataplane
	target/release/xds --seconds 300

bench-kube: ## Measure a control plane on a real API server with 1,000 Services, 10,000 Pods and 1,000 fake sidecars
	@e2e/scripts/kubernetes
	cargo build --release --locked --bin weft
	cargo run --release --locked --package weft-e2e --features kube --bin kube
