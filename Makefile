# Every command of the project. `ci/setup.sh` first makes what is missing; the `ci` crate does the work.

.DEFAULT_GOAL := help
.PHONY: help smp test trace explore replay run debug iso bochs boot-loop boot-time crash inject bench bench-check lines profile mutants size model doc fmt lint unsafe clean

CARGO ?= cargo
CI := $(CARGO) run --quiet --package ci --
IMAGE_TARGET := x86_64-unknown-none
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# An option is passed on only if its variable is given, so that the defaults stand in one place, `ci`.
GUEST = $(if $(QEMU_CPUS),--cpus $(QEMU_CPUS)) $(if $(TOPOLOGY),--topology $(TOPOLOGY)) \
	$(if $(MEMORY),--memory $(MEMORY)) $(if $(SEED),--seed $(SEED)) $(if $(ACCEL),--accel $(ACCEL)) \
	$(if $(LOGLEVEL),--append loglevel=$(LOGLEVEL))
RUN = $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(ONLY),--only $(ONLY))

# What a run of `explore` is a function of, besides its seed.
PLAN = $(if $(QEMU_CPUS),--cpus $(QEMU_CPUS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(TORMENT),--torment $(TORMENT))

help: ## List the targets, and how long each usually takes on two cores when everything is built
	@sed -n -e 's/^\([a-z-]*\):.*## \[\(.*\)\] \(.*\)/\1\t\2\t\3/p' -e t \
		-e 's/^\([a-z-]*\):.*## \(.*\)/\1\t-\t\2/p' Makefile | \
		while IFS='	' read -r target time what; do printf '  %-11s %7s  %s\n' "$$target" "$$time" "$$what"; done
	@echo
	@echo '  QEMU_CPUS=4 TOPOLOGY=sockets=2,cores=2,threads=1 MEMORY=512M SEED=1 ACCEL=tcg|icount|kvm LOGLEVEL=debug'
	@echo '                 the machine of smp, run, debug, boot-loop and boot-time'
	@echo '  TIMEOUT=60 ONLY=part-of-a-name'
	@echo '                 for smp and boot-loop; ONLY also for test, crash, mutants and debug'

smp: ## [20 s] Boot the self-tests, then all of it at once (MINUTES=m: so long), and judge the run
	@ci/setup.sh run
	@$(CI) smp $(GUEST) $(RUN) $(if $(MINUTES),--minutes $(MINUTES))

test: ## [18 min] Run every check
	@ci/setup.sh test
	@$(CI) test $(if $(ONLY),--only $(ONLY))

trace: ## [5 s] Boot the self-tests (ONLY=part), and write what each processor did last: Perfetto, HTML, text
	@ci/setup.sh run
	@$(CI) trace $(GUEST) $(RUN)

explore: ## [2 min] Many short boots, each a function of its seed (SEEDS=200 FIRST=1 ROUNDS=40 TORMENT=8000 TWICE=0 FAILURES=shorten|stop|count)
	@ci/setup.sh run
	@$(CI) explore $(PLAN) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FIRST),--first $(FIRST)) $(if $(TWICE),--twice $(TWICE)) \
		$(if $(FAILURES),--on-failure $(FAILURES))

replay: ## [3 s] One of them again (SEED=s), in gdb at its failure (GDB=1) or at an event of a processor (AT=cpu:n), able to go back (REVERSE=1)
	@test -n "$(SEED)" || { echo "replay: SEED=s names the run" >&2; exit 2; }
	@ci/setup.sh $(if $(GDB)$(AT)$(REVERSE),debug,run)
	@$(CI) replay $(PLAN) --seed $(SEED) $(if $(GDB),--gdb) $(if $(AT),--at $(AT)) \
		$(if $(REVERSE),--reverse)

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

bochs: ## [1 min] Boot the self-tests of the clock and of PCIDs under Bochs, with Limine's binaries (LIMINE_DIR=dir QEMU_CPUS=2 ONLY=part,part)
	@test -n "$(LIMINE_DIR)" || { echo "bochs: LIMINE_DIR=dir names a binary release of Limine 8 or later" >&2; exit 2; }
	@ci/setup.sh bochs
	@$(CI) bochs --limine "$(LIMINE_DIR)" $(if $(QEMU_CPUS),--cpus $(QEMU_CPUS)) $(RUN)

boot-loop: ## [40 s] Boot the self-tests LOOPS=50 times in a row, on 8 processors unless told otherwise
	@ci/setup.sh run
	@$(CI) smp --loops $(or $(LOOPS),50) $(if $(QEMU_CPUS),,--cpus 8) $(GUEST) $(RUN)

boot-time: ## [2 s] Median time until all processors are online, of LOOPS=10 boots
	@ci/setup.sh run
	@$(CI) boot-time --runs $(or $(LOOPS),10) $(GUEST)

crash: ## [20 s] Boot the deliberate bugchecks and compare their reports
	@ci/setup.sh run
	@$(CI) crash $(if $(ONLY),--only $(ONLY))

inject: ## [10 min] The self-tests again for each of their allocations, which is refused, and a boot for each of bring-up (ONLY=text)
	@ci/setup.sh run
	@$(CI) smp --timeout 3000 --append inject $(if $(ONLY),--only $(ONLY)) $(if $(QEMU_CPUS),,--cpus 4) $(GUEST)
	@$(if $(ONLY),:,$(CI) refusals)

bench: ## [15 s] Count the instructions of the kernel's operations (BLESS=1: make them the baseline; PEER=linux: another kernel's beside them, RELEASE=newest: the newest of it, 5 min)
	@ci/setup.sh $(if $(PEER),peer,run)
	@$(CI) bench $(if $(BLESS),--bless) $(if $(PEER),--peer $(PEER)) $(if $(RELEASE),--release $(RELEASE))

bench-check: ## [15 s] The same, and fail on a bound exceeded or growth over the baseline
	@ci/setup.sh run
	@$(CI) codegen
	@$(CI) bench --check

lines: ## [10 s] Follow pairs of threads, each bound to a processor: no cache line that one writes may be touched by another
	@ci/setup.sh run
	@$(CI) lines

profile: ## [20 s] Where a run's instructions go: a table and a flame graph (ONLY=part | BENCH=1 | ROUNDS=2000, EVERY=20011 FIRST=0 SEED=1)
	@ci/setup.sh debug
	@$(CI) profile $(if $(ONLY),--only $(ONLY)) $(if $(BENCH),--bench) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(EVERY),--every $(EVERY)) $(if $(FIRST),--first $(FIRST)) $(if $(SEED),--seed $(SEED))

mutants: ## [25 min] Seed bugs, as many at once as there are cores: the check that each names must catch it
	@ci/setup.sh test
	@$(CI) mutants $(if $(ONLY),--only $(ONLY))

size: ## [1 s] Size of the stripped kernel
	@ci/setup.sh build
	@$(CI) size

model: ## [3 min] Run the loom models
	@ci/setup.sh build
	@$(CI) test --only models

doc: ## [1 s] Build the documentation, warnings denied
	@ci/setup.sh build
	@$(CI) test --only doc

fmt: ## [1 s] Format the source
	@ci/setup.sh build
	@$(CARGO) fmt --all

lint: ## [1 s] Run clippy on everything, warnings denied
	@ci/setup.sh build
	@$(CI) test --only lint

unsafe: ## [1 s] Count the unsafe blocks of each crate
	@ci/setup.sh build
	@$(CI) unsafe-count

clean: ## Remove what was built
	@$(CARGO) clean
