//! A ring of text lines between any code at any level, NMI included, and one slow writer at a time.
//!
//! A producer reserves a slot, copies its line, publishes it and offers to drain. Whoever wins the `draining` flag writes out
//! what is published, in order, through the sink it was given. Everybody else goes on: nobody waits for anybody, so an
//! NMI that hits a producer or the drainer of its own processor publishes and returns.
//!
//! Slots carry a sequence: 2n is "free for lap n", 2n + 1 "holds the line of lap n". Position p is slot p mod SLOTS in lap
//! p / SLOTS.
//!
//! Called by:  the kernel's log. IRQL: any.
//! Invariants: I1 a slot's line is written by the one producer whose compare-exchange moved `head` past it, and read only
//!                between its publication and its release by the drainer.
//!             I2 `tail` moves only under `draining`, one published line at a time.
//!             I3 a published line at `tail` => somebody is draining, or is about to try: its producer, the producer of the
//!                line before it, or the drainer that is looking again. So none is left behind.
//! Ordering:   publication: sequence 2n + 1 (Release) → drainer (Acquire). Reuse: 2n + 2 (Release) → producer (Acquire).
//!             `tail` follows the flag (Release / Acquire). I3 is a store-buffering handshake, and so needs SeqCst fences:
//!
//! ```text
//! producer                          drainer
//! publish                           draining := 0
//! fence                             fence
//! draining 0 → 1? else leave        published at tail? then try again
//! ```
//!
//! Tests:      tests/models/tests/log_ring.rs (no line lost, none twice); tests/props/tests/injection.rs; the unit tests below.

use crossbeam_utils::CachePadded;

use crate::prim::{AtomicU32, AtomicUsize, Ordering, UnsafeCell, const_unless_loom, fence};

/// Every slot holds a line that was not written out yet. The caller decides what becomes of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A ring of `SLOTS` lines (a power of two) of at most `LINE` bytes.
pub struct LogRing<const SLOTS: usize, const LINE: usize> {
    /// The next position to reserve. Moved by producers.
    head: CachePadded<AtomicUsize>,
    /// The next position to write out. Moved by the drainer (I2).
    tail: CachePadded<AtomicUsize>,
    /// 1 while somebody drains.
    draining: AtomicU32,
    slots: [Slot<LINE>; SLOTS],
}

struct Slot<const LINE: usize> {
    sequence: AtomicUsize,
    line: UnsafeCell<Line<LINE>>,
}

#[derive(Clone, Copy)]
struct Line<const LINE: usize> {
    length: usize,
    bytes: [u8; LINE],
}

// SAFETY: a line is reached under I1 by one side at a time; everything else is atomic.
unsafe impl<const SLOTS: usize, const LINE: usize> Sync for LogRing<SLOTS, LINE> {}

impl<const LINE: usize> Slot<LINE> {
    const_unless_loom! {
        const fn new() -> Self {
            Self { sequence: AtomicUsize::new(0), line: UnsafeCell::new(Line { length: 0, bytes: [0; LINE] }) }
        }
    }
}

impl<const SLOTS: usize, const LINE: usize> LogRing<SLOTS, LINE> {
    const_unless_loom! {
        /// An empty ring.
        pub const fn new() -> Self {
            const { assert!(SLOTS.is_power_of_two(), "positions are split by masking") };
            Self {
                head: CachePadded::new(AtomicUsize::new(0)),
                tail: CachePadded::new(AtomicUsize::new(0)),
                draining: AtomicU32::new(0),
                #[cfg(not(loom))]
                slots: [const { Slot::new() }; SLOTS],
                #[cfg(loom)]
                slots: core::array::from_fn(|_| Slot::new()),
            }
        }
    }

    /// Publishes `line`, cut to `LINE` bytes. Follow it with [`drain`](Self::drain), or it stays until the next one does.
    pub fn push(&self, line: &[u8]) -> Result<(), Full> {
        let (slot, lap) = self.reserve()?;
        let length = line.len().min(LINE);
        slot.line.with_mut(|stored| {
            // SAFETY: I1: `reserve` gave the slot to us alone, and saw the drainer's release of it.
            let stored = unsafe { &mut *stored };
            stored.bytes[..length].copy_from_slice(&line[..length]);
            stored.length = length;
        });
        slot.sequence.store(2 * lap + 1, Ordering::Release);
        Ok(())
    }

    /// The next free slot, now ours, and its lap.
    fn reserve(&self) -> Result<(&Slot<LINE>, usize), Full> {
        let mut position = self.head.load(Ordering::Relaxed);
        loop {
            let (slot, lap) = self.at(position);
            let sequence = slot.sequence.load(Ordering::Acquire);
            if sequence < 2 * lap {
                return Err(Full);
            }
            // More than 2 * lap: another producer was here since we read `head`.
            let next = if sequence == 2 * lap {
                self.head.compare_exchange(position, position + 1, Ordering::Relaxed, Ordering::Relaxed)
            } else {
                Err(self.head.load(Ordering::Relaxed))
            };
            match next {
                Ok(_) => return Ok((slot, lap)),
                Err(now) => position = now,
            }
        }
    }

