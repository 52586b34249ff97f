//! Checked build: who holds how much, by tag and place in the code.

use core::panic::Location;

use super::tags::Tag;

/// What one place in the code holds with one tag.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// The tag.
    pub tag: Tag,
    /// The call.
    pub site: &'static Location<'static>,
    /// Blocks in use.
    pub blocks: u64,
    /// Bytes asked for with them.
    pub bytes: u64,
    marked: u64,
}

/// The table: a place keeps its number. Number 0 is for those that found no room, and counts nothing.
pub(super) struct Sites<const N: usize> {
    lives: [Option<Live>; N],
    /// The number that is looked at first: the last one found.
    last: usize,
}

impl<const N: usize> Sites<N> {
    pub(super) const fn new() -> Self {
        Self { lives: [None; N], last: 0 }
    }

    /// One more block.
    pub(super) fn add(&mut self, tag: Tag, site: &'static Location<'static>, size: usize) -> u16 {
        let is =
            |live: &Option<Live>| live.is_some_and(|live| live.tag == tag && core::ptr::eq(live.site, site));
        let found = match self.lives.get(self.last) {
            Some(live) if is(live) => Some(self.last),
            _ => {
                let start = core::ptr::from_ref(site).addr() / align_of::<Location<'_>>() % N.max(1);
                let mut places = (start..start + N).map(|at| at % N.max(1)).filter(|&at| at != 0);
                places.find(|&at| self.lives[at].is_none() || is(&self.lives[at]))
            }
        };
        let Some(at) = found else { return 0 };
        let live = self.lives[at].get_or_insert(Live { tag, site, blocks: 0, bytes: 0, marked: 0 });
        live.blocks += 1;
        live.bytes += size as u64;
        self.last = at;
        at as u16
    }

    /// One block less.
    pub(super) fn remove(&mut self, number: u16, size: usize) {
        if let Some(Some(live)) = self.lives.get_mut(usize::from(number)) {
            live.blocks = live.blocks.wrapping_sub(1);
            live.bytes = live.bytes.wrapping_sub(size as u64);
        }
    }

    pub(super) fn mark(&mut self) {
        self.lives.iter_mut().flatten().for_each(|live| live.marked = live.blocks);
    }

    pub(super) fn leaks(&self, tell: &mut dyn FnMut(&Live)) {
        self.lives.iter().flatten().filter(|live| live.blocks > live.marked).for_each(tell);
    }
}
