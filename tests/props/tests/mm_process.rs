//! Address spaces and sections against maps of pages: each call's result is the one that NT's rules give, each access finds its own
//! content or the right status, whatever was freed is reached by no translation that the processor kept, an operation that can't
//! get what it needs changes nothing, and at the end all is given back.

use std::collections::BTreeMap;

use kernel::mm::process::fault::Resolution;
use kernel::mm::process::machine::Machine;
use kernel::mm::process::protection::Access;
use kernel::mm::process::section::{Section, SectionRef};
use kernel::mm::process::space::{AddressSpace, HIGHEST};
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE, TOP_DOWN};
use kernel::mm::vad::Span;
use kernel::rtl::NtStatus;
use props::process_machine::{HostRef, Translation};
use props::process_rules::{
    Allocation, PAGE, PageRules, SpaceRules, allows, copies, of_copy, region, span_of, valid,
};
use proptest::prelude::*;
use sync::irql::{Irql, Passive};

const STEPS: usize = if cfg!(miri) { 150 } else { 4000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 250 };
struct SpaceModel {
    space: Box<AddressSpace<HostRef>>,
    rules: SpaceRules,
}

struct SectionModel {
    section: Option<SectionRef<HostRef>>,
    protect: u32,
    bytes: u64,
    content: BTreeMap<u64, u64>,
    views: usize,
}

struct Model {
    host: HostRef,
    spaces: Vec<SpaceModel>,
    sections: Vec<SectionModel>,
    seen: Seen,
}

/// What happened, so that a run in which nothing did is found out.
#[derive(Default)]
struct Seen {
    read: usize,
    written: usize,
    copied: usize,
    guarded: usize,
    refused: usize,
    exhausted: usize,
    views: usize,
    splits: usize,
}

fn at_passive<R>(f: impl FnOnce(&mut Irql<Passive>) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::<Passive>::with(f) }
}

const PROTECTS: [u32; 12] = [1, 2, 4, 4, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x104, 0x102];

/// Addresses that share tables at every level, and some that don't; 64 KiB apart.
fn window(random: u64) -> u64 {
    const WINDOWS: [u64; 5] = [0x1_0000, 0x1F_0000, 0x3FF0_0000, 0x7F_FFF0_0000, HIGHEST - 0x40_FFFF];
    WINDOWS[random as usize % WINDOWS.len()] + (random >> 8) % 40 * 0x1_0000
}

/// What a call may also say while something is to fail.
fn ran_out(status: NtStatus) -> bool {
    status == NtStatus::INSUFFICIENT_RESOURCES
}

impl Model {
    fn new() -> Self {
        let host = HostRef::new(if cfg!(miri) { 256 } else { 2048 });
        let mut model = Self { host, spaces: Vec::new(), sections: Vec::new(), seen: Seen::default() };
        model.create();
        model.create();
        model
    }

    fn create(&mut self) {
        let armed = self.host.is_to_fail();
        match at_passive(|at| AddressSpace::create(self.host, at)) {
            Ok(space) => {
                self.spaces.push(SpaceModel { space: Box::new(space), rules: SpaceRules::default() });
            }
            Err(status) => assert!(armed && ran_out(status)),
        }
    }

    fn destroy(&mut self, which: usize) {
        let gone = self.spaces.remove(which);
        for allocation in gone.rules.allocations.values() {
            if let Some((section, _)) = allocation.view {
                self.end_view(section);
            }
        }
        self.host.leave(gone.space.loaded());
        at_passive(|at| gone.space.destroy(at));
    }

    fn end_view(&mut self, section: usize) {
        self.sections[section].views -= 1;
    }

    fn agree<T: PartialEq + std::fmt::Debug>(
        &mut self,
        armed: bool,
        found: Result<T, NtStatus>,
        wanted: Result<T, NtStatus>,
        what: &str,
    ) -> bool {
        if let Err(status) = found
            && ran_out(status)
            && armed
        {
            self.seen.exhausted += 1;
            return false;
        }
        assert_eq!(found, wanted, "{what}");
        self.seen.refused += usize::from(found.is_err());
        wanted.is_ok()
    }

