//! What a trace shows: who ran where and when, what interrupted it, how the level moved, who made whom ready.
//!
//! Interrupts and DPCs have a row of their own beside each processor's threads: a thread that is switched away from on the way out of an
//! interrupt takes the rest of that way with it, so its span ends with the switch.

use std::collections::HashMap;

use super::decode::{Event, Trace};
use super::last::{name_of, why};

/// A row of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Row {
    /// The threads that a processor runs.
    Processor(usize),
    /// Its interrupts and DPCs, nested.
    Handlers(usize),
    /// A thread, by its place in [`Model::threads`].
    Thread(usize),
}

/// A time during which something went on. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where.
    pub(crate) row: Row,
    /// From.
    pub(crate) start: u64,
    /// To.
    pub(crate) end: u64,
    /// What.
    pub(crate) name: String,
    /// The arrow that ends here, by its place in [`Model::arrows`].
    pub(crate) woken_by: Option<usize>,
}

/// A thread was made ready here; where it ran, its span says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrow {
    /// The processor that made it ready.
    pub(crate) processor: usize,
    /// When.
    pub(crate) time: u64,
    /// The thread, by its place in [`Model::threads`].
    pub(crate) thread: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// How many there are.
    pub(crate) processors: usize,
    /// Their names.
    pub(crate) threads: Vec<String>,
    /// By row and start; those of one row nest.
    pub(crate) spans: Vec<Span>,
    /// Each processor's level, where it changes.
    pub(crate) levels: Vec<Vec<(u64, u8)>>,
    /// From wake to run.
    pub(crate) arrows: Vec<Arrow>,
    /// The first and the last time.
    pub(crate) times: (u64, u64),
}

/// Where a switch leaves an idle thread: nowhere but at its processor.
const LEFT_IDLE: u64 = 2;

impl Model {
    /// Of a trace.
    pub(crate) fn of(trace: &Trace) -> Self {
        let mut builder =
            Builder { trace, model: Self::default(), numbers: HashMap::new(), ready: HashMap::new() };
        builder.names();
        builder.model.processors = trace.processors.len();
        let stamps =
            || trace.processors.iter().flat_map(|processor| &processor.events).map(|event| event.stamp);
        let time = |stamp: Option<u64>| stamp.map_or(0, |stamp| trace.nanoseconds(stamp));
        builder.model.times = (time(stamps().min()), time(stamps().max()));
        let mut states: Vec<State> = trace.processors.iter().map(|_| State::default()).collect();
        // By time over all processors, since a thread is made ready on one and runs on another.
        let mut order: Vec<(u64, usize, usize)> = Vec::new();
        for (number, processor) in trace.processors.iter().enumerate() {
            order.extend(processor.events.iter().enumerate().map(|(at, event)| (event.stamp, number, at)));
        }
        order.sort_unstable();
        builder.model.levels = vec![Vec::new(); trace.processors.len()];
        for (_, number, at) in order {
            builder.event(number, &trace.processors[number].events[at], &mut states[number]);
        }
        let end = builder.model.times.1;
        for (number, state) in states.iter_mut().enumerate() {
            builder.close_handlers(number, state, end);
            builder.close_thread(number, state, end, "");
        }
        builder.model.spans.sort_by(|a, b| (a.row, a.start, b.end).cmp(&(b.row, b.start, a.end)));
        builder.model
    }
}

/// What goes on on a processor.
#[derive(Default)]
struct State {
    /// The thread that runs, since when, and the arrow that led to it.
    running: Option<(usize, u64, Option<usize>)>,
    /// Handlers and DPCs that have begun, outermost first.
    open: Vec<(u64, String)>,
}

struct Builder<'a> {
    trace: &'a Trace,
    model: Model,
    /// From a thread's address to its place.
    numbers: HashMap<u64, usize>,
    /// Arrows that have not ended, by thread.
    ready: HashMap<usize, usize>,
}

