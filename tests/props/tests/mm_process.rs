//! Address spaces and sections against maps of pages: each call's result is the one that NT's rules give, each access finds its own
//! content or the right status, whatever was freed is reached by no translation that the processor kept, what is held for I/O is nobody
//! else's however its address ends, an operation that can't get what it needs changes nothing, and at the end all is given back.

use arch::inject::Outcome;
use kernel::mm::process::fault::Resolution;
use kernel::mm::process::machine::Machine;
use kernel::mm::process::protection::Access;
use kernel::mm::process::section::Section;
use kernel::mm::process::space::{AddressSpace, HIGHEST};
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE, TOP_DOWN};
use kernel::rtl::NtStatus;
use props::process_machine::HostRef;
use props::process_model::{Model, Seen, at_passive};
use props::process_rules::PAGE;
use proptest::prelude::*;
use sync::irql::{Apc, Irql};

const STEPS: usize = if cfg!(miri) { 60 } else { 4000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 250 };

const PROTECTS: [u32; 12] = [1, 2, 4, 4, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x104, 0x102];

/// Addresses that share tables at every level, and some that don't; 64 KiB apart.
fn window(random: u64) -> u64 {
    const WINDOWS: [u64; 5] = [0x1_0000, 0x1F_0000, 0x3FF0_0000, 0x7F_FFF0_0000, HIGHEST - 0x40_FFFF];
    WINDOWS[random as usize % WINDOWS.len()] + (random >> 8) % 40 * 0x1_0000
}

/// An address of interest: mostly one that has something.
fn somewhere(model: &Model, which: usize, random: u64) -> u64 {
    let this = &model.spaces[which];
    if random & 7 == 0 || this.rules.allocations.is_empty() {
        return window(random >> 8) + (random >> 40 & 15) * PAGE;
    }
    let at = (random >> 8) as usize % this.rules.allocations.len();
    let (&first, allocation) = this.rules.allocations.iter().nth(at).unwrap();
    let page = match random >> 3 & 3 {
        0 => first,
        1 => allocation.end - 1,
        _ => first + (random >> 24) % (allocation.end - first),
    };
    page * PAGE + (random >> 50 & 0xFFF)
}

