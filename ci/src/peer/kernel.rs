//! The distribution's kernel and its headers, unpacked into a scratch folder. Nothing is installed, and no root is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::tool;

/// What names the newest kernel of this flavour: the one for virtual machines, whose drivers are built in.
const NEWEST: &str = "linux-headers-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it there.
    pub(crate) release: String,
    /// The packages' version.
    pub(crate) version: String,
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// What modules are built in.
    pub(crate) headers: PathBuf,
}

/// Names and version of the packages to fetch.
#[derive(Debug, PartialEq, Eq)]
struct Packages {
    release: String,
    version: String,
    names: Vec<String>,
}

/// Finds the kernel of that release, `newest` being the newest that apt knows, and unpacks it below `folder` unless that was done before.
pub(crate) fn fetch(folder: &Path, wanted: &str) -> Result<Kernel> {
    let hint = "apt knows no kernel of the cloud flavour (Debian with its package lists, `apt-get update`, is needed)";
    let newest = tool(Command::new("apt-cache").args(["show", NEWEST]), hint)?;
    let (release, version) = release(&newest, wanted).with_context(|| {
        format!(
            "apt knows no package of Linux {wanted}: it is in no source of apt's (Debian 12 has 6.12 in its backports only), its lists are old \
             (`apt-get update`), or the distribution has dropped it for a newer one (RELEASE=newest)"
        )
    })?;
    println!("the peer is Linux {release}, {version}");
    let headers = format!("linux-headers-{release}");
    let shown = tool(Command::new("apt-cache").args(["show", &format!("{headers}={version}")]), hint)?;
    let packages = packages(&shown, release, version)?;
    let folder = folder.join(&packages.release);
    let kernel = Kernel {
        image: folder.join(format!("root/boot/vmlinuz-{}", packages.release)),
        headers: folder.join("root/usr/src").join(headers),
        release: packages.release.clone(),
        version: packages.version.clone(),
    };
    let whole = folder.join("unpacked");
    if std::fs::read_to_string(&whole).is_ok_and(|version| version == packages.version) {
        return Ok(kernel);
    }
    println!("fetching {} {} (50 MB) into {}", packages.release, packages.version, folder.display());
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    unpack(&packages, &folder)?;
    point_to(&kernel.headers.join("Makefile"), &folder.join("root"))?;
    std::fs::write(whole, &packages.version)?;
    Ok(kernel)
}

fn unpack(packages: &Packages, folder: &Path) -> Result<()> {
    let debs = folder.join("packages");
    std::fs::create_dir_all(&debs)?;
    let mut download = Command::new("apt-get");
    // As whoever we are: apt's own user cannot write here, and needs not.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).current_dir(&debs);
    download.args(packages.names.iter().map(|name| format!("{name}={}", packages.version)));
    tool(
        &mut download,
        "the packages cannot be downloaded (old package lists name what is gone: `apt-get update`)",
    )?;
    let mut unpacked = 0;
    for entry in std::fs::read_dir(&debs)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(entry?.path()).arg(folder.join("root"));
        tool(&mut unpack, "a package cannot be unpacked")?;
        unpacked += 1;
    }
    ensure!(unpacked == packages.names.len(), "{unpacked} packages instead of {:?}", packages.names);
    Ok(())
}

/// The headers' Makefile includes another one from where packages are installed.
fn point_to(makefile: &Path, root: &Path) -> Result<()> {
    let text =
        std::fs::read_to_string(makefile).with_context(|| format!("reading {}", makefile.display()))?;
    std::fs::write(makefile, relocated(&text, root)?)
        .with_context(|| format!("writing {}", makefile.display()))
}

fn relocated(makefile: &str, root: &Path) -> Result<String> {
    ensure!(makefile.contains(" /usr/src/"), "the headers' Makefile refers to nothing in /usr/src");
    Ok(makefile.replace(" /usr/src/", &format!(" {}/usr/src/", root.display())))
}

/// What asks for the newest release.
const THE_NEWEST: &str = "newest";

/// Of what apt shows of the package that names the newest, in each of its versions: release and version of the wanted one.
fn release(shown: &str, wanted: &str) -> Option<(String, String)> {
    stanzas(shown)
        .flat_map(|stanza| dependencies(stanza).collect::<Vec<_>>())
        .filter_map(|(name, version)| {
            let release = name.strip_prefix("linux-headers-")?;
            Some((numbers(release), release.to_owned(), version?.to_owned()))
        })
        .filter(|(_, release, _)| wanted == THE_NEWEST || release == wanted)
        .max()
        .map(|(_, release, version)| (release, version))
}