impl Builder<'_> {
    /// What the threads are called, as far as their starts are in the rings.
    fn names(&mut self) {
        let mut named = HashMap::new();
        for (processor, events) in self.trace.processors.iter().map(|processor| &processor.events).enumerate()
        {
            for event in events {
                match (self.trace.name(event), event.arguments) {
                    ("thread", [number, address, name]) => {
                        let name = name_of(name);
                        let name = if name.is_empty() { "thread".to_owned() } else { name };
                        named.insert(address, format!("{name} {number}"));
                    }
                    // Idle threads are as old as their processors, and tell of no start.
                    ("switch", [LEFT_IDLE, from, _]) => drop(named.insert(from, format!("idle {processor}"))),
                    _ => {}
                }
            }
        }
        for event in self.trace.processors.iter().flat_map(|processor| &processor.events) {
            let addresses = match self.trace.name(event) {
                "switch" => &event.arguments[1..],
                "ready" | "thread" => &event.arguments[1..2],
                _ => continue,
            };
            for &address in addresses {
                let next = self.model.threads.len();
                if *self.numbers.entry(address).or_insert(next) == next {
                    let unnamed = || format!("thread {:x}", address & 0xFFF_FFFF);
                    self.model.threads.push(named.get(&address).cloned().unwrap_or_else(unnamed));
                }
            }
        }
    }

    fn event(&mut self, number: usize, event: &Event, state: &mut State) {
        let time = self.trace.nanoseconds(event.stamp);
        let [first, second, third] = event.arguments;
        let trace = self.trace;
        let mut level = event.level;
        match trace.name(event) {
            "interrupt" => state.open.push((time, format!("vector {first:#x}"))),
            "dpc_run" => state.open.push((time, format!("DPC {third:x}"))),
            "interrupt_exit" => {
                self.close_handler(number, state, time, "vector");
                level = third as u8;
            }
            "dpc_end" => self.close_handler(number, state, time, "DPC"),
            "lower" => level = first as u8,
            "switch" => {
                self.close_handlers(number, state, time);
                // The first switch of a ring tells who ran up to it.
                if state.running.is_none() {
                    state.running = Some((self.numbers[&second], self.model.times.0, None));
                }
                self.close_thread(number, state, time, why(first));
                let next = self.numbers[&third];
                state.running = Some((next, time, self.ready.remove(&next)));
            }
            "ready" => {
                let thread = self.numbers[&second];
                self.ready.insert(thread, self.model.arrows.len());
                self.model.arrows.push(Arrow { processor: number, time, thread });
            }
            _ => {}
        }
        let levels = &mut self.model.levels[number];
        if levels.last().is_none_or(|&(_, last)| last != level) {
            levels.push((time, level));
        }
    }

    /// The innermost handler that is open ends, if it is such a one; its beginning may have been overwritten.
    fn close_handler(&mut self, number: usize, state: &mut State, time: u64, what: &str) {
        if state.open.last().is_some_and(|(_, name)| name.starts_with(what))
            && let Some((start, name)) = state.open.pop()
        {
            self.model.spans.push(Span {
                row: Row::Handlers(number),
                start,
                end: time,
                name,
                woken_by: None,
            });
        }
    }

    fn close_handlers(&mut self, number: usize, state: &mut State, time: u64) {
        while let Some((start, name)) = state.open.pop() {
            self.model.spans.push(Span {
                row: Row::Handlers(number),
                start,
                end: time,
                name,
                woken_by: None,
            });
        }
    }

    fn close_thread(&mut self, number: usize, state: &mut State, end: u64, why: &str) {
        let Some((thread, start, woken_by)) = state.running.take() else { return };
        let name = self.model.threads[thread].clone();
        self.model.spans.push(Span { row: Row::Processor(number), start, end, name, woken_by });
        let name = format!("on cpu {number}{}{why}", if why.is_empty() { "" } else { ", then " });
        self.model.spans.push(Span { row: Row::Thread(thread), start, end, name, woken_by });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::decode::tests::trace;
    use super::*;

    /// Processor 0 is interrupted, makes B ready from a DPC, and goes on; processor 1 switches from A to B.
    pub(crate) fn example() -> Model {
        let b_name = u64::from_le_bytes(*b"bee\0\0\0\0\0");
        Model::of(&trace(&[
            &[
                (100, 1, 13, [0xD1, 0x1000, 0]),
                (110, 2, 13, [0, 0, 0]),
                (120, 8, 2, [0, 0xD0, 0xD00]),
                (130, 11, 2, [1, 0xB0, 0]),
                (140, 9, 2, [0, 0xD0, 0]),
                (150, 3, 2, [0xD1, 0x1000, 0]),
            ],
            &[
                (90, 19, 2, [7, 0xB0, b_name]),
                (160, 10, 2, [5, 0xA0, 0xB0]),
                (180, 6, 2, [2 << 8, 0, 0]),
                (200, 10, 2, [5, 0xB0, 0xA0]),
            ],
        ]))
    }

    #[test]
    fn threads_without_a_name_and_idle_ones_are_told() {
        let model = Model::of(&trace(&[
            &[(90, 19, 0, [7, 0xB0, 0])],
            // The idle thread is left; then one that was there before the rings began.
            &[(100, 10, 2, [LEFT_IDLE, 0xA0, 0xB0]), (110, 10, 2, [5, 0xB0, 0xC0])],
        ]));
        assert_eq!(model.threads, ["thread 7", "idle 1", "thread c0"]);
    }

    #[test]
    fn spans_levels_and_arrows_come_out() {
        let model = example();
        assert_eq!(model.threads, ["bee 7", "thread a0"]);
        assert_eq!((model.processors, model.times), (2, (90, 200)));
        let of = |row| model.spans.iter().filter(|span| span.row == row).collect::<Vec<_>>();
        let handlers = of(Row::Handlers(0));
        assert_eq!(handlers.len(), 2);
        assert_eq!(
            (handlers[0].name.as_str(), handlers[0].start, handlers[0].end),
            ("vector 0xd1", 100, 150)
        );
        assert_eq!((handlers[1].name.as_str(), handlers[1].start, handlers[1].end), ("DPC d00", 120, 140));
        let runs = of(Row::Processor(1));
        assert_eq!(
            runs.iter().map(|run| (run.name.as_str(), run.start, run.end, run.woken_by)).collect::<Vec<_>>(),
            [("thread a0", 90, 160, None), ("bee 7", 160, 200, Some(0)), ("thread a0", 200, 200, None)]
        );
        assert_eq!(of(Row::Thread(0))[0].name, "on cpu 1, then waits");
        assert_eq!(model.arrows, [Arrow { processor: 0, time: 130, thread: 0 }]);
        assert_eq!(model.levels[0], [(100, 13), (120, 2), (150, 0)]);
        assert_eq!(model.levels[1], [(90, 2), (180, 0), (200, 2)]);
    }

    #[test]
    fn a_switch_on_the_way_out_ends_the_interrupts_span() {
        let model = Model::of(&trace(&[&[
            (10, 1, 2, [0x2F, 0, 0]),
            (20, 10, 2, [1, 0xA0, 0xB0]),
            (30, 3, 2, [0x2F, 0, 0]),
        ]]));
        let handlers: Vec<_> = model.spans.iter().filter(|span| span.row == Row::Handlers(0)).collect();
        assert_eq!(handlers.len(), 1);
        assert_eq!((handlers[0].start, handlers[0].end), (10, 20));
    }
}
