# Every command of the project. `ci/setup.sh` first makes what is missing; the `ci` crate does the work.

.DEFAULT_GOAL := help
.PHONY: help smp test run debug iso boot-loop boot-time crash size model doc fmt lint unsafe clean

CARGO ?= cargo
CI := $(CARGO) run --quiet --package ci --
IMAGE_TARGET := x86_64-unknown-none
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# An option is passed on only if its variable is given, so that the defaults stand in one place, `ci`.
GUEST = $(if $(QEMU_CPUS),--cpus $(QEMU_CPUS)) $(if $(TOPOLOGY),--topology $(TOPOLOGY)) \
	$(if $(MEMORY),--memory $(MEMORY)) $(if $(SEED),--seed $(SEED)) $(if $(ACCEL),--accel $(ACCEL)) \
	$(if $(LOGLEVEL),--append loglevel=$(LOGLEVEL))
RUN = $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(ONLY),--only $(ONLY))

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS='	' read -r target what; do \
		printf '  %-10s %s\n' "$$target" "$$what"; done
	@echo
	@echo '  QEMU_CPUS=4 TOPOLOGY=sockets=2,cores=2,threads=1 MEMORY=512M SEED=1 ACCEL=tcg|icount|kvm LOGLEVEL=debug'
	@echo '                 the machine of smp, run, debug, boot-loop and boot-time'
	@echo '  TIMEOUT=60 ONLY=part-of-a-name'
	@echo '                 for smp and boot-loop; ONLY also for test, crash and debug'

smp: ## Boot the self-tests and judge the run
	@ci/setup.sh run
	@$(CI) smp $(GUEST) $(RUN)

test: ## Run every check
	@ci/setup.sh test
	@$(CI) test $(if $(ONLY),--only $(ONLY))

run: ## Boot the kernel on this terminal
	@ci/setup.sh run
	@$(CI) run $(GUEST)

debug: ## Boot the self-tests with gdb attached, symbols loaded
	@ci/setup.sh debug
	@$(CI) smp --gdb $(GUEST) $(if $(ONLY),--only $(ONLY))

iso: ## Make kirql.iso with Limine's binaries (LIMINE_DIR=dir CMDLINE=words OUTPUT=file)
	@test -n "$(LIMINE_DIR)" || { echo "iso: LIMINE_DIR=dir names a binary release of Limine 8 or later" >&2; exit 2; }
	@ci/setup.sh iso
	@$(CARGO) build --package kernel --target $(IMAGE_TARGET) --release
	@arch/boot/iso.sh "$(LIMINE_DIR)" "$(TARGET_DIR)/$(IMAGE_TARGET)/release/kernel" \
		"$(or $(OUTPUT),$(TARGET_DIR)/kirql.iso)" $(CMDLINE)

boot-loop: ## Boot the self-tests LOOPS=50 times in a row, on 8 processors unless told otherwise
	@ci/setup.sh run
	@$(CI) smp --loops $(or $(LOOPS),50) $(if $(QEMU_CPUS),,--cpus 8) $(GUEST) $(RUN)

boot-time: ## Median time until all processors are online, of LOOPS=10 boots
	@ci/setup.sh run
	@$(CI) boot-time --runs $(or $(LOOPS),10) $(GUEST)

crash: ## Boot the deliberate bugchecks and compare their reports
	@ci/setup.sh run
	@$(CI) crash $(if $(ONLY),--only $(ONLY))

size: ## Size of the stripped kernel
	@ci/setup.sh build
	@$(CI) size

model: ## Run the loom models
	@ci/setup.sh build
	@$(CI) test --only models

doc: ## Build the documentation, warnings denied
	@ci/setup.sh build
	@$(CI) test --only doc

fmt: ## Format the source
	@ci/setup.sh build
	@$(CARGO) fmt --all

lint: ## Run clippy on everything, warnings denied
	@ci/setup.sh build
	@$(CI) test --only lint

unsafe: ## Count the unsafe blocks of each crate
	@ci/setup.sh build
	@$(CI) unsafe-count

clean: ## Remove what was built
	@$(CARGO) clean
