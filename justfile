# `just` is a convenience; `.ci/run` needs only what CONTRIBUTING.md lists.

# Shows the recipes
default:
    @just --list

# Starts the service on 127.0.0.1:8080
serve *args:
    cargo run --release -- serve {{ args }}

# The tests that need no download
test *args:
    cargo test --release {{ args }}

# Everything a change must pass
ci:
    bash .ci/run

# Shell scripts, images, compose file, alert rules, board
lint-deploy:
    .ci/lint

# Tests with a real Postgres and a real S3 dialect
test-services *args:
    .ci/with-services cargo test --release {{ args }}

# Tests on the default model, and the README's request
base:
    bash .ci/base

fmt:
    cargo fmt

lint:
    cargo clippy --release --all-targets -- -D warnings

doc *args:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps {{ args }}

# Writes openapi/openapi.json from the code
openapi:
    cargo run --release --quiet -- openapi > openapi/openapi.json.new
    mv openapi/openapi.json.new openapi/openapi.json

# Licences, bans and sources of the dependencies
deny:
    cargo deny --locked check bans licenses sources

# Known vulnerabilities of the dependencies; needs a network
advisories:
    cargo deny --locked check advisories

# Builds for NVIDIA GPUs, on a machine that needs neither a GPU nor CUDA
cuda *args:
    .ci/cuda {{ args }}

# The kernels one by one, candle's beside them: `just kernels q4_1/qkv`
kernels *args:
    cargo bench --bench kernels -- {{ args }}

# The model's tests on an emulated ARM core; `.ci/aarch64` says what it needs
aarch64 *args:
    .ci/aarch64 {{ args }}

# Instructions of decoding by function, by valgrind. It knows no AVX-512, so that the AVX2 paths run under it
instructions model:
    #!/usr/bin/env bash
    set -euo pipefail
    out=$(mktemp)
    valgrind="valgrind --tool=callgrind --callgrind-out-file=$out --toggle-collect=*Decoder*forward_cached*"
    cargo --config "target.'cfg(all())'.runner = '$valgrind'" bench --bench decode -- {{ model }} --tokens 4 --runs 1 --threads 1 --alone
    callgrind_annotate --inclusive=yes "$out" | head -60