    fn allocate(
        &mut self,
        which: usize,
        base: Option<u64>,
        bytes: u64,
        kind: u32,
        protect: u32,
        spare: Option<u64>,
    ) {
        let armed = self.host.is_to_fail();
        let this = &self.spaces[which];
        let wanted = this.rules.allocate(base, bytes, kind, protect, spare);
        if let Some(spare) = spare {
            self.host.commit().set_limit(self.host.commit().used() + spare);
        }
        let found = at_passive(|at| this.space.allocate(base, bytes, kind, protect, at));
        self.host.commit().set_limit(u64::MAX);
        if !self.agree(armed, found, wanted.map(|(span, _)| region(span)), "allocate") {
            return;
        }
        let Ok((span, reserves)) = wanted else { return };
        let rules = &mut self.spaces[which].rules;
        if reserves {
            rules.add(span, Allocation { end: 0, protect, view: None }, kind & COMMIT != 0);
            return;
        }
        for (_, page) in rules.pages.range_mut(span.first..span.end) {
            page.protect = Some(protect);
        }
    }

    fn free(&mut self, which: usize, base: u64, bytes: u64, kind: u32) {
        let armed = self.host.is_to_fail();
        let this = &self.spaces[which];
        let wanted = this.rules.free(base, bytes, kind);
        let found = at_passive(|at| this.space.free(base, bytes, kind, at));
        if !self.agree(armed, found, wanted, "free") {
            return;
        }
        let Ok(region) = wanted else { return };
        let span = span_of(region.base, region.bytes).unwrap();
        let this = &mut self.spaces[which];
        if kind == RELEASE {
            let before = this.rules.allocations.len();
            this.rules.take_out(span);
            self.seen.splits += usize::from(this.rules.allocations.len() >= before);
        } else {
            for (_, page) in this.rules.pages.range_mut(span.first..span.end) {
                *page = PageRules { protect: None, own: None };
            }
        }
    }

    fn protect(&mut self, which: usize, base: u64, bytes: u64, protect: u32) {
        let armed = self.host.is_to_fail();
        let this = &self.spaces[which];
        let wanted = this.rules.protect(base, bytes, protect);
        let found = at_passive(|at| this.space.protect(base, bytes, protect, at));
        if !self.agree(armed, found, wanted, "protect") {
            return;
        }
        let span = span_of(base, bytes).unwrap();
        let this = &mut self.spaces[which];
        let is_view = this.rules.find(span.first).unwrap().1.view.is_some();
        for (_, page) in this.rules.pages.range_mut(span.first..span.end) {
            page.protect = Some(if is_view && page.own.is_some() { of_copy(protect) } else { protect });
        }
    }

    fn query(&mut self, which: usize, address: u64) {
        let this = &self.spaces[which];
        let wanted = this.rules.query(address);
        assert_eq!(at_passive(|at| this.space.query(address, at)), wanted);
    }

    /// An access as the processor makes it: by what it remembers, else by the tables, else by a fault.
    fn access(&self, which: usize, address: u64, access: Access) -> Result<Translation, Resolution> {
        let space = &self.spaces[which].space;
        let page = address / PAGE;
        for _ in 0..3 {
            if let Some(known) = self.host.cached(space.loaded(), page)
                && (access == Access::Read || access == Access::Write && known.writable)
            {
                return Ok(known);
            }
            let there = at_passive(|at| {
                let page = space.translate(address, access, at)?;
                Some(Translation { page, writable: space.translate(address, Access::Write, at).is_some() })
            });
            if let Some(there) = there {
                self.host.cache(space.loaded(), page, there);
                return Ok(there);
            }
            match at_passive(|at| space.resolve(address, access, at)) {
                Resolution::Resolved => {}
                other => return Err(other),
            }
        }
        panic!("resolved without end");
    }

