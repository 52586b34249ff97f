//! Links the bench image as the kernel is linked.
fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernel/image.ld");
    println!("cargo:rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
    }
}
