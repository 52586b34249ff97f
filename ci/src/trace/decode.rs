//! From the guest's memory to events. The layout is kernel/src/kd/trace.rs's and arch/src/trace.rs's; what the kinds are called, and
//! their arguments, the guest tells itself.

use anyhow::{Context, Result, ensure};

use crate::memory::{Memory, PAGE};

const MAGIC: &[u8] = b"KIRQL TRACE 1\r\n\0";
const RECORD: usize = 32;
const MOST_PROCESSORS: usize = 64;
const MOST_RECORDS: u64 = 1 << 20;
const RINGS_AT: usize = 0x50;
const THREADS_AT: usize = 0x250;
const KINDS_AT: usize = 0x300;
const RING_HEAD: u64 = 64;

/// What a kind of event is called, and its arguments; `-` for those that mean nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its name.
    pub(crate) name: String,
    /// Its arguments' names.
    pub(crate) arguments: [String; 3],
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its number on its processor.
    pub(crate) index: u64,
    /// The time stamp counter.
    pub(crate) stamp: u64,
    /// Which of the kinds.
    pub(crate) kind: u8,
    /// CR8.
    pub(crate) level: u8,
    /// Its arguments.
    pub(crate) arguments: [u64; 3],
}

/// What one processor recorded, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processor {
    /// Events since the start; the ring has the last of them.
    pub(crate) total: u64,
    /// Those that are left.
    pub(crate) events: Vec<Event>,
    /// Where its records are, as physical address, and their number minus one.
    records: (u64, u64),
}

/// Where the kernel maps all of memory (kernel/src/mm/layout.rs).
const ALL_MEMORY: u64 = 0xFFFF_8000_0000_0000;

impl Processor {
    /// The address of the word in which event `number` has its index.
    pub(crate) fn place_of(&self, number: u64) -> u64 {
        let (first, mask) = self.records;
        ALL_MEMORY + first + (number & mask) * RECORD as u64 + 8
    }
}

/// Which bytes of text were hit by interrupts.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    /// The address of the first byte.
    pub(crate) start: u64,
    /// One for each byte.
    pub(crate) hit: Vec<bool>,
}

/// Where the kernel's threads are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Threads {
    /// Of the pointer to the first one.
    pub(crate) first: u64,
    /// In a thread: of the pointer to the next one.
    pub(crate) next_at: u64,
    /// Of the stack pointer that a switch saved.
    pub(crate) stack_at: u64,
    /// Of the processor that is on its stack, plus one: 4 bytes.
    pub(crate) user_at: u64,
    /// Of its number.
    pub(crate) number_at: u64,
    /// Of its name: 15 bytes, and their count.
    pub(crate) name_at: u64,
}

/// A guest's trace.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// By their number.
    pub(crate) kinds: Vec<Option<Kind>>,
    /// By their number.
    pub(crate) processors: Vec<Processor>,
    /// TSC ticks per second.
    pub(crate) tsc_hz: u64,
    /// The time stamp at which time began.
    pub(crate) tsc_start: u64,
    /// The kernel's page tables.
    pub(crate) root: u64,
    /// The kernel's threads.
    pub(crate) threads: Threads,
    /// If the guest was asked for it.
    pub(crate) coverage: Option<Coverage>,
    /// Of all rings, to the byte.
    pub(crate) digest: u64,
    /// The memory it was read from: for texts that events name.
    pub(crate) memory: Memory,
}