    fn touch(&mut self, which: usize, address: u64, access: Access, value: u64) {
        let armed = self.host.is_to_fail();
        let page = address / PAGE;
        let found = self.access(which, address, access);
        let this = &mut self.spaces[which];
        let view = this
            .rules
            .find(page)
            .and_then(|(first, it)| it.view.map(|(section, from)| (section, from + page - first)));
        if found == Err(Resolution::Exhausted) && armed {
            self.seen.exhausted += 1;
            return;
        }
        let state = this.rules.pages.get_mut(&page).filter(|page| page.protect.is_some());
        let Some(state) = state else {
            assert_eq!(found, Err(Resolution::AccessViolation), "nothing is there");
            return;
        };
        let protect = state.protect.unwrap();
        if protect & 0x100 != 0 {
            assert_eq!(found, Err(Resolution::GuardPage));
            state.protect = Some(protect & !0x100);
            self.seen.guarded += 1;
            return;
        }
        if !allows(protect, access) {
            assert_eq!(found, Err(Resolution::AccessViolation), "{protect:#x} {access:?}");
            return;
        }
        let there = found.expect("an access that is allowed");
        let word = self.host.word(there.page);
        // SAFETY: a page of the space or section, used by this thread alone.
        let content = unsafe { word.read() };
        let section = view.map(|(section, index)| (&mut self.sections[section].content, index));
        let before = match (&state.own, &section) {
            (Some(own), _) => *own,
            (None, Some((content, index))) => content.get(index).copied().unwrap_or(0),
            (None, None) => 0,
        };
        assert_eq!(content, before, "another content at {address:#x}");
        // SAFETY: as above: cleared or copied in whole.
        assert_eq!(unsafe { word.add(511).read() }, before, "the page's end");
        self.seen.read += 1;
        if access == Access::Write {
            // SAFETY: as above.
            unsafe {
                word.write(value);
                word.add(511).write(value);
            }
            self.seen.written += 1;
        }
        let now = if access == Access::Write { value } else { before };
        match (&mut state.own, section) {
            (Some(own), _) => *own = now,
            (own, None) => *own = Some(now),
            (own, Some(_)) if copies(protect) && access == Access::Write => {
                *own = Some(now);
                state.protect = Some(of_copy(protect));
                self.seen.copied += 1;
            }
            (_, Some((content, index))) => drop(content.insert(index, now)),
        }
    }

    fn create_section(&mut self, bytes: u64, protect: u32) {
        let armed = self.host.is_to_fail();
        let wanted = if !valid(protect) || protect & 0x101 != 0 {
            Err(NtStatus::INVALID_PAGE_PROTECTION)
        } else if bytes == 0 {
            Err(NtStatus::INVALID_PARAMETER_4)
        } else if bytes.div_ceil(PAGE) > 1 << 27 {
            Err(NtStatus::SECTION_TOO_BIG)
        } else {
            Ok(())
        };
        let found = at_passive(|at| Section::create(self.host, bytes, protect, at));
        let (section, found) = match found {
            Ok(section) => (Some(section), Ok(())),
            Err(status) => (None, Err(status)),
        };
        if self.agree(armed, found, wanted, "create a section") {
            self.sections.push(SectionModel { section, protect, bytes, content: BTreeMap::new(), views: 0 });
        }
    }

    fn map(
        &mut self,
        which: usize,
        section: usize,
        base: Option<u64>,
        offset: u64,
        bytes: u64,
        protect: u32,
    ) {
        let armed = self.host.is_to_fail();
        let (this, model) = (&self.spaces[which], &self.sections[section]);
        let Some(reference) = &model.section else { return };
        let wanted = this.rules.map((model.bytes, model.protect), base, offset, bytes, protect);
        let found = at_passive(|at| this.space.map(reference, base, offset, bytes, 0, protect, at));
        if !self.agree(armed, found, wanted, "map") {
            return;
        }
        let Ok(region) = wanted else { return };
        let span = span_of(region.base, region.bytes).unwrap();
        let view = Some((section, offset / PAGE));
        self.spaces[which].rules.add(span, Allocation { end: 0, protect, view }, true);
        self.sections[section].views += 1;
        self.seen.views += 1;
    }