    /// Writes out what is published, in order, unless somebody else is at it, who then will.
    ///
    /// `sink` gets one line at a time. While it runs, others' lines wait for this call, so a thread raises to DISPATCH first.
    pub fn drain(&self, mut sink: impl FnMut(&[u8])) {
        loop {
            // Between our publication and our look at the flag: see the handshake above.
            fence(Ordering::SeqCst);
            if self.draining.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
                return;
            }
            let next = self.write_out(&mut sink);
            self.draining.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            if !self.is_published(next) {
                return;
            }
        }
    }

    /// Writes out from `tail` up to the first line that isn't published yet; returns the position of that one.
    fn write_out(&self, sink: &mut impl FnMut(&[u8])) -> usize {
        let mut position = self.tail.load(Ordering::Relaxed);
        while self.is_published(position) {
            self.write_one(position, sink);
            position += 1;
            self.tail.store(position, Ordering::Relaxed);
        }
        position
    }

    /// Hands a published line to the sink and its slot to the next lap's producer.
    fn write_one(&self, position: usize, sink: &mut impl FnMut(&[u8])) {
        let (slot, lap) = self.at(position);
        slot.line.with(|line| {
            // SAFETY: I1: published, as seen with Acquire, and not yet released: no producer writes it.
            let line = unsafe { &*line };
            sink(&line.bytes[..line.length]);
        });
        slot.sequence.store(2 * (lap + 1), Ordering::Release);
    }

    /// For the bugcheck: takes draining over, whoever was at it, and writes out every published line, skipping slots whose
    /// producer was stopped half-way. The line that a stopped drainer was writing comes again. From then on
    /// [`drain`](Self::drain) does nothing, and this can be called again for what was pushed since.
    ///
    /// # Safety
    /// No other processor is inside a function of this ring, or ever will be: they are frozen.
    pub unsafe fn take_over(&self, mut sink: impl FnMut(&[u8])) {
        self.draining.store(1, Ordering::Relaxed);
        let head = self.head.load(Ordering::Relaxed);
        for position in self.tail.load(Ordering::Relaxed)..head {
            if self.is_published(position) {
                self.write_one(position, &mut sink);
            }
        }
        self.tail.store(head, Ordering::Relaxed);
    }

    fn is_published(&self, position: usize) -> bool {
        let (slot, lap) = self.at(position);
        slot.sequence.load(Ordering::Acquire) == 2 * lap + 1
    }

    fn at(&self, position: usize) -> (&Slot<LINE>, usize) {
        (&self.slots[position % SLOTS], position / SLOTS)
    }
}

impl<const SLOTS: usize, const LINE: usize> Default for LogRing<SLOTS, LINE> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Ring = LogRing<4, 8>;

    fn drained(ring: &Ring) -> Vec<String> {
        let mut lines = Vec::new();
        ring.drain(|line| lines.push(String::from_utf8(line.to_vec()).unwrap()));
        lines
    }

    #[test]
    fn lines_come_out_in_order_over_many_laps() {
        let ring = Ring::new();
        for lap in 0..5 {
            for i in 0..3 {
                ring.push(format!("{lap}.{i}").as_bytes()).unwrap();
            }
            assert_eq!(drained(&ring), [0, 1, 2].map(|i| format!("{lap}.{i}")));
        }
    }

    #[test]
    fn a_full_ring_refuses_and_recovers() {
        let ring = Ring::new();
        for i in 0..4 {
            ring.push(&[b'0' + i]).unwrap();
        }
        assert_eq!(ring.push(b"late"), Err(Full));
        assert_eq!(drained(&ring), ["0", "1", "2", "3"]);
        ring.push(b"again").unwrap();
        assert_eq!(drained(&ring), ["again"]);
    }

    #[test]
    fn a_long_line_is_cut() {
        let ring = Ring::new();
        ring.push(b"0123456789").unwrap();
        assert_eq!(drained(&ring), ["01234567"]);
    }

    #[test]
    fn a_line_pushed_by_the_sink_is_written_by_the_same_drain() {
        let ring = Ring::new();
        ring.push(b"first").unwrap();
        let mut lines = Vec::new();
        ring.drain(|line| {
            lines.push(line.to_vec());
            if lines.len() == 1 {
                ring.push(b"nested").unwrap();
                ring.drain(|_| panic!("two drainers"));
            }
        });
        assert_eq!(lines, [b"first".to_vec(), b"nested".to_vec()]);
    }

    #[test]
    fn taking_over_skips_unpublished_lines_and_goes_on() {
        let ring = Ring::new();
        ring.push(b"a").unwrap();
        let _stopped_half_way = ring.reserve().unwrap();
        ring.push(b"c").unwrap();
        assert_eq!(drained(&ring), ["a"]);
        let mut lines = Vec::new();
        // SAFETY: no other thread knows this ring.
        unsafe { ring.take_over(|line| lines.push(line.to_vec())) };
        ring.push(b"d").unwrap();
        assert_eq!(drained(&ring), [""; 0]);
        // SAFETY: as above.
        unsafe { ring.take_over(|line| lines.push(line.to_vec())) };
        assert_eq!(lines, [b"c", b"d"]);
    }

    #[test]
    fn producers_on_threads_lose_nothing() {
        const LINES: usize = if cfg!(miri) { 10 } else { 2000 };
        let ring = Ring::new();
        let written = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for producer in 0..3u8 {
                let (ring, written) = (&ring, &written);
                s.spawn(move || {
                    for i in 0..LINES {
                        let line = format!("{producer}{i}");
                        while ring.push(line.as_bytes()) == Err(Full) {
                            std::thread::yield_now();
                        }
                        ring.drain(|line| written.lock().unwrap().push(line.to_vec()));
                    }
                });
            }
        });
        let written = written.into_inner().unwrap();
        for producer in 0..3u8 {
            let of_this: Vec<_> = written.iter().filter(|line| line[0] == b'0' + producer).collect();
            let expected: Vec<_> = (0..LINES).map(|i| format!("{producer}{i}").into_bytes()).collect();
            assert!(of_this.into_iter().eq(expected.iter()), "producer {producer}: each line once, in order");
        }
    }
}