/// What is to be fetched for `release`, of whose headers' package apt shows this.
fn packages(shown: &str, release: String, version: String) -> Result<Packages> {
    let mut names = vec![format!("linux-image-{release}"), format!("linux-headers-{release}")];
    let needed = |name: &str| name.starts_with("linux-kbuild-") || name.ends_with("-common");
    let stanza = stanzas(shown).next().unwrap_or_default();
    names.extend(dependencies(stanza).map(|(name, _)| name).filter(|name| needed(name)).map(str::to_owned));
    if names.len() != 4 {
        bail!("the headers of {release} want other packages than expected: {names:?}");
    }
    Ok(Packages { release, version, names })
}

fn stanzas(shown: &str) -> impl Iterator<Item = &str> {
    shown.split("\n\n").filter(|stanza| !stanza.trim().is_empty())
}

/// The packages that a stanza depends on, and in which version, if that is said. Of alternatives the first.
fn dependencies(stanza: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let list = stanza.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    list.split(',').filter_map(|one| {
        let first = one.split('|').next()?.trim();
        let (name, rest) = first.split_once(' ').unwrap_or((first, ""));
        Some((name, rest.strip_prefix("(= ").and_then(|version| version.strip_suffix(')'))))
    })
}

/// The numbers in a release, to compare releases by.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST: &str = "Package: linux-headers-cloud-amd64\n\
        Version: 6.1.192-2\n\
        Depends: linux-headers-6.1.0-49-cloud-amd64 (= 6.1.192-2)\n\
        \n\
        Package: linux-headers-cloud-amd64\n\
        Depends: linux-headers-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\
        \n\
        Package: linux-headers-cloud-amd64\n\
        Depends: linux-headers-6.1.0-47-cloud-amd64 (= 6.1.176-1)\n";
    const HEADERS: &str = "Package: linux-headers-6.12.95+deb12-cloud-amd64\n\
        Depends: linux-base (>= 4.12~), linux-headers-6.12.95+deb12-common (= 6.12.95-1~bpo12+1), \
        linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1) | \
        linux-image-6.12.95+deb12-cloud-amd64-unsigned (= 6.12.95-1~bpo12+1), \
        linux-kbuild-6.12.95+deb12, gcc-12\n";

    fn newest() -> (String, String) {
        release(NEWEST, THE_NEWEST).expect("three releases")
    }

    #[test]
    fn the_newest_release_is_taken() {
        assert_eq!(newest(), ("6.12.95+deb12-cloud-amd64".into(), "6.12.95-1~bpo12+1".into()));
        assert_eq!(release("Package: linux-headers-cloud-amd64\n", THE_NEWEST), None);
        assert_eq!(release("", THE_NEWEST), None);
    }

    #[test]
    fn the_wanted_release_is_taken_and_no_other() {
        let found = release(NEWEST, "6.1.0-47-cloud-amd64");
        assert_eq!(found, Some(("6.1.0-47-cloud-amd64".into(), "6.1.176-1".into())));
        assert_eq!(release(NEWEST, "6.12.94+deb12-cloud-amd64"), None);
    }

    #[test]
    fn four_packages_make_a_kernel_to_build_for() {
        let (release, version) = newest();
        let packages = packages(HEADERS, release, version).expect("four packages");
        assert_eq!(
            packages.names,
            [
                "linux-image-6.12.95+deb12-cloud-amd64",
                "linux-headers-6.12.95+deb12-cloud-amd64",
                "linux-headers-6.12.95+deb12-common",
                "linux-kbuild-6.12.95+deb12"
            ]
        );
    }

    #[test]
    fn headers_without_their_tools_are_refused() {
        let (release, version) = newest();
        let without = HEADERS.replace("linux-kbuild", "linux-tools");
        let why = packages(&without, release, version).expect_err("three packages").to_string();
        assert!(why.contains("other packages"), "{why}");
    }

    #[test]
    fn the_headers_makefile_is_pointed_to_the_unpacked_copy() {
        let moved = relocated("include /usr/src/linux-headers-1-common/Makefile\n", Path::new("/t/root"));
        assert_eq!(moved.expect("a reference"), "include /t/root/usr/src/linux-headers-1-common/Makefile\n");
        assert!(relocated("all:\n", Path::new("/t/root")).is_err());
    }
}