    fn unmap(&mut self, which: usize, address: u64) {
        let this = &mut self.spaces[which];
        let found = at_passive(|at| this.space.unmap(address, at));
        let view = this.rules.find(address / PAGE).and_then(|(first, it)| Some((first, it.end, it.view?)));
        let Some((first, end, (section, _))) = view else {
            assert_eq!(found, Err(NtStatus::NOT_MAPPED_VIEW));
            return;
        };
        assert_eq!(found, Ok(()));
        this.rules.take_out(Span { first, end });
        self.end_view(section);
    }

    fn extend(&mut self, section: usize, bytes: u64) {
        let armed = self.host.is_to_fail();
        let model = &self.sections[section];
        let Some(reference) = &model.section else { return };
        let found = at_passive(|at| reference.extend(bytes, at));
        if self.agree(armed, found, Ok(()), "extend") {
            let model = &mut self.sections[section];
            model.bytes = model.bytes.max(bytes);
        }
    }

    fn forget(&mut self, section: usize) {
        if let Some(reference) = self.sections[section].section.take() {
            at_passive(|at| reference.release(at));
        }
    }

    /// A page in use by its physical address while it is decommitted goes with the end of that use.
    fn locked(&mut self, which: usize, address: u64) {
        let this = &self.spaces[which];
        let is_private = this.rules.find(address / PAGE).is_some_and(|(_, it)| it.view.is_none());
        let page = at_passive(|at| this.space.translate(address, Access::Read, at));
        let Some(page) = page.filter(|_| is_private && !self.host.is_to_fail()) else { return };
        self.host.refer(page, true);
        let before = self.host.free_pages();
        self.free(which, address / PAGE * PAGE, PAGE, DECOMMIT);
        // Tables may have come or gone.
        let free = self.host.free_pages();
        assert!(free <= before + 3, "a page freed in use");
        self.host.refer(page, false);
        assert_eq!(self.host.free_pages(), free + 1, "the last use frees the page");
    }