/// The trace in `memory`; nothing if there is none, as in a guest that has not come so far.
pub(crate) fn read(memory: &Memory) -> Result<Option<Trace>> {
    let Some(place) = memory.find(MAGIC)? else { return Ok(None) };
    let page = memory.bytes(place, PAGE)?;
    let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap_or_default());
    let (record, count) = (word(0x10) as u32, (word(0x10) >> 32) as usize);
    ensure!(record as usize == RECORD && count <= MOST_PROCESSORS, "a trace of an unknown form");
    let mut digest = Digest::new();
    let mut processors = Vec::new();
    for number in 0..count {
        processors.push(ring(memory, word(RINGS_AT + number * 8), &mut digest)?);
    }
    let coverage = match word(0x30) {
        0 => None,
        map => Some(Coverage {
            start: word(0x38),
            hit: memory.bytes(map, word(0x40))?.into_iter().map(|byte| byte != 0).collect(),
        }),
    };
    let offset =
        |index: usize| word(THREADS_AT + 8 + index / 2 * 8) >> (index % 2 * 32) & u64::from(u32::MAX);
    let threads = Threads {
        first: word(THREADS_AT),
        next_at: offset(0),
        stack_at: offset(1),
        user_at: offset(2),
        number_at: offset(3),
        name_at: offset(4),
    };
    let text = page[KINDS_AT..].split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Some(Trace {
        kinds: kinds(std::str::from_utf8(text).context("the description of the trace")?)?,
        processors,
        tsc_hz: word(0x18),
        tsc_start: word(0x20),
        root: word(0x28),
        threads,
        coverage,
        digest: digest.0,
        memory: memory.clone(),
    }))
}

fn kinds(description: &str) -> Result<Vec<Option<Kind>>> {
    let mut kinds = Vec::new();
    for line in description.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let &[number, name, a, b, c] = words.as_slice() else {
            anyhow::bail!("the trace describes a kind as {line:?}");
        };
        let number: u8 = number.parse().with_context(|| format!("the kind's number in {line:?}"))?;
        let number = usize::from(number);
        kinds.resize(kinds.len().max(number + 1), None);
        kinds[number] = Some(Kind { name: name.into(), arguments: [a, b, c].map(str::to_owned) });
    }
    Ok(kinds)
}

fn ring(memory: &Memory, at: u64, digest: &mut Digest) -> Result<Processor> {
    let head = memory.bytes(at, RING_HEAD)?;
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let (total, mask) = (word(&head, 0), word(&head, 8));
    ensure!(mask < MOST_RECORDS && (mask + 1).is_power_of_two(), "a ring of {mask:#x} records");
    let records = memory.bytes(at + RING_HEAD, (mask + 1) * RECORD as u64)?;
    digest.add(&total.to_le_bytes());
    digest.add(&records);
    let mut events = Vec::new();
    for index in total.saturating_sub(mask + 1)..total {
        let bytes = &records[(index & mask) as usize * RECORD..][..RECORD];
        let head = word(bytes, 8);
        // Else it was being written when the machine stopped.
        if head as u32 == index as u32 {
            events.push(Event {
                index,
                stamp: word(bytes, 0),
                kind: (head >> 32) as u8,
                level: (head >> 40) as u8,
                arguments: [head >> 48, word(bytes, 16), word(bytes, 24)],
            });
        }
    }
    Ok(Processor { total, events, records: (at + RING_HEAD, mask) })
}

/// FNV-1a over words, quick enough for megabytes: it tells runs apart, and keeps nobody from forging one.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.0 = (self.0 ^ u64::from_le_bytes(whole)).wrapping_mul(0x0100_0000_01B3);
            self.0 ^= self.0 >> 29;
        }
    }
}

impl Trace {
    /// The kind of an event, if it is one that the guest has described.
    pub(crate) fn kind(&self, event: &Event) -> Option<&Kind> {
        self.kinds.get(usize::from(event.kind))?.as_ref()
    }

    /// What the kind of an event is called.
    pub(crate) fn name(&self, event: &Event) -> &str {
        self.kind(event).map_or("?", |kind| kind.name.as_str())
    }

    /// A time stamp in nanoseconds since time began.
    pub(crate) fn nanoseconds(&self, stamp: u64) -> u64 {
        let ticks = u128::from(stamp.saturating_sub(self.tsc_start));
        (ticks * 1_000_000_000 / u128::from(self.tsc_hz.max(1))) as u64
    }

