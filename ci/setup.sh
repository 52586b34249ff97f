#!/usr/bin/env bash
# Makes the set-up that a command needs and this machine lacks; silent when nothing is missing.
#
#     ci/setup.sh build|run|test|debug|iso|bochs|peer
#
# build: the pinned Rust toolchain and a host linker. run, test: QEMU as well; test: mingw-w64's C compiler and headers, too, where it may
# install them (without them a step is skipped). debug: gdb and qemu-img as well. iso: xorriso. bochs: Bochs as well.
# peer: QEMU, and what another kernel's module is built and packed with.
# It says what it is about to install. Without the rights to, it prints the commands and fails; it never asks for a
# password.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# QEMU emulates an x2APIC from this version on.
readonly OLDEST_QEMU=9

fail() {
    echo "setup: $*" >&2
    exit 1
}

usage() {
    echo "usage: ci/setup.sh build|run|test|debug|iso|bochs|peer" >&2
    exit 2
}

# --- what is there -------------------------------------------------------------------------------------------------

# The value of a key with one string in rust-toolchain.toml.
pinned_channel() {
    sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml
}

has_toolchain() {
    # `rustup run` never installs anything by itself, as `cargo` and `rustc` may.
    local libdir
    libdir=$(rustup run "$1" rustc --print target-libdir --target x86_64-unknown-none 2>/dev/null) || return 1
    compgen -G "$libdir/libcore-*.rlib" >/dev/null || return 1
    local bin=${libdir%/lib/rustlib/*}/bin
    [[ -x $bin/cargo && -x $bin/cargo-fmt && -x $bin/cargo-clippy && -x $bin/rustdoc ]]
}

# A compiler driver without the C library's start files links nothing.
has_linker() {
    command -v cc >/dev/null && [[ $(cc -print-file-name=crt1.o) == /* ]]
}

qemu_major() {
    "${QEMU:-qemu-system-x86_64}" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\)\..*/\1/p'
}

# An older QEMU will do where the host's own processor runs the guest.
kvm_works() {
    [[ -r /dev/kvm && -w /dev/kvm ]] || return 1
    echo quit | timeout 10 "${QEMU:-qemu-system-x86_64}" -accel kvm -machine q35 -S -display none -nodefaults \
        -monitor stdio >/dev/null 2>&1
}

has_qemu() {
    local major
    major=$(qemu_major) && [[ -n $major ]] || return 1
    ((major >= OLDEST_QEMU)) || kvm_works
}

# A C compiler that has NT's headers: what the step `abi` asks.
has_nt_headers() {
    command -v x86_64-w64-mingw32-gcc >/dev/null &&
        echo '#include <ddk/wdm.h>' | x86_64-w64-mingw32-gcc -w -E -x c - >/dev/null 2>&1
}

may_install() {
    command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }
}

# --- what to do ----------------------------------------------------------------------------------------------------

packages=()  # Debian packages to install
commands=()  # the commands that root is to run, in order

# The suites that apt knows, a line each: suite, component, address, file.
known_suites() {
    # shellcheck disable=SC2016 # apt fills these in, not the shell
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI) $(SOURCESENTRY)' 'Created-By: Packages' |
        sed 's/:[0-9]*$//' | sort -u
}

# The keyring that a source file names for a suite; nothing if it leaves the choice to apt.
keyring_of() {
    case $1 in
    *.sources)
        awk -v RS= -v suite="$2" '{
            keyring = ""; found = 0
            lines = split($0, line, "\n")
            for (i = 1; i <= lines; i++) {
                if (line[i] ~ "^Suites:") found = (line[i] " ") ~ "[ \t]" suite "[ \t]"
                if (line[i] ~ "^Signed-By:[ \t]*/") { keyring = line[i]; sub("^Signed-By:[ \t]*", "", keyring) }
            }
            if (found) { print keyring; exit }
        }' "$1"
        ;;
    *) sed -n "s/^deb .*signed-by=\([^] ]*\).*[] ]$2 .*/\1/p" "$1" | head -n 1 ;;
    esac
}

# The newest major version of QEMU in what apt has read so far; nothing if there is none.
newest_qemu_in() {
    apt-cache madison qemu-system-x86 2>/dev/null |
        awk -F '|' -v suite="$1" 'suite == "" || $3 ~ " " suite "/" { print $2 }' |
        sed 's/^ *\([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/' | sort -n | tail -n 1
}

