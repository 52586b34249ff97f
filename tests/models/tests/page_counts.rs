//! `page_counts`: an owner that gives its page up against another processor that takes a reference for its I/O: never do both
//! succeed, and whoever has the page next does so after all use of it.
//!
//! The page's content is a loom cell: written by the owner, read by who has a reference, written by who reuses it; so a lost Acquire
//! or Release is reported as much as a page in two hands. Bound: two and three processors; at most three preemptions.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::explore;
use sync::page_counts::PageCounts;

struct Page {
    counts: PageCounts,
    content: UnsafeCell<u32>,
}

// SAFETY: the content is accessed by whoever has the page: what the model checks.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn owned() -> Self {
        let page = Self { counts: PageCounts::new(), content: UnsafeCell::new(0) };
        page.counts.begin();
        page
    }

    fn write(&self, value: u32) {
        // SAFETY: loom checks it.
        self.content.with_mut(|content| unsafe { *content = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: loom checks it.
        self.content.with(|content| unsafe { *content })
    }

    /// A use by physical address: what was read, if there was a page to refer to.
    fn use_once(&self) -> Option<u32> {
        if !self.counts.try_reference() {
            return None;
        }
        let seen = self.read();
        let before = self.counts.change(|references, shares| Some((references - 1, shares)));
        assert!(before.is_some_and(|(references, _)| references >= 1));
        Some(seen)
    }

    /// The owner frees it; if that succeeds, the next owner writes to it.
    fn free_and_reuse(&self) -> bool {
        let freed = self.counts.end();
        if freed {
            self.write(2);
        }
        freed
    }
}

#[test]
fn a_page_is_freed_or_referenced() {
    explore(Some(3), || {
        let page = Arc::new(Page::owned());
        let user = {
            let page = page.clone();
            thread::spawn(move || page.use_once())
        };
        let freed = page.free_and_reuse();
        let seen = user.join().unwrap();
        // What was referenced is the owner's page, never the next one's.
        assert!(matches!(seen, None | Some(0)));
        assert!(freed || seen.is_some(), "not freed, though nobody had a reference");
        assert_eq!(page.counts.get(), if freed { (0, 0) } else { (1, 1) });
    });
}

#[test]
fn two_users_and_an_owner() {
    explore(Some(2), || {
        let page = Arc::new(Page::owned());
        let users: Vec<_> = (0..2)
            .map(|_| {
                let page = page.clone();
                thread::spawn(move || page.use_once())
            })
            .collect();
        let freed = page.free_and_reuse();
        let seen: Vec<_> = users.into_iter().map(|user| user.join().unwrap()).collect();
        assert!(seen.iter().all(|seen| matches!(seen, None | Some(0))));
        assert!(freed || seen.iter().any(Option::is_some));
        assert_eq!(page.counts.get(), if freed { (0, 0) } else { (1, 1) });
    });
}

/// A page that was freed and handed out again is the next owner's with what that wrote.
#[test]
fn a_reference_sees_what_the_owner_wrote() {
    explore(Some(3), || {
        let page = Arc::new(Page { counts: PageCounts::new(), content: UnsafeCell::new(0) });
        let user = {
            let page = page.clone();
            thread::spawn(move || page.use_once())
        };
        page.write(7);
        page.counts.begin();
        let seen = user.join().unwrap();
        assert!(matches!(seen, None | Some(7)));
        assert_eq!(page.counts.get(), (1, 1));
    });
}