    /// A text of the image.
    pub(crate) fn text(&self, address: u64, length: u64) -> Option<String> {
        let bytes = self.memory.mapped(self.root, address, length.min(256)).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        (!text.chars().any(char::is_control)).then_some(text)
    }

    /// File and line of a `core::panic::Location`: pointer and length of the file's name, then line and column.
    pub(crate) fn place(&self, address: u64) -> Option<String> {
        let bytes = self.memory.mapped(self.root, address, 24).ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let (file, line) = (self.text(word(0), word(8))?, word(16) as u32);
        Some(format!("{}:{line}", file.trim_end_matches('\0')))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::memory::tests::memory;

    /// The kinds as the kernel describes them, as far as tests need them.
    pub(crate) const DESCRIPTION: &str = "1 interrupt vector rip level\n2 eoi - - -\n3 interrupt_exit vector rip level\n\
        5 raise levels place -\n6 lower levels - -\n8 dpc_run threaded entry routine\n9 dpc_end threaded entry -\n\
        10 switch why from to\n11 ready boost thread -\n19 thread number thread name\n";

    /// Stamp, kind, level, arguments.
    type Given = (u64, u8, u8, [u64; 3]);

    /// A trace of these events, in rings of eight records.
    pub(crate) fn trace(processors: &[&[Given]]) -> Trace {
        let mut contents = Vec::new();
        let mut page = vec![0; PAGE as usize];
        page[..16].copy_from_slice(MAGIC);
        let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0x10, 32 | (processors.len() as u64) << 32);
        put(0x18, 1_000_000_000);
        for (number, events) in processors.iter().enumerate() {
            let at = 0x20_0000 + number as u64 * PAGE;
            put(RINGS_AT + number * 8, at);
            contents.push((at, [(events.len() as u64).to_le_bytes(), 7_u64.to_le_bytes()].concat()));
            for (index, (stamp, kind, level, [a, b, c])) in events.iter().enumerate() {
                let head = index as u64 | u64::from(*kind) << 32 | u64::from(*level) << 40 | a << 48;
                let bytes = [*stamp, head, *b, *c].map(u64::to_le_bytes).concat();
                contents.push((at + RING_HEAD + (index as u64 & 7) * 32, bytes));
            }
        }
        page[KINDS_AT..KINDS_AT + DESCRIPTION.len()].copy_from_slice(DESCRIPTION.as_bytes());
        contents.push((0x18_0000, page));
        read(&memory(4 << 20, &contents)).expect("well-formed").expect("there")
    }

    #[test]
    fn the_last_events_of_a_ring_come_out_in_order() {
        let events: Vec<_> = (0..11).map(|n| (100 + n, 2, 3, [n, n + 1, n + 2])).collect();
        let trace = trace(&[&events, &[]]);
        let first = &trace.processors[0];
        assert_eq!((first.total, first.events.len()), (11, 8));
        assert_eq!(first.events[0].index, 3);
        let last = Event { index: 10, stamp: 110, kind: 2, level: 3, arguments: [10, 11, 12] };
        assert_eq!(first.events[7], last);
        assert_eq!(trace.name(&last), "eoi");
        assert!(trace.processors[1].events.is_empty());
    }

    #[test]
    fn digests_tell_traces_apart() {
        let one = |third| trace(&[&[(1, 1, 1, [1, 1, third])]]).digest;
        assert_eq!(one(1), one(1));
        assert_ne!(one(1), one(2));
    }

    #[test]
    fn no_trace_is_no_error_and_nonsense_is_one() {
        assert!(read(&memory(2 << 20, &[])).expect("readable").is_none());
        let mut page = MAGIC.to_vec();
        page.extend([0xFF; 64]);
        assert!(read(&memory(4 << 20, &[(0x10_0000, page)])).is_err());
        assert!(kinds("1 too few\n").is_err());
    }
}
