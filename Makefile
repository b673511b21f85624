# The two commands that matter are `make demo` and `make test`; `make help` lists the rest.
# Each installs the Debian packages it lacks when run as root, and else names them.

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench race race-broken soak build deb deb-test clean

CARGO := scripts/cargo
XTASK := $(CARGO) run --quiet --package xtask --

help: ## list these targets
	@awk -F ': .*## ' '/^[a-z-]+: .*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: ## label, guard and tamper with real files on a file system of its own (root; some seconds after the build)
	@scripts/setup demo
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- demo

test: ## every check: format, lints, docs, licences, unit and integration tests, fuzz targets, the demo (all of them only as root)
	@scripts/setup test
	@REQUIRE=$$(test "$$(id -u)" -ne 0 || echo root) $(XTASK) ci

lint: ## format, lints, docs, licences and the rules between crates only
	@scripts/setup lint
	@$(XTASK) ci fmt clippy rustdoc arrows pure deny

bench: ## time this against other programs and against being without it, as ratios; fails if a goal is missed (root; some minutes)
	@scripts/setup bench
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- bench

race: ## race with the guard on each file system, a million opens each (root; a quarter of an hour)
	@scripts/setup test
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- race --opens 1000000

race-broken: ## race with three guards that are broken on purpose, and with ours; fails if one of them is not found out, or ours is (root; some minutes)
	@scripts/setup test
	$(CARGO) build --package imarad
	@$(XTASK) race --broken --seconds 60 --scene reads,owners,follow

soak: ## real tools in a guarded file system for a quarter of an hour, and a guard that stands still (root)
	@scripts/setup test
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- soak

build: ## release binaries in target/release
	@scripts/setup build
	$(CARGO) build --release --workspace

deb: ## a Debian package, below target/deb
	@scripts/setup deb
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- deb

deb-test: ## install, restart, kill, hang, upgrade, reboot and purge that package in a guest that runs systemd (root; many minutes)
	@scripts/setup deb-test
	$(CARGO) build --release --workspace
	@$(CARGO) run --quiet --release --package xtask -- deb-test

clean: ## remove everything that was built
	rm -rf target fuzz/target
