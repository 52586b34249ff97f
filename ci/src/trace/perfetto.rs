//! The model in Perfetto's own format: protocol buffers, of which this needs a few messages.
//!
//! A track for each processor, with its handlers and its level as a counter below it, and one for each thread; flows lead from where a
//! thread was made ready to where it runs.
//!
//! Sources: Perfetto, "Writing TrackEvent Protos Synthetically"; `track_event.proto`, `track_descriptor.proto`.

use prost::Message;

use super::model::{Model, Row};

#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    trusted_packet_sequence_id: Option<u32>,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(uint32, optional, tag = "13")]
    sequence_flags: Option<u32>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {
    #[prost(string, optional, tag = "6")]
    unit_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(enumeration = "Type", optional, tag = "9")]
    r#type: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    track_uuid: Option<u64>,
    #[prost(string, repeated, tag = "22")]
    categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
    #[prost(fixed64, repeated, packed = "false", tag = "47")]
    flow_ids: Vec<u64>,
    #[prost(fixed64, repeated, packed = "false", tag = "48")]
    terminating_flow_ids: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Type {
    Unspecified = 0,
    SliceBegin = 1,
    SliceEnd = 2,
    Instant = 3,
    Counter = 4,
}

const SEQUENCE: u32 = 1;
/// The sequence begins anew: nothing of it was lost.
const INCREMENTAL_STATE_CLEARED: u32 = 1;
const PROCESSORS: u64 = 1;
const THREADS: u64 = 2;

fn uuid(row: Row) -> u64 {
    match row {
        Row::Processor(number) => 0x1_0000 + number as u64,
        Row::Handlers(number) => 0x2_0000 + number as u64,
        Row::Thread(number) => 0x1000_0000 + number as u64,
    }
}

fn level_uuid(processor: usize) -> u64 {
    0x3_0000 + processor as u64
}

/// The bytes of a trace file.
pub(crate) fn encode(model: &Model) -> Vec<u8> {
    let mut packet: Vec<Packet> = tracks(model).map(described).collect();
    packet[0].sequence_flags = Some(INCREMENTAL_STATE_CLEARED);
    let mut events = slices(model);
    for arrow in model.arrows.iter().enumerate() {
        events.push(wake(model, arrow));
    }
    for (number, levels) in model.levels.iter().enumerate() {
        let counter = |&(time, level): &(u64, u8)| {
            let counter_value = Some(i64::from(level));
            (
                time,
                event(Type::Counter, level_uuid(number), TrackEvent { counter_value, ..Default::default() }),
            )
        };
        events.extend(levels.iter().map(counter));
    }
    // Stable: slices that end come before those that begin at the same time, as they were made.
    events.sort_by_key(|(time, _)| *time);
    packet.extend(events.into_iter().map(|(timestamp, track_event)| Packet {
        timestamp: Some(timestamp),
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_event: Some(track_event),
        ..Default::default()
    }));
    Trace { packet }.encode_to_vec()
}

fn tracks(model: &Model) -> impl Iterator<Item = TrackDescriptor> {
    let named = |uuid, name: String, parent_uuid| TrackDescriptor {
        uuid: Some(uuid),
        name: Some(name),
        parent_uuid,
        counter: None,
    };
    let processors = (0..model.processors).flat_map(move |number| {
        let own = uuid(Row::Processor(number));
        let mut level = named(level_uuid(number), format!("cpu {number} irql"), Some(own));
        level.counter = Some(CounterDescriptor { unit_name: Some("irql".into()) });
        let handlers = named(uuid(Row::Handlers(number)), format!("cpu {number} handlers"), Some(own));
        [named(own, format!("cpu {number}"), Some(PROCESSORS)), handlers, level]
    });
    let threads = model.threads.iter().enumerate();
    let threads =
        threads.map(move |(number, name)| named(uuid(Row::Thread(number)), name.clone(), Some(THREADS)));
    [named(PROCESSORS, "processors".into(), None), named(THREADS, "threads".into(), None)]
        .into_iter()
        .chain(processors)
        .chain(threads)
}

