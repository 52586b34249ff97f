//! Address spaces and sections beside maps of pages: each operation is done to both, and what they say and hold is compared.

use std::collections::BTreeMap;

use kernel::mm::pfn::PageNumber;
use kernel::mm::process::fault::Resolution;
use kernel::mm::process::machine::Machine;
use kernel::mm::process::protection::Access;
use kernel::mm::process::section::{Section, SectionRef};
use kernel::mm::process::space::AddressSpace;
use kernel::mm::process::virtual_memory::{COMMIT, RELEASE};
use kernel::mm::vad::Span;
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::process_holds::Hold;
use crate::process_machine::{HostRef, Translation};
use crate::process_rules::{
    Allocation, PAGE, PageRules, SpaceRules, allows, copies, of_copy, region, span_of, valid,
};

/// A space.
pub struct SpaceModel {
    /// Its number among all that there have been.
    pub id: u64,
    /// The kernel's.
    pub space: Box<AddressSpace<HostRef>>,
    /// What it must be.
    pub rules: SpaceRules,
}

/// A section.
pub struct SectionModel {
    /// The kernel's, until it was let go.
    pub section: Option<SectionRef<HostRef>>,
    protect: u32,
    /// Its size.
    pub bytes: u64,
    content: BTreeMap<u64, u64>,
    views: usize,
}

/// Where the content of a page is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// A space's alone; the stamp tells it from one that was there before or came later.
    Own { space: u64, page: u64, stamp: u64 },
    /// A section's.
    Section { section: usize, index: u64 },
}

/// A machine, and what there must be on it.
pub struct Model {
    /// The machine.
    pub host: HostRef,
    /// Its spaces.
    pub spaces: Vec<SpaceModel>,
    /// Its sections, those that are gone, too.
    pub sections: Vec<SectionModel>,
    pub(crate) holds: Vec<Hold>,
    stamps: u64,
    /// What has happened.
    pub seen: Seen,
}

/// What happened, so that a run in which nothing did is found out.
#[derive(Default)]
pub struct Seen {
    pub(crate) read: usize,
    written: usize,
    copied: usize,
    guarded: usize,
    refused: usize,
    pub(crate) exhausted: usize,
    views: usize,
    splits: usize,
    pub(crate) held: usize,
    pub(crate) not_held: usize,
    pub(crate) by_device: usize,
    pub(crate) outlived: usize,
}

impl Seen {
    /// All of it.
    pub fn counts(&self) -> [usize; 12] {
        [
            self.read,
            self.written,
            self.copied,
            self.guarded,
            self.refused,
            self.exhausted,
            self.views,
            self.splits,
            self.held,
            self.not_held,
            self.by_device,
            self.outlived,
        ]
    }
}

/// As a processor at PASSIVE.
pub fn at_passive<R>(f: impl FnOnce(&mut Irql<Passive>) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::<Passive>::with(f) }
}

/// Both ends of the page have this word: it was cleared, copied or written in whole.
pub(crate) fn check_page(host: HostRef, page: PageNumber, content: u64) {
    let word = host.word(page);
    // SAFETY: a page of a space or section, or one that is held, used by this thread alone.
    let found = unsafe { [word.read(), word.add(511).read()] };
    assert_eq!(found, [content; 2], "another content");
}

/// Writes it there.
pub(crate) fn fill_page(host: HostRef, page: PageNumber, content: u64) {
    let word = host.word(page);
    // SAFETY: as above.
    unsafe {
        word.write(content);
        word.add(511).write(content);
    }
}

/// What a call may also say while something is to fail.
fn ran_out(status: NtStatus) -> bool {
    status == NtStatus::INSUFFICIENT_RESOURCES
}

impl Model {
    /// Two spaces, on a machine with so much memory.
    pub fn new(pages: u32) -> Self {
        let host = HostRef::new(pages);
        let mut model = Self {
            host,
            spaces: Vec::new(),
            sections: Vec::new(),
            holds: Vec::new(),
            stamps: 0,
            seen: Seen::default(),
        };
        model.create();
        model.create();
        model
    }

    /// Another space.
    pub fn create(&mut self) {
        let armed = self.host.is_to_fail();
        match at_passive(|at| AddressSpace::create(self.host, at)) {
            Ok(space) => {
                self.stamps += 1;
                let (space, rules) = (Box::new(space), SpaceRules::default());
                self.spaces.push(SpaceModel { id: self.stamps, space, rules });
            }
            Err(status) => assert!(armed && ran_out(status)),
        }
    }

    /// One space less.
    pub fn destroy(&mut self, which: usize) {
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

    /// `spare`: what may be charged at most.
    pub fn allocate(
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

    /// Decommits or releases.
    pub fn free(&mut self, which: usize, base: u64, bytes: u64, kind: u32) {
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
                *page = PageRules { protect: None, own: None, stamp: 0 };
            }
        }
    }

