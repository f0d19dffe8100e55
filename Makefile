# What a person types here. `make` alone lists it.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Debian's own: libvirt hosts have it, and the program is built for its version.
PYTHON ?= /usr/bin/python3
# Where the program goes. The hook and what it reads have fixed places, see packaging/install.
PREFIX ?= /usr
DESTDIR ?=
# build: EXTRAS=nova builds in what reads OpenStack's locks. After another choice: make clean.
EXTRAS ?=
# uninstall: PURGE=1 removes the database, the settings and the group too.
PURGE ?=
# test: what to run, and how, for example: make test TESTS=tests/hook PYTEST_ARGS='-x -k canary'
TESTS ?= tests
PYTEST_ARGS ?=
# test: how many at once, each file by one of them; 0: all in one process, as a debugger needs it
WORKERS ?= 2
# bench and its parts: --quick. bench-hook also: --json, --write (into docs/benchmarks.md), --no-libvirt
BENCH_ARGS ?=

export PREFIX DESTDIR PURGE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BUILD_PACKAGES := binutils gcc libc6-dev libvirt-dev pkg-config python3 python3-dev python3-venv
DEB_PACKAGES := dpkg-dev
RPM_PACKAGES := rpm
CHECK_PACKAGES := bash busybox/busybox-static dash shellcheck
# What a private libvirt host is made of: all that the demo needs.
HOST_PACKAGES := hostname iproute2 libvirt-clients libvirt-daemon-driver-lxc \
  libvirt-daemon-driver-qemu libvirt-daemon-system mount procps qemu-system-x86 qemu-utils \
  nftables ipxe-qemu sqlite3 systemd util-linux
E2E_PACKAGES := e2fsprogs mmdebstrap openssh-client
TEST_PACKAGES := dbus-daemon fish groff-base lintian mandoc openssl polkitd python3-apt secilc \
  swtpm swtpm-tools zsh

BIN := .venv/bin
TAKEN := $(addprefix .venv/bin/,promtool etcd etcdctl)
MODULES := $(wildcard lockdb/lockdb cli/bootlock daemon/bootlockd)
SOURCES := $(shell find $(MODULES) -name '*.py' -o -name '*.sql' -o -name 'py.typed')
# Everything that starts with a shell's name; the first is what the rules below are about.
SHELL_SCRIPTS := hooks/50-bootlock $(shell grep -rIlE -m1 '^\#! ?/bin/sh' \
  --exclude='*.py' --exclude='*.md' packaging benchmarks tests 2>/dev/null)
BASH_SCRIPTS := .ci/run $(shell grep -rIlE -m1 '^\#! ?(/usr)?/bin/(env )?bash' \
  --exclude='*.py' --exclude='*.md' packaging benchmarks tests 2>/dev/null)

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: host-packages .venv/.done ## Watch real libvirt refuse a held guest by every route (root; under two minutes)
	@PYTHONPATH=tests $(BIN)/python -B demo/demo.py

.PHONY: test
test: deps ## Run all tests, those on real libvirt included (root)
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) $(TESTS)

.PHONY: test-nova
test-nova: deps .venv/.nova ## Run the tests with a real nova-api and keystone (root; package index; minutes)
	@$(BIN)/pytest -m nova $(PYTEST_ARGS) tests/nova

.PHONY: e2e
e2e: host-packages e2e-packages .venv/.done deb ## Prove the package on a Debian machine in QEMU (root; minutes)
	@$(BIN)/pytest -m e2e -v --log-cli-level=INFO \
	  --log-cli-format='%(asctime)s %(message)s' --durations=0 --durations-min=1 $(PYTEST_ARGS) tests/e2e

.PHONY: e2e-shell
e2e-shell: host-packages e2e-packages .venv/.done deb ## Boot that machine and open a shell on it; afterwards it is gone (root)
	@PYTHONPATH=tests $(BIN)/python -B -m e2e

.PHONY: e2e-packages
e2e-packages:
	@packaging/packages install $(DEB_PACKAGES) $(E2E_PACKAGES)

.venv/.nova: .venv/.done
	@$(BIN)/pip install --quiet --editable '.[dev,nova]'
	@touch $@

