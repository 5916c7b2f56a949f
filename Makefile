# `make` lists what there is.

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-growth bench-peers

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

setup: ## install what is missing beside Rust, or say what it is
	@dev/setup

demo: setup ## see it work: example.csv through Kafka into Postgres
	@cargo run -p onhand -- demo

test: setup ## all tests, on a private Kafka and Postgres
	@cargo run -p onhand -- with -- cargo test --workspace

check: setup ## formatting, lints and documentation, as CI has them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace

# ROWS=200000 is short; unset, each has its own default.
bench_rows = $(if $(ROWS),--rows $(ROWS))

bench: setup ## rates side by side with a bare producer and a bare COPY; ROWS=200000 is short
	@cargo run --release -p bench -- $(bench_rows)

bench-growth: setup ## the rate while the journal grows to 20,000,000 rows, plotted
	@cargo run --release -p bench -- growth $(bench_rows)

bench-peers: setup ## stock beside Debezium's JDBC sink, fetched from Maven Central
	@cargo run --release -p bench -- peers $(bench_rows)