fn step(model: &mut Model, random: u64, more: u64) {
    model.look_at_holds();
    let kind = random as u8 % 64;
    let which = (random >> 8) as usize % model.spaces.len().max(1);
    if model.spaces.is_empty() {
        return model.create();
    }
    let protect = PROTECTS[(random >> 16) as usize % PROTECTS.len()];
    let pages = if random >> 63 == 0 { more >> 20 & 31 } else { more >> 20 & 255 };
    let bytes = pages * PAGE + (more >> 30 & 1) * (more >> 31 & 0xFFF);
    let fails = (random >> 56 & 15 == 0).then_some((random >> 60) as u32 & 7);
    model.host.fail_in(fails);
    let size = more >> 50 & 3;
    match kind {
        0..5 => {
            let kind =
                [RESERVE, RESERVE | COMMIT, RESERVE | COMMIT | TOP_DOWN, COMMIT][(random >> 24) as usize & 3];
            let base = (random >> 26 & 3 != 0).then(|| window(more) + (random >> 28 & 1) * 0x1234);
            let spare = (random >> 30 & 7 == 0).then_some(more >> 12 & 31);
            model.allocate(which, base, bytes, kind, protect, spare);
        }
        5..9 => {
            let spare = (random >> 30 & 7 == 0).then_some(more >> 12 & 15);
            let bytes = if size == 0 { bytes } else { pages % 8 * PAGE + 1 };
            model.allocate(which, Some(somewhere(model, which, more)), bytes, COMMIT, protect, spare);
        }
        9..14 => {
            let whole = size == 0;
            let kind = [DECOMMIT, DECOMMIT, RELEASE, if whole { RELEASE } else { 0x100 }]
                [(random >> 24) as usize & 3];
            let address = somewhere(model, which, more);
            let bytes = if whole { 0 } else { pages % 20 * PAGE };
            model.free(which, address / PAGE * PAGE, bytes, kind);
        }
        14..19 => {
            let bytes = if size == 0 { bytes } else { pages % 6 * PAGE + 1 };
            model.protect(which, somewhere(model, which, more), bytes, protect);
        }
        19..22 => model.query(which, somewhere(model, which, more)),
        22..48 => {
            let access =
                [Access::Read, Access::Write, Access::Write, Access::Execute][(random >> 24) as usize & 3];
            model.touch(which, somewhere(model, which, more), access, random | 1);
        }
        48 | 49 if model.holds() < 6 => {
            let access = [Access::Read, Access::Write][(random >> 24) as usize & 1];
            model.hold(which, somewhere(model, which, more), pages as usize % 6, access);
        }
        50 => model.write_by_device(random | 1),
        49 | 51 => model.let_go(more),
        52 if model.sections.iter().filter(|it| it.section.is_some()).count() < 4 => {
            let bytes = if size == 0 { bytes } else { 0x2_0000 + bytes };
            model.create_section(bytes, protect);
        }
        53..57 if !model.sections.is_empty() => {
            let section = (random >> 24) as usize % model.sections.len();
            let base = (random >> 26 & 3 == 0).then(|| window(more));
            let (offset, bytes) = if size == 0 { ((more >> 40 & 3) << 16, bytes) } else { (0, 0) };
            model.map(which, section, base, offset, bytes, protect);
        }
        57 | 58 => model.unmap(which, somewhere(model, which, more)),
        59 if !model.sections.is_empty() => {
            let section = (random >> 24) as usize % model.sections.len();
            let bytes = model.sections[section].bytes;
            if size != 0 && bytes < 3 << 20 {
                model.extend(section, if size == 1 { bytes + (3 << 20) } else { bytes + 0x3000 });
            } else {
                model.forget(section);
            }
        }
        60 => model.hold_over_a_decommit(which, somewhere(model, which, more)),
        61 if more & 15 == 0 => model.destroy(which),
        62 if model.spaces.len() < 3 => model.create(),
        _ => {
            for address in [u64::MAX, HIGHEST + 1, HIGHEST, 0, 0xFFFF] {
                model.query(which, address);
                model.free(which, address, PAGE * (more & 1), RELEASE);
                model.touch(which, address, Access::Read, 0);
                model.allocate(which, Some(address), bytes, RESERVE, 4, None);
                model.protect(which, address, PAGE, 2);
            }
            let tops = model.spaces[which].rules.find(HIGHEST / PAGE).is_some();
            if tops {
                model.free(which, HIGHEST / 0x1_0000 * 0x1_0000, 0, RELEASE);
            }
        }
    }
    model.host.fail_in(None);
}

fn run(numbers: &[u64]) -> Seen {
    let mut model = Model::new(if cfg!(miri) { 256 } else { 2048 });
    for (at, pair) in numbers.chunks_exact(2).enumerate() {
        step(&mut model, pair[0], pair[1]);
        if at % 32 == 0 {
            model.verify();
        }
    }
    model.verify();
    model.end()
}

proptest! {
    // 250 times 4000 steps.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_what_the_map_of_pages_says(numbers in prop::collection::vec(any::<u64>(), 2 * STEPS)) {
        run(&numbers);
    }
}

/// Sections grow over the limits of one and two levels of tables, with pages and without any: nothing is lost then, or at their end.
#[test]
#[cfg_attr(miri, ignore = "takes minutes there, for steps that the random ones take as well")]
fn a_section_grows_with_and_without_pages() {
    const SIZES: [u64; 5] = [1, 0x200, 0x201, 0x4_0001, 1 << 27];
    for first in 0..SIZES.len() {
        for touched in first..=SIZES.len() {
            // SAFETY: the last use of it is in `grow`, whose section and space are gone.
            assert!(unsafe { grow(&SIZES[first..], touched - first).end() }, "{first} {touched}: a leak");
        }
    }
}

