//! What to boot and on which machine: the options that commands share, and the images, symbols and QEMU they imply.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::image;
use crate::qemu::{Accel, Machine, Qemu};
use crate::report::{self, Expect, Verdict};
use crate::run::{self, Run, Watch};
use crate::skips;
use crate::symbols::Symbols;

/// Which image to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageChoice {
    /// The self-tests.
    Selftest,
    /// The kernel as it ships.
    Kernel,
    /// The bench.
    Bench,
    /// A file that was built before.
    File(PathBuf),
}

impl FromStr for ImageChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "selftest" => Self::Selftest,
            "kernel" => Self::Kernel,
            "bench" => Self::Bench,
            path => Self::File(path.into()),
        })
    }
}

/// The machine's options.
#[derive(Args, Clone, Debug)]
pub(crate) struct GuestArgs {
    /// Processors.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,
    /// How the processors are laid out: sockets=..,cores=..,threads=..
    #[arg(long)]
    pub(crate) topology: Option<String>,
    /// What runs the instructions [default: tcg, or kvm if QEMU is too old to emulate an x2APIC].
    #[arg(long, value_enum)]
    pub(crate) accel: Option<Accel>,
    /// Memory, as QEMU takes it.
    #[arg(long, default_value = "512M")]
    pub(crate) memory: String,
    /// Machine type: q35, pc or microvm.
    #[arg(long, default_value = "q35")]
    pub(crate) machine: String,
    /// Processor model.
    #[arg(long, default_value = "max")]
    pub(crate) cpu: String,
    /// The guest's seed: the same one makes the same choices.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// More words for the guest's command line.
    #[arg(long)]
    pub(crate) append: Vec<String>,
    /// selftest, kernel, bench, or a file.
    #[arg(long)]
    pub(crate) image: Option<ImageChoice>,
    /// A loader file to use instead of building one.
    #[arg(long)]
    pub(crate) loader: Option<PathBuf>,
}

impl Default for GuestArgs {
    /// What the command line gives when it says nothing.
    fn default() -> Self {
        /// A command with these options alone, so that the defaults are written in one place.
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            guest: GuestArgs,
        }
        <Alone as clap::Parser>::parse_from(["guest"]).guest
    }
}

/// Everything a boot needs.
pub(crate) struct Target {
    /// The QEMU to use.
    pub(crate) qemu: Qemu,
    /// What it is to emulate.
    pub(crate) machine: Machine,
    /// The code that runs there.
    pub(crate) symbols: Symbols,
    choice: ImageChoice,
    seed: u64,
    words: Vec<String>,
}

impl Target {
    /// Finds QEMU and builds what is missing. `default` is the image if the arguments name none.
    pub(crate) fn prepare(args: &GuestArgs, default: ImageChoice) -> Result<Self> {
        // QEMU first: a missing one should not cost a build.
        let qemu = Qemu::find()?;
        let accel = qemu.accel(args.accel)?;
        let choice = args.image.clone().unwrap_or(default);
        let loader = match &args.loader {
            Some(file) => existing(file)?,
            None => image::build(image::LOADER)?,
        };
        let image = match &choice {
            ImageChoice::Selftest => image::build(image::SELFTEST)?,
            ImageChoice::Kernel => image::build(image::KERNEL)?,
            ImageChoice::Bench => image::build(image::BENCH)?,
            ImageChoice::File(file) => existing(file)?,
        };
        let symbols = Symbols::of_each([image.as_path(), loader.as_path()]);
        // For the self-tests alone: any other image gets the machine as it is asked for, and QEMU isn't asked twice.
        let test_devices = choice == ImageChoice::Selftest && qemu.has_test_devices(&args.machine);
        let machine = Machine {
            accel,
            cpus: args.cpus,
            topology: args.topology.clone(),
            memory: args.memory.clone(),
            machine: args.machine.clone(),
            cpu: args.cpu.clone(),
            loader,
            image,
            test_devices,
            // The self-tests' kernel is the one that has a trace.
            readable: !matches!(choice, ImageChoice::Kernel | ImageChoice::Bench),
            command_line: String::new(),
            recording: None,
            translated: None,
        };
        let mut target = Self { qemu, machine, symbols, choice, seed: args.seed, words: args.append.clone() };
        target.set_seed(args.seed);
        Ok(target)
    }

    /// The seed in use.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Boots from now on get this seed.
    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        let words = std::iter::once(format!("seed={seed}")).chain(self.words.iter().cloned());
        self.machine.command_line = words.collect::<Vec<_>>().join(" ").trim_end().to_owned();
    }

    /// Adds words to the guest's command line.
    pub(crate) fn append(&mut self, words: &str) {
        self.words.push(words.to_owned());
        self.set_seed(self.seed);
    }

    /// Boots from now on get these words, and no others.
    pub(crate) fn set_words(&mut self, words: Vec<String>) {
        self.words = words;
        self.set_seed(self.seed);
    }

    /// Boots once and judges the run.
    pub(crate) fn run(&self, timeout: Duration, live: bool) -> Result<(Run, Verdict)> {
        let watch = Watch { timeout: Some(timeout), live, until_online: false };
        let run = run::guest(&self.qemu, &self.machine, &self.symbols, &watch)?;
        let verdict = report::judge(&run, self.expect());
        skips::note(&run.transcript.tests);
        Ok((run, verdict))
    }

    /// What such a run must show.
    pub(crate) fn expect(&self) -> Expect {
        Expect {
            cpus: self.machine.cpus,
            tests: !matches!(self.choice, ImageChoice::Kernel | ImageChoice::Bench),
        }
    }

    /// Whether its image has the phase in which everything is done at once, and nobody has said how long.
    pub(crate) fn has_stress(&self) -> bool {
        self.choice == ImageChoice::Selftest && !self.words.iter().any(|word| word.contains("stress_"))
    }

    /// The command that repeats this boot by hand.
    pub(crate) fn again(&self) -> String {
        let m = &self.machine;
        let accel = clap::ValueEnum::to_possible_value(&m.accel);
        let accel = accel.as_ref().map_or("tcg", |value| value.get_name());
        let mut command = format!(
            "cargo run -p ci -- smp --cpus {} --accel {accel} --memory {} --machine {} --cpu {} --seed {}",
            m.cpus, m.memory, m.machine, m.cpu, self.seed
        );
        let topology = m.topology.iter().map(|topology| ("--topology", topology));
        let words = self.words.iter().map(|word| ("--append", word));
        for (option, value) in topology.chain(words) {
            let _ = write!(command, " {option} {value}");
        }
        match &self.choice {
            ImageChoice::Selftest => {}
            ImageChoice::Kernel => command += " --image kernel",
            ImageChoice::Bench => command += " --image bench",
            ImageChoice::File(file) => {
                let _ = write!(command, " --image {}", file.display());
            }
        }
        command
    }
}

fn existing(file: &Path) -> Result<PathBuf> {
    ensure!(file.is_file(), "{} is not a file", file.display());
    Ok(file.to_owned())
}