    /// Changes protections.
    pub fn protect(&mut self, which: usize, base: u64, bytes: u64, protect: u32) {
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

    /// Asks.
    pub fn query(&mut self, which: usize, address: u64) {
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

    /// What an access does by the rules, and where its content is.
    pub(crate) fn by_the_rules(
        &mut self,
        which: usize,
        page: u64,
        access: Access,
    ) -> Result<Place, Resolution> {
        let this = &mut self.spaces[which];
        let view = this
            .rules
            .find(page)
            .and_then(|(first, it)| it.view.map(|(section, from)| (section, from + page - first)));
        let state = this.rules.pages.get_mut(&page).filter(|page| page.protect.is_some());
        let Some(state) = state else { return Err(Resolution::AccessViolation) };
        let protect = state.protect.unwrap();
        if protect & 0x100 != 0 {
            state.protect = Some(protect & !0x100);
            self.seen.guarded += 1;
            return Err(Resolution::GuardPage);
        }
        if !allows(protect, access) {
            return Err(Resolution::AccessViolation);
        }
        let own = match (state.own, view) {
            (Some(_), _) => return Ok(Place::Own { space: this.id, page, stamp: state.stamp }),
            (None, None) => 0,
            (None, Some((section, index))) => {
                let content = *self.sections[section].content.entry(index).or_insert(0);
                if !copies(protect) || access != Access::Write {
                    return Ok(Place::Section { section, index });
                }
                state.protect = Some(of_copy(protect));
                self.seen.copied += 1;
                content
            }
        };
        self.stamps += 1;
        (state.own, state.stamp) = (Some(own), self.stamps);
        Ok(Place::Own { space: this.id, page, stamp: self.stamps })
    }

    /// What is there by the rules; nothing if nobody gets there any more.
    pub(crate) fn content(&mut self, place: &Place) -> Option<&mut u64> {
        match *place {
            Place::Own { space, page, stamp } => {
                let space = self.spaces.iter_mut().find(|it| it.id == space)?;
                let state = space.rules.pages.get_mut(&page)?;
                if state.stamp == stamp { state.own.as_mut() } else { None }
            }
            Place::Section { section, index } => {
                let section = &mut self.sections[section];
                let lives = section.section.is_some() || section.views > 0;
                if lives { section.content.get_mut(&index) } else { None }
            }
        }
    }

    /// Reads or writes a word at both ends of a page.
    pub fn touch(&mut self, which: usize, address: u64, access: Access, value: u64) {
        let armed = self.host.is_to_fail();
        let found = self.access(which, address, access);
        if found == Err(Resolution::Exhausted) && armed {
            self.seen.exhausted += 1;
            return;
        }
        let wanted = self.by_the_rules(which, address / PAGE, access);
        let (there, place) = match (found, wanted) {
            (Ok(there), Ok(place)) => (there, place),
            (found, wanted) => {
                assert_eq!(found.err(), wanted.err(), "{access:?} at {address:#x}");
                return;
            }
        };
        let host = self.host;
        let content = self.content(&place).unwrap();
        check_page(host, there.page, *content);
        if access == Access::Write {
            *content = value;
            fill_page(host, there.page, value);
            self.seen.written += 1;
        }
        self.seen.read += 1;
    }

    /// Another section.
    pub fn create_section(&mut self, bytes: u64, protect: u32) {
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

    /// A view.
    pub fn map(
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

    /// One view less.
    pub fn unmap(&mut self, which: usize, address: u64) {
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

    /// A section grows.
    pub fn extend(&mut self, section: usize, bytes: u64) {
        let armed = self.host.is_to_fail();
        let model = &self.sections[section];
        let Some(reference) = &model.section else { return };
        let found = at_passive(|at| reference.extend(bytes, at));
        if self.agree(armed, found, Ok(()), "extend") {
            let model = &mut self.sections[section];
            model.bytes = model.bytes.max(bytes);
        }
    }

    /// A section's maker lets it go.
    pub fn forget(&mut self, section: usize) {
        if let Some(reference) = self.sections[section].section.take() {
            at_passive(|at| reference.release(at));
        }
    }

    /// The invariants that can be looked at, and the sums.
    pub fn verify(&self) {
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

    /// All is given back.
    pub fn end(mut self) -> Seen {
        self.look_at_holds();
        while !self.spaces.is_empty() {
            self.destroy(0);
        }
        for section in 0..self.sections.len() {
            assert_eq!(self.sections[section].views, 0);
            self.forget(section);
        }
        while self.holds() > 0 {
            self.let_go(0);
        }
        // SAFETY: the spaces and sections are gone.
        assert!(unsafe { self.host.end() }, "something was not given back");
        self.seen
    }
}
