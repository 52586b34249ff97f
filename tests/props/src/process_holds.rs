//! Pages held for I/O beside the maps of pages: a device reads and writes them, also when their address has ended.

use kernel::mm::pfn::PageNumber;
use kernel::mm::process::fault::Resolution;
use kernel::mm::process::machine::Machine;
use kernel::mm::process::protection::Access;
use kernel::mm::process::virtual_memory::DECOMMIT;

use crate::process_model::{Model, Place, at_passive, check_page, fill_page};
use crate::process_rules::PAGE;

/// Pages that were held together.
pub(crate) struct Hold {
    written: bool,
    pages: Vec<HeldPage>,
}

struct HeldPage {
    page: PageNumber,
    place: Place,
    /// What it held when it was last looked at: from when nobody else reaches it, it stays so.
    content: u64,
}

impl Model {
    /// How much is held at once.
    pub fn holds(&self) -> usize {
        self.holds.len()
    }

    /// Holds `count` pages from `address` on.
    pub fn hold(&mut self, which: usize, address: u64, count: usize, access: Access) {
        let armed = self.host.is_to_fail();
        let mut numbers = vec![0; count];
        let first = address / PAGE * PAGE;
        let space = &self.spaces[which].space;
        let found = at_passive(|at| space.hold(first, access, &mut numbers, at));
        let reached = found.map_or_else(|refused| refused.page, |()| count);
        let mut pages = Vec::new();
        for (page, &number) in (first / PAGE..).zip(&numbers).take(reached) {
            let place = self.by_the_rules(which, page, access).expect("held, and may not be");
            let page = self.host.in_use(number);
            pages.push(HeldPage { page, place, content: *self.content(&place).unwrap() });
        }
        let Err(refused) = found else {
            self.holds.push(Hold { written: access == Access::Write, pages });
            self.seen.held += 1;
            return self.look_at_holds();
        };
        self.seen.not_held += 1;
        if refused.why == Resolution::Exhausted && armed {
            self.seen.exhausted += 1;
            return;
        }
        let wanted = self.by_the_rules(which, first / PAGE + reached as u64, access);
        assert_eq!(wanted.err(), Some(refused.why), "not held at {:#x}", first + reached as u64 * PAGE);
    }

    /// What is held is what the rules say is there; without an address, what it was.
    pub fn look_at_holds(&mut self) {
        let mut holds = std::mem::take(&mut self.holds);
        for held in holds.iter_mut().flat_map(|hold| &mut hold.pages) {
            if let Some(&mut content) = self.content(&held.place) {
                held.content = content;
            }
            check_page(self.host, held.page, held.content);
        }
        self.holds = holds;
    }

    /// A device writes what it holds for that.
    pub fn write_by_device(&mut self, random: u64) {
        let writing = self.holds.iter().enumerate().filter(|(_, hold)| hold.written);
        let writing: Vec<_> = writing.map(|(at, _)| at).collect();
        if writing.is_empty() {
            return;
        }
        let hold = self.holds.swap_remove(writing[random as usize % writing.len()]);
        for held in &hold.pages {
            if let Some(content) = self.content(&held.place) {
                *content = random;
            }
            // Others may hold it, too.
            for other in self.holds.iter_mut().flat_map(|hold| &mut hold.pages) {
                if other.page == held.page {
                    other.content = random;
                }
            }
            fill_page(self.host, held.page, random);
        }
        let pages = hold.pages.into_iter().map(|held| HeldPage { content: random, ..held }).collect();
        self.holds.push(Hold { pages, ..hold });
        self.seen.by_device += 1;
        self.look_at_holds();
    }

    /// Lets pages go; those that nobody else has are free then.
    pub fn let_go(&mut self, random: u64) {
        if self.holds.is_empty() {
            return;
        }
        self.look_at_holds();
        let hold = self.holds.swap_remove(random as usize % self.holds.len());
        for held in hold.pages {
            let is_last = self.content(&held.place).is_none() && self.host.holds_of(held.page) == 1;
            let before = self.host.free_pages();
            at_passive(|at| self.host.let_go(held.page, at));
            assert_eq!(self.host.free_pages(), before + u32::from(is_last), "freed with the last use");
            self.seen.outlived += usize::from(is_last);
        }
        self.look_at_holds();
    }

    /// A page that is held while it is decommitted goes with the end of the hold.
    pub fn hold_over_a_decommit(&mut self, which: usize, address: u64) {
        if self.host.is_to_fail() {
            return;
        }
        let before = self.holds.len();
        self.hold(which, address, 1, Access::Read);
        if self.holds.len() == before {
            return;
        }
        self.free(which, address / PAGE * PAGE, PAGE, DECOMMIT);
        self.look_at_holds();
        let last = self.holds.len() as u64 - 1;
        self.let_go(last);
    }
}