/// A section that gets these sizes in pages one after the other; one page of it is touched at its size number `touched`, if it has one.
fn grow(sizes: &[u64], touched: usize) -> HostRef {
    let host = HostRef::new(64);
    at_passive(|at| {
        let section = Section::create(host, sizes[0] * PAGE, 4, at).unwrap();
        for (step, pages) in sizes.iter().enumerate() {
            section.extend(pages * PAGE, at).unwrap();
            section.verify(at).unwrap();
            if step == touched {
                let space = AddressSpace::create(host, at).unwrap();
                let view = space.map(&section, None, 0, 0, 0, 4, at).unwrap();
                let last = view.base + view.bytes - PAGE;
                assert_eq!(space.resolve(last, Access::Write, at), Resolution::Resolved);
                section.verify(at).unwrap();
                space.destroy(at);
            }
        }
        assert_eq!(section.charged(at), host.commit().used());
        section.release(at);
    });
    host
}

/// Between two pieces of a decommit somebody else commits pages behind them, which frees the tables in which nothing is said, and then memory
/// is gone: the decommit is done as a whole, or not begun.
#[test]
#[cfg_attr(miri, ignore = "takes minutes there")]
fn a_decommit_is_never_left_half_done() {
    const APC: u8 = 1;
    const ALL: u64 = 6 * 512;
    const TOUCHED: u64 = 1100;
    let (mut done, mut refused) = (0, 0);
    for point in (0..).step_by(200) {
        let host = HostRef::new(2048);
        let space = at_passive(|at| AddressSpace::create(host, at)).unwrap();
        let base = at_passive(|at| space.allocate(None, ALL * PAGE, RESERVE | COMMIT, 4, at)).unwrap().base;
        for page in 0..TOUCHED {
            let touched = at_passive(|at| space.resolve(base + page * PAGE, Access::Write, at));
            assert_eq!(touched, Resolution::Resolved);
        }
        let interrupt = || {
            let from = base + (TOUCHED - 1) * PAGE;
            // SAFETY: the handler is at APC, and uses this token alone.
            let committed = unsafe {
                Irql::<Apc>::with(|at| space.allocate(Some(from), (ALL - TOUCHED + 1) * PAGE, COMMIT, 4, at))
            };
            committed.unwrap();
            host.fail_in(Some(0));
        };
        let mut result = Err(NtStatus::UNSUCCESSFUL);
        let outcome = arch::inject::run_at(point, APC, &interrupt, || {
            result = at_passive(|at| space.free(base + PAGE, (ALL - 1) * PAGE, DECOMMIT, at)).map(|_| ());
        });
        host.fail_in(None);
        let committed = |page: u64| {
            let information = at_passive(|at| space.query(base + page * PAGE, at)).unwrap();
            information.state == COMMIT
        };
        assert!(committed(0), "{point}");
        match result {
            // What was committed meanwhile may be so.
            Ok(()) => {
                done += 1;
                assert!(!(1..TOUCHED - 1).any(committed), "{point}: done, and pages left");
            }
            Err(status) => {
                assert_eq!(status, NtStatus::INSUFFICIENT_RESOURCES);
                refused += 1;
                assert!((1..ALL).all(committed), "{point}: refused, and half done");
            }
        }
        let charged = at_passive(|at| space.verify(at)).unwrap();
        assert_eq!(charged, host.commit().used(), "{point}");
        at_passive(|at| space.destroy(at));
        // SAFETY: its space is gone.
        assert!(unsafe { host.end() }, "{point}: a leak");
        if outcome == Outcome::NotReached {
            break;
        }
    }
    assert!(done >= 3 && refused >= 1, "{done} done, {refused} refused");
}

/// In so many steps all that is checked above happens, and often.
#[test]
fn random_steps_reach_every_rule() {
    let mut random = 0_u64;
    let mut next = || {
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (random ^ random >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    };
    let mut all = [0; 12];
    for _ in 0..if cfg!(miri) { 1 } else { 10 } {
        let numbers: Vec<_> = (0..2 * STEPS).map(|_| next()).collect();
        let counts = run(&numbers).counts();
        all.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    assert!(cfg!(miri) || all.iter().all(|&count| count >= 20), "{all:?}");
}
