//! Passes the linker script to the loader's own link, and to nothing else.

fn main() {
    println!("cargo:rerun-if-changed=boot.ld");
    // The target's OS, not the build machine's: the host build of `boot` is an ordinary program.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-T{folder}/boot.ld");
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
        println!("cargo:rustc-link-arg-bins=-znoexecstack");
    }
}