# Plans the installation of a QEMU that is new enough.
plan_qemu() {
    [[ -z ${QEMU:-} ]] || fail "the QEMU named by the variable QEMU ($QEMU) is missing or older than $OLDEST_QEMU.0"
    local id codename candidate
    # shellcheck source=/dev/null # it is the system's
    id=$(. /etc/os-release && echo "${ID:-}")
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    candidate=$(LC_ALL=C apt-cache policy qemu-system-x86 2>/dev/null |
        sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/p')
    if ((${candidate:-0} >= OLDEST_QEMU)); then
        packages+=(qemu-system-x86)
        return
    fi
    local newest
    newest=$(newest_qemu_in "")
    if [[ $id != debian || -z $codename ]] && ((${newest:-0} < OLDEST_QEMU)); then
        fail "QEMU $OLDEST_QEMU.0 or newer is needed and this system's packages have ${newest:-none};" \
            "install one by hand and name it in the variable QEMU"
    fi
    local backports=$codename-backports
    if [[ $'\n'$(known_suites) != *$'\n'"$backports main "* ]]; then
        plan_backports "$codename" "$backports"
    fi
    commands+=("apt-get install --yes --no-install-recommends --target-release $backports qemu-system-x86")
}

# Plans a source for the backports: the mirror and the keyring are those that the machine has its distribution from.
plan_backports() {
    local codename=$1 backports=$2 suite uri file keyring
    read -r suite uri file < <(known_suites | awk -v c="$codename" '($1 == c || $1 == "stable") && $2 == "main" {
        print $1, $3, $4; exit }') || true
    [[ -n ${uri:-} ]] || fail "apt has no source for $codename to derive its backports from; add $backports, then repeat"
    keyring=$(keyring_of "$file" "$suite")
    local options=
    [[ -z $keyring ]] || options="[signed-by=$keyring] "
    commands+=("echo 'deb $options${uri%/} $backports main' >/etc/apt/sources.list.d/$backports.list")
    echo "setup: adds the package source $backports, from the mirror that this machine uses"
}

# Runs the planned commands as root, or says that somebody has to.
run_as_root() {
    local root=()
    if ((EUID != 0)); then
        if sudo -n true 2>/dev/null; then
            root=(sudo -n)
        else
            echo "setup: this takes root's rights, which are not here; as root, run (and repeat this command then):" >&2
            printf '    %s\n' "${commands[@]}" >&2
            exit 1
        fi
    fi
    local command
    for command in "${commands[@]}"; do
        echo "setup: $command"
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "$command" || fail "that failed: $command"
    done
}

# A container's image comes without package lists, and then apt cannot tell its sources.
read_package_lists() {
    [[ -z $(known_suites) ]] || return 0
    echo "setup: apt has no package lists yet, so it reads them first"
    commands=("apt-get update")
    run_as_root
    commands=()
}

install_toolchain() {
    command -v rustup >/dev/null ||
        fail "rustup is missing; with it (see its own instructions) this script installs Rust $1 by itself"
    local -a command=(rustup toolchain install "$1" --no-self-update --profile minimal --component rustfmt --component clippy
        --target x86_64-unknown-none)
    echo "setup: installs Rust $1 for the host and x86_64-unknown-none: ${command[*]}"
    "${command[@]}" || fail "that failed: ${command[*]}"
}

install_packages() {
    local missing=("$@")
    echo "setup: missing here: ${missing[*]}"
    command -v apt-get >/dev/null ||
        fail "this system has no apt-get: install by its own means ${missing[*]} (QEMU: $OLDEST_QEMU.0 or newer)"
    read_package_lists
    local what
    for what in "${missing[@]}"; do
        case $what in
        linker) packages+=(gcc libc6-dev) ;;
        qemu) plan_qemu ;;
        *) packages+=("$what") ;;
        esac
    done
    ((${#packages[@]} == 0)) || commands+=("apt-get install --yes --no-install-recommends ${packages[*]}")
    # The package lists may be old, or absent; and a source that is added has to be read before it is used.
    local -a sources=() installs=()
    local command
    for command in "${commands[@]}"; do
        if [[ $command == echo* ]]; then sources+=("$command"); else installs+=("$command"); fi
    done
    commands=("${sources[@]}" "apt-get update" "${installs[@]}")
    echo "setup: installs Debian packages by:"
    printf '    %s\n' "${commands[@]}"
    run_as_root
}

# --- the command ---------------------------------------------------------------------------------------------------

(($# == 1)) || usage
missing=()
has_linker || missing+=(linker)
case $1 in
build) ;;
run) has_qemu || missing+=(qemu) ;;
test)
    has_qemu || missing+=(qemu)
    if ! has_nt_headers; then
        if may_install; then
            missing+=(gcc-mingw-w64-x86-64 mingw-w64-x86-64-dev)
        else
            echo "setup: gcc-mingw-w64-x86-64 and mingw-w64-x86-64-dev are missing; the step abi will be skipped" >&2
        fi
    fi
    ;;
peer)
    has_qemu || missing+=(qemu)
    command -v make >/dev/null || missing+=(make)
    command -v cpio >/dev/null || missing+=(cpio)
    # The compiler that the headers of the stored release name (tests/peer/linux.json).
    command -v gcc-12 >/dev/null || missing+=(gcc-12)
    # One of the headers' own tools is linked with it.
    [[ -n $(compgen -G '/usr/lib/*/libelf.so.1') ]] || missing+=(libelf1)
    ;;
debug)
    has_qemu || missing+=(qemu)
    command -v gdb >/dev/null || missing+=(gdb)
    command -v qemu-img >/dev/null || missing+=(qemu-utils)
    ;;
iso) command -v xorriso >/dev/null || missing+=(xorriso) ;;
bochs)
    command -v bochs >/dev/null || missing+=(bochs bochsbios vgabios)
    command -v xorriso >/dev/null || missing+=(xorriso)
    ;;
*) usage ;;
esac

((${#missing[@]} == 0)) || install_packages "${missing[@]}"
has_linker || fail "there is still no working cc"
if [[ $1 == run || $1 == test || $1 == debug || $1 == peer ]]; then
    has_qemu || fail "QEMU is still missing or too old (${OLDEST_QEMU}.0 is needed): $(qemu_major || true)"
fi

channel=$(pinned_channel)
[[ -n $channel ]] || fail "rust-toolchain.toml names no channel"
has_toolchain "$channel" || install_toolchain "$channel"