    /// An address of interest: mostly one that has something.
    fn somewhere(&self, which: usize, random: u64) -> u64 {
        let this = &self.spaces[which];
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

    fn step(&mut self, random: u64, more: u64) {
        let kind = random as u8 % 64;
        let which = (random >> 8) as usize % self.spaces.len().max(1);
        if self.spaces.is_empty() {
            return self.create();
        }
        let protect = PROTECTS[(random >> 16) as usize % PROTECTS.len()];
        let pages = if random >> 63 == 0 { more >> 20 & 31 } else { more >> 20 & 255 };
        let bytes = pages * PAGE + (more >> 30 & 1) * (more >> 31 & 0xFFF);
        let fails = (random >> 56 & 15 == 0).then_some((random >> 60) as u32 & 7);
        self.host.fail_in(fails);
        let size = more >> 50 & 3;
        match kind {
            0..5 => {
                let kind = [RESERVE, RESERVE | COMMIT, RESERVE | COMMIT | TOP_DOWN, COMMIT]
                    [(random >> 24) as usize & 3];
                let base = (random >> 26 & 3 != 0).then(|| window(more) + (random >> 28 & 1) * 0x1234);
                let spare = (random >> 30 & 7 == 0).then_some(more >> 12 & 31);
                self.allocate(which, base, bytes, kind, protect, spare);
            }
            5..9 => {
                let spare = (random >> 30 & 7 == 0).then_some(more >> 12 & 15);
                let bytes = if size == 0 { bytes } else { pages % 8 * PAGE + 1 };
                self.allocate(which, Some(self.somewhere(which, more)), bytes, COMMIT, protect, spare);
            }
            9..14 => {
                let whole = size == 0;
                let kind = [DECOMMIT, DECOMMIT, RELEASE, if whole { RELEASE } else { 0x100 }]
                    [(random >> 24) as usize & 3];
                let address = self.somewhere(which, more);
                let bytes = if whole { 0 } else { pages % 20 * PAGE };
                self.free(which, address / PAGE * PAGE, bytes, kind);
            }
            14..19 => {
                let bytes = if size == 0 { bytes } else { pages % 6 * PAGE + 1 };
                self.protect(which, self.somewhere(which, more), bytes, protect);
            }
            19..22 => self.query(which, self.somewhere(which, more)),
            22..52 => {
                let access = [Access::Read, Access::Write, Access::Write, Access::Execute]
                    [(random >> 24) as usize & 3];
                self.touch(which, self.somewhere(which, more), access, random | 1);
            }
            52 if self.sections.iter().filter(|it| it.section.is_some()).count() < 4 => {
                let bytes = if size == 0 { bytes } else { 0x2_0000 + bytes };
                self.create_section(bytes, protect);
            }
            53..57 if !self.sections.is_empty() => {
                let section = (random >> 24) as usize % self.sections.len();
                let base = (random >> 26 & 3 == 0).then(|| window(more));
                let (offset, bytes) = if size == 0 { ((more >> 40 & 3) << 16, bytes) } else { (0, 0) };
                self.map(which, section, base, offset, bytes, protect);
            }
            57 | 58 => self.unmap(which, self.somewhere(which, more)),
            59 if !self.sections.is_empty() => {
                let section = (random >> 24) as usize % self.sections.len();
                let bytes = self.sections[section].bytes;
                if size != 0 && bytes < 3 << 20 {
                    self.extend(section, if size == 1 { bytes + (3 << 20) } else { bytes + 0x3000 });
                } else {
                    self.forget(section);
                }
            }
            60 => self.locked(which, self.somewhere(which, more)),
            61 if more & 15 == 0 => self.destroy(which),
            62 if self.spaces.len() < 3 => self.create(),
            _ => {
                for address in [u64::MAX, HIGHEST + 1, HIGHEST, 0, 0xFFFF] {
                    self.query(which, address);
                    self.free(which, address, PAGE * (more & 1), RELEASE);
                    self.touch(which, address, Access::Read, 0);
                    self.allocate(which, Some(address), bytes, RESERVE, 4, None);
                    self.protect(which, address, PAGE, 2);
                }
                let tops = self.spaces[which].rules.find(HIGHEST / PAGE).is_some();
                if tops {
                    self.free(which, HIGHEST / 0x1_0000 * 0x1_0000, 0, RELEASE);
                }
            }
        }
        self.host.fail_in(None);
    }

    fn verify(&self) {
        at_passive(|at| {
            let mut charged = 0;
            for this in &self.spaces {
                charged += this.space.verify(at).unwrap();
                assert_eq!(this.space.sizes(at).descriptors, this.rules.allocations.len());
                let own = this.rules.pages.values().filter(|page| page.own.is_some()).count();
                assert_eq!(this.space.sizes(at).private, own as u64, "pages of its own");
            }
            // Of sections of which only views are left, the model can't ask.
            if self.sections.iter().all(|it| it.section.is_some() || it.views == 0) {
                charged +=
                    self.sections.iter().flat_map(|it| &it.section).map(|it| it.charged(at)).sum::<u64>();
                assert_eq!(self.host.commit().used(), charged, "charged");
            }
            for section in &self.sections {
                if let Some(reference) = &section.section {
                    reference.verify(at).unwrap();
                    // More: what was copied, or touched in vain.
                    assert!(reference.resident(at) >= section.content.len() as u64);
                }
            }
        });
    }

    fn end(mut self) -> Seen {
        while !self.spaces.is_empty() {
            self.destroy(0);
        }
        for section in 0..self.sections.len() {
            assert_eq!(self.sections[section].views, 0);
            self.forget(section);
        }
        // SAFETY: the spaces and sections are gone.
        assert!(unsafe { self.host.end() }, "something was not given back");
        self.seen
    }
}

fn run(numbers: &[u64]) -> Seen {
    let mut model = Model::new();
    for (at, pair) in numbers.chunks_exact(2).enumerate() {
        model.step(pair[0], pair[1]);
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
    let mut all = [0; 8];
    for _ in 0..if cfg!(miri) { 1 } else { 10 } {
        let numbers: Vec<_> = (0..2 * STEPS).map(|_| next()).collect();
        let seen = run(&numbers);
        let counts = [
            seen.read,
            seen.written,
            seen.copied,
            seen.guarded,
            seen.refused,
            seen.exhausted,
            seen.views,
            seen.splits,
        ];
        all.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    assert!(cfg!(miri) || all.iter().all(|&count| count >= 20), "{all:?}");
}
