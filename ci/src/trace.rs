//! The guest's trace: what each processor did last.
//!
//! `decode` finds it in the guest's memory and takes it apart, by the description that the guest left there; `last` shows the end of it
//! in reports; `model` makes spans, levels and arrows of it, which `perfetto` and `timeline` write for programs and people.

pub(crate) mod decode;
pub(crate) mod last;
pub(crate) mod model;
pub(crate) mod perfetto;
pub(crate) mod timeline;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image;
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};

/// Boots the self-tests with long rings, and writes what the trace has: for Perfetto, for a browser, and as text.
pub(crate) fn run(
    args: &GuestArgs,
    only: Option<&str>,
    folder: Option<&Path>,
    timeout: Duration,
) -> Result<u8> {
    let mut target = Target::prepare(args, ImageChoice::Selftest)?;
    target.append("trace=15");
    if let Some(only) = only {
        target.append(&format!("only={only}"));
    }
    let (run, verdict) = target.run(timeout, true)?;
    report::print(&run, &verdict, &target.symbols);
    let trace = run.trace.as_ref().context("the guest left no trace")?;
    let folder = folder.map_or_else(|| image::target_dir().join("trace"), Path::to_path_buf);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let model = model::Model::of(trace);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        println!("{} ({} KiB)", path.display(), bytes.len() >> 10);
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    };
    write("kirql.pftrace", &perfetto::encode(&model))?;
    write("timeline.html", timeline::html(&model).as_bytes())?;
    write("events.txt", last::all(trace, &target.symbols).as_bytes())?;
    let events: usize = trace.processors.iter().map(|processor| processor.events.len()).sum();
    println!("{events} events of {} processors; digest {:016x}", trace.processors.len(), trace.digest);
    if let Some(coverage) = &trace.coverage {
        let hit = coverage.hit.iter().filter(|&&hit| hit).count();
        println!("{hit} instructions were interrupted, the first byte of text is at {:#x}", coverage.start);
    }
    if verdict != Verdict::Passed {
        eprintln!("again: {}", target.again());
    }
    Ok(verdict.exit_status())
}
