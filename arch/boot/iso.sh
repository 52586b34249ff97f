#!/bin/sh
# A hybrid ISO, for BIOS and UEFI, that starts a kernel with Limine's own binaries.
#
#     arch/boot/iso.sh LIMINE_DIR KERNEL OUTPUT [COMMAND LINE]
#
# LIMINE_DIR holds a binary release of Limine, version 8 or later. The ISO boots from CD; if LIMINE_DIR also has the
# program `limine`, or limine.c and a C compiler is there, it is made to boot from a disk or a memory stick by BIOS, too.
set -eu

fail() {
    echo "iso: $*" >&2
    exit 1
}

[ $# -ge 3 ] || fail "usage: $0 LIMINE_DIR KERNEL OUTPUT [COMMAND LINE]"
limine=$1
kernel=$2
output=$3
shift 3

command -v xorriso >/dev/null || fail "xorriso is missing; on Debian: apt-get install xorriso"
[ -f "$kernel" ] || fail "there is no kernel at $kernel"
for file in limine-bios.sys limine-bios-cd.bin limine-uefi-cd.bin BOOTX64.EFI; do
    [ -f "$limine/$file" ] || fail "$limine has no $file; LIMINE_DIR must be a binary release of Limine 8 or later"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/boot/limine" "$root/EFI/BOOT"
cp "$kernel" "$root/boot/kernel"
cp "$limine/limine-bios.sys" "$limine/limine-bios-cd.bin" "$limine/limine-uefi-cd.bin" "$root/boot/limine/"
cp "$limine/BOOTX64.EFI" "$root/EFI/BOOT/"
cat >"$root/boot/limine/limine.conf" <<END
timeout: 0
serial: yes

/Kirql
    protocol: limine
    kernel_path: boot():/boot/kernel
    kernel_cmdline: $*
END

xorriso -as mkisofs -quiet -R -J \
    -b boot/limine/limine-bios-cd.bin -no-emul-boot -boot-load-size 4 -boot-info-table \
    --efi-boot boot/limine/limine-uefi-cd.bin -efi-boot-part --efi-boot-image --protective-msdos-label \
    "$root" -o "$output" || fail "xorriso failed"

install=$limine/limine
if [ ! -x "$install" ] && [ -f "$limine/limine.c" ] && command -v cc >/dev/null; then
    cc -std=c99 -O2 -o "$work/limine" "$limine/limine.c" || fail "$limine/limine.c does not compile"
    install=$work/limine
fi
if [ -x "$install" ]; then
    "$install" bios-install "$output" 2>/dev/null || fail "$install bios-install failed"
else
    echo "iso: no limine program and no C compiler: the ISO boots from CD and by UEFI, not by BIOS from a disk" >&2
fi
echo "iso: $output"