fn described(track: TrackDescriptor) -> Packet {
    Packet { trusted_packet_sequence_id: Some(SEQUENCE), track_descriptor: Some(track), ..Default::default() }
}

fn event(kind: Type, track: u64, rest: TrackEvent) -> TrackEvent {
    TrackEvent { r#type: Some(kind as i32), track_uuid: Some(track), ..rest }
}

/// Begins and ends, in an order in which those of a row nest.
fn slices(model: &Model) -> Vec<(u64, TrackEvent)> {
    let mut events = Vec::new();
    let mut open: Vec<(u64, u64)> = Vec::new();
    for span in &model.spans {
        let track = uuid(span.row);
        close(&mut events, &mut open, |&(other, end)| other != track || end <= span.start);
        let flow = span.woken_by.filter(|_| matches!(span.row, Row::Thread(_)));
        let begin = TrackEvent {
            name: Some(span.name.clone()),
            terminating_flow_ids: flow.map(flow_id).into_iter().collect(),
            ..Default::default()
        };
        events.push((span.start, event(Type::SliceBegin, track, begin)));
        open.push((track, span.end));
    }
    close(&mut events, &mut open, |_| true);
    events
}

fn close(
    events: &mut Vec<(u64, TrackEvent)>,
    open: &mut Vec<(u64, u64)>,
    over: impl Fn(&(u64, u64)) -> bool,
) {
    while let Some(&(track, end)) = open.last().filter(|last| over(last)) {
        events.push((end, event(Type::SliceEnd, track, TrackEvent::default())));
        open.pop();
    }
}

/// A thread is made ready: an instant from which a flow leads to where it runs.
fn wake(model: &Model, (number, arrow): (usize, &super::model::Arrow)) -> (u64, TrackEvent) {
    let instant = TrackEvent {
        name: Some(format!("ready {}", model.threads[arrow.thread])),
        categories: vec!["wake".into()],
        flow_ids: vec![flow_id(number)],
        ..Default::default()
    };
    (arrow.time, event(Type::Instant, uuid(Row::Processor(arrow.processor)), instant))
}

/// Not zero.
fn flow_id(arrow: usize) -> u64 {
    arrow as u64 + 1
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::model::tests::example;
    use super::*;

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let model = example();
        let trace = Trace::decode(encode(&model).as_slice()).expect("a trace");
        let mut tracks = HashMap::new();
        let (mut last, mut open) = (0, HashMap::<u64, i32>::new());
        let (mut flows, mut ended, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        for packet in &trace.packet {
            assert_eq!(packet.trusted_packet_sequence_id, Some(SEQUENCE));
            if let Some(track) = &packet.track_descriptor {
                tracks.insert(track.uuid.expect("an id"), track.name.clone().expect("a name"));
                assert!(track.parent_uuid.is_none_or(|parent| tracks.contains_key(&parent)));
            }
            let Some(event) = &packet.track_event else { continue };
            let time = packet.timestamp.expect("a time");
            assert!(time >= last, "in the order of time");
            last = time;
            let track = event.track_uuid.expect("a track");
            assert!(tracks.contains_key(&track));
            let depth = open.entry(track).or_default();
            match event.r#type() {
                Type::SliceBegin => *depth += 1,
                Type::SliceEnd => *depth -= 1,
                Type::Counter => levels.push((tracks[&track].clone(), time, event.counter_value)),
                Type::Instant => {}
                Type::Unspecified => panic!("an event of no type"),
            }
            assert!(*depth >= 0, "an end without a beginning");
            flows.extend(&event.flow_ids);
            ended.extend(event.terminating_flow_ids.iter().map(|&flow| (flow, tracks[&track].clone())));
        }
        assert!(open.values().all(|&depth| depth == 0), "all slices end");
        for name in ["cpu 0", "cpu 1", "cpu 0 handlers", "cpu 1 irql", "bee 7", "thread a0"] {
            assert!(tracks.values().any(|track| track == name), "{name}");
        }
        assert_eq!((flows, ended), (vec![1], vec![(1, "bee 7".to_owned())]));
        assert!(levels.contains(&("cpu 0 irql".to_owned(), 120, Some(2))), "{levels:?}");
    }
}
