//! The bench beside another kernel: the same operations on both, in the same QEMU, in one run (`make bench PEER=linux`).
//!
//! A tour: `kernel` fetches the distribution's kernel and headers into a scratch folder, `build` makes the measuring module
//! (tests/peer/linux) and an initramfs, `boot` runs both kernels, `pairs` says which rows belong together and what is not comparable,
//! `account` keeps what was measured and writes the tables.

mod account;
mod boot;
mod build;
mod kernel;
mod pairs;

use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::baseline::{self, Baseline};
use crate::bench;
use crate::image;
use crate::process;

pub(crate) use account::Account;
use account::PLACE;

/// Whom to measure beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// The distribution's Linux.
    Linux,
}

/// Measures both, prints the table, writes the JSON; `bless` keeps the peer's counts in the tree, and writes the documentation.
pub(crate) fn run(Peer::Linux: Peer, release: Option<&str>, bless: bool) -> Result<u8> {
    // What takes downloads first: a missing one should not cost boots.
    let folder = image::target_dir().join("peer/linux");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    // As in the table, unless another one is asked for: a table that anyone can make again names what it is of.
    let stored = Account::stored()?;
    let kernel = kernel::fetch(&folder, release.unwrap_or(&stored.release))?;
    let initramfs = build::initramfs(&kernel, &folder)?;
    let ours = match bench::counted()? {
        ControlFlow::Continue(rows) => baseline::of(&rows),
        ControlFlow::Break(status) => return Ok(status),
    };
    ensure!(
        !bless || ours == bench::stored()?,
        "this kernel's counts are not the baseline's: `make bench BLESS=1` first"
    );
    let account = match boot::all(&kernel, initramfs)? {
        ControlFlow::Continue(account) => account,
        ControlFlow::Break(status) => return Ok(status),
    };
    print!("{}", account.table(&ours)?);
    if account.qemu != stored.qemu {
        println!("under QEMU {}: what is stored was counted under {}", account.qemu, stored.qemu);
    }
    println!("{}", account.uncounted());
    let json = image::target_dir().join("peer-linux.json");
    account.write_with(&ours, &json)?;
    println!("instructions, medians; as JSON in {}", json.display());
    if bless {
        account.store()?;
        document(&account, &ours)?;
    }
    Ok(0)
}

/// The documentation's section says what the baseline and the peer's account say, whichever was written last.
pub(crate) fn document(account: &Account, baseline: &Baseline) -> Result<()> {
    baseline::document(PLACE, &account.section(baseline)?)
}

/// Runs a tool of the host to its end; what it printed, if all is well.
fn tool(command: &mut std::process::Command, hint: &str) -> Result<String> {
    process::die_with_us(command, rustix::process::Signal::TERM);
    // A make above this one is not to hand down its job server.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS").env("LC_ALL", "C");
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("cannot execute {name} (`ci/setup.sh peer`): {hint}"))?;
    ensure!(
        output.status.success(),
        "{hint}: {name} ends with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