.PHONY: check
check: deps ## Format, lint, types, shell scripts, documentation
	@echo 'ruff'; $(BIN)/ruff check --quiet .; $(BIN)/ruff format --quiet --check .
	@echo 'mypy'; $(BIN)/mypy --no-error-summary
	@echo 'shellcheck'; shellcheck --shell=sh $(SHELL_SCRIPTS); \
	  shellcheck --shell=dash $(SHELL_SCRIPTS); shellcheck --shell=bash $(BASH_SCRIPTS)
	@for script in $(SHELL_SCRIPTS); do \
	  for shell in dash bash 'busybox sh'; do $$shell -n $$script; done; done
	@echo docs; $(BIN)/pytest -q tests/test_docs.py; $(BIN)/python packaging/website.py build/site

.PHONY: docs
docs: deps ## Build the documentation as a site, build/site/index.html; any warning is an error
	@$(BIN)/python packaging/website.py build/site
	@echo build/site/index.html

.PHONY: bench
bench: deps ## Measure all against its limits: the hook, the daemon, sources, the fleet (root; 20 minutes)
	@missed=; for part in hook daemon sources fleet; do \
	  $(MAKE) bench-$$part || missed=1; done; [ -z "$$missed" ]

.PHONY: bench-hook
bench-hook: deps ## Measure the hook against its limits (root)
	@PYTHONPATH=tests $(BIN)/python -B -m benchmarks $(BENCH_ARGS)

.PHONY: bench-daemon
bench-daemon: deps ## Measure the daemon against its limits (root; ten minutes)
	@missed=; for part in daemon process_watch; do \
	  PYTHONPATH=tests $(BIN)/python -B -m benchmarks.$$part $(filter --quick,$(BENCH_ARGS)) \
	    || missed=1; done; [ -z "$$missed" ]

.PHONY: bench-sources
bench-sources: deps ## Measure syncing 100,000 holds against its limits (a minute)
	@PYTHONPATH=tests $(BIN)/python -B -m benchmarks.sources $(filter --quick,$(BENCH_ARGS))

.PHONY: bench-fleet
bench-fleet: deps ## Measure how fast a hold reaches 100 simulated hosts (root; two minutes)
	@PYTHONPATH=tests $(BIN)/python -B -m benchmarks.fleet $(filter --quick,$(BENCH_ARGS))

.PHONY: schema
schema: .venv/.done ## Write lockdb/lockdb/schema.sql from the migrations
	@$(BIN)/python -m lockdb.migrations >lockdb/lockdb/schema.sql

.PHONY: deps
deps: packages .venv/.done $(TAKEN) ## Install what is missing: Debian packages and .venv (done by the others too)

.PHONY: host-packages
host-packages:
	@packaging/packages install $(BUILD_PACKAGES) $(HOST_PACKAGES)

.PHONY: packages
packages: host-packages
	@packaging/packages install $(DEB_PACKAGES) $(RPM_PACKAGES) $(CHECK_PACKAGES) \
	  $(TEST_PACKAGES)

.venv/.done: pyproject.toml | host-packages
	@echo 'making .venv'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --editable '.[dev,docs]'
	@touch $@

# Of Debian's prometheus and etcd only these: the packages would start their servers here.
.venv/bin/promtool: PACKAGE := prometheus
.venv/bin/etcd: PACKAGE := etcd-server
.venv/bin/etcdctl: PACKAGE := etcd-client
$(TAKEN): | .venv/.done
	@packaging/packages take $(PACKAGE) /usr/bin/$(@F) $@

.PHONY: build
build: build/done ## Build the program for `make install`; needs a compiler and a package index

build/done: pyproject.toml packaging/build-program packaging/constraints.txt \
  packaging/manual.py docs/bootlock.toml.md $(SOURCES)
	@packaging/packages require $(BUILD_PACKAGES)
	@PYTHON=$(PYTHON) EXTRAS=$(EXTRAS) packaging/build-program

.PHONY: install
install: build ## Install on this host, or below DESTDIR; PREFIX=/usr (root)
	@packaging/install

.PHONY: uninstall
uninstall: ## Remove it; keeps the database, unless PURGE=1 (root)
	@packaging/uninstall

.PHONY: deb
deb: build ## Build the Debian package, in dist/
	@packaging/packages require $(DEB_PACKAGES)
	@packaging/build-deb

.PHONY: rpm
rpm: build ## Build the RPM package, in dist/; see its limits in docs/operations.md
	@command -v rpmbuild >/dev/null || packaging/packages require $(RPM_PACKAGES)
	@packaging/build-rpm

.PHONY: clean
clean: ## Remove what was made here
	@rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
