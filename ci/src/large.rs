//! A boot with much memory takes no longer than one with little: bring-up's instructions, which under the counter are its time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::qemu::Accel;
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};

/// Of one boot.
const TIMEOUT: Duration = Duration::from_secs(120);
/// What is compared, as QEMU takes it.
const LITTLE: &str = "1G";
const MUCH: &str = "16G";
/// What much memory may cost: half a percent is what is measured (docs/performance.md).
const MOST_PERCENT: u64 = 2;

/// Boots with both. `None`: a signal asked for an end.
pub(crate) fn check() -> Result<Option<()>> {
    let (Some(little), Some(much)) = (bring_up(LITTLE)?, bring_up(MUCH)?) else { return Ok(None) };
    println!("bring-up: {little} us with {LITTLE}, {much} us with {MUCH}, of a thousand instructions each");
    ensure!(
        much <= little + little * MOST_PERCENT / 100,
        "bring-up with {MUCH} takes {much} us, with {LITTLE} {little}: over {MOST_PERCENT} % more"
    );
    Ok(Some(()))
}

/// Microseconds of the guest until memory is handed over to the page manager.
fn bring_up(memory: &str) -> Result<Option<u64>> {
    let args = GuestArgs {
        cpus: 1,
        accel: Some(Accel::Icount),
        memory: memory.to_owned(),
        append: vec!["only=exceptions::".to_owned()],
        ..GuestArgs::default()
    };
    let target = Target::prepare(&args, ImageChoice::Selftest)?;
    let (run, verdict) = target.run(TIMEOUT, false)?;
    if verdict == Verdict::Interrupted {
        return Ok(None);
    }
    if verdict != Verdict::Passed {
        report::print(&run, &verdict, &target.symbols);
    }
    ensure!(verdict == Verdict::Passed, "a boot with {memory}: {verdict:?}");
    let log = String::from_utf8_lossy(&run.serial);
    Ok(Some(log.lines().find_map(stamp_in).context("no line tells what bring-up used")?))
}

/// The stamp of the line that tells what bring-up used.
fn stamp_in(line: &str) -> Option<u64> {
    let (stamp, _) =
        line.strip_prefix('[')?.split_once(" 00] ").filter(|(_, said)| said.contains("used by bring-up"))?;
    let (seconds, micro) = stamp.trim().split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micro.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_read() {
        let line = "[    1.020899 00] memory: 487 MiB left, 4368 KiB used by bring-up\r";
        assert_eq!(stamp_in(line), Some(1_020_899));
        assert_eq!(stamp_in("[    0.020905 00] online: 1 processors"), None);
    }
}
