//! Which vector is whose: sources of interrupts, their vectors and their targets.
//!
//! One vector serves one source, on one processor at a time of the affinity asked for: the one with the fewest vectors so far.
//! Vectors are the same on all processors, so there are 16 for each device level in all, and a source may move to another
//! processor at any time: its vector stays. Who shares a source agrees on where it goes: the affinity is what all have in common.
//! An I/O APIC and a message name their target by an 8-bit APIC id: a processor with a higher one is passed over, and refused if
//! the affinity has no other.
//!
//! Locks:      `ROUTING`, at DISPATCH; an I/O APIC's inside it.
//! Invariants: I1 `users` counts the objects that are connected or on their way in or out; the vector is taken while it isn't 0.
//!             I2 `live` of them are connected, and not on their way out. A line is unmasked only while it isn't 0.
//!             I3 a vector is given back when its line is masked and not in flight: no EOI will look for it.
//! A late one: an interrupt that was on its way to a vector when that was given back finds the next owner's chain, or an empty
//!             one, and is unclaimed there.

use arch::msi::Message;
use arch::redirection::{OutOfReach, Trigger, destination};
use sync::SpinLock;
use sync::irql::{Below, DeviceLevel, Dispatch, Irql, Synch};

use super::allocator::VectorAllocator;
use super::wiring::Line;
use super::{chain, lines};
use crate::ke::{ipi, prcb};

/// What raises the interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line into an I/O APIC.
    Line(Line),
    /// Messages (MSI, MSI-X): the connection gets a vector of its own, and [`Route::message`] is what the device is told.
    Message,
    /// The messages of an earlier connection, by its vector.
    SameMessage(u8),
}

/// Whether others may be connected to the same source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// None.
    Exclusive,
    /// Others that say the same.
    Shared,
}

/// What is asked of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where it comes from.
    pub source: Source,
    /// The IRQL that it is delivered at.
    pub level: DeviceLevel,
    /// With whom.
    pub share: Share,
    /// The processors that may take it: bit n for processor n.
    pub affinity: u64,
}

/// What a connection got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The vector.
    pub vector: u8,
    /// The processor that takes it.
    pub processor: u32,
    /// Its APIC id.
    pub apic_id: u32,
}

impl Route {
    /// What a device writes to raise it.
    pub fn message(&self) -> Result<Message, OutOfReach> {
        Message::new(self.apic_id, self.vector)
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The object is connected already.
    Connected,
    /// The object's lock is held at a lower level than the interrupt is delivered at.
    AboveSynchronizeIrql,
    /// No I/O APIC has the line.
    NoSuchLine,
    /// No connection has that vector for messages.
    NoSuchMessage,
    /// All vectors of the level are taken.
    NoVector,
    /// The vector's chain is full: [`chain::CHAIN_LIMIT`] objects.
    ChainFull,
    /// Somebody has the source for himself, or wants it for himself.
    NotShared,
    /// The source is connected as another mode or polarity.
    OtherMode(Line),
    /// The source is delivered at another level.
    OtherLevel(DeviceLevel),
    /// The source goes to this processor, which isn't in the affinity, and can't go to another one: those who share it have none
    /// in common, or it is messages, which only the device can send elsewhere ([`Interrupt::retarget`](super::Interrupt::retarget)).
    OtherProcessor(u32),
    /// The object isn't connected.
    NotConnected,
    /// No processor of the affinity is online.
    NoProcessor,
    /// No processor of the affinity can be named by a device.
    OutOfReach(OutOfReach),
}

/// A vector in use.
#[derive(Clone, Copy)]
struct Binding {
    line: Option<Line>,
    share: Share,
    /// What all users have in common. `processor` is in it.
    affinity: u64,
    processor: u32,
    apic_id: u32,
    /// See I1.
    users: u32,
    /// See I2.
    live: u32,
}

const FIRST: usize = arch::vector::DEVICE_FIRST as usize;
const COUNT: usize = arch::vector::DEVICE_LAST as usize - FIRST + 1;

pub(super) struct Routing {
    vectors: VectorAllocator,
    bindings: [Option<Binding>; COUNT],
}

static ROUTING: SpinLock<Routing, Dispatch> =
    SpinLock::new(Routing { vectors: VectorAllocator::new(), bindings: [None; COUNT] });

/// Takes `vector` out of what connections are given: for code that installs a handler of its own there. False if it is
/// taken, or not a device's.
pub fn reserve<L: Below<Dispatch>>(vector: u8, at: &mut Irql<L>) -> bool {
    ROUTING.lock(at).vectors.reserve(vector)
}

/// Finds the source's vector, or gives it one and programs its line, masked; counts a user.
pub(super) fn bind<L: Below<Dispatch>>(request: &Request, at: &mut Irql<L>) -> Result<Route, ConnectError> {
    let mut guard = ROUTING.lock(at);
    let (routing, at) = guard.parts();
    let line = match request.source {
        Source::Line(line) if !lines::exists(line.gsi) => return Err(ConnectError::NoSuchLine),
        Source::Line(line) => match routing.of_line(line.gsi) {
            Some(vector) => return routing.join(vector, request, at),
            None => Some(line),
        },
        Source::SameMessage(vector) => return routing.join(vector, request, at),
        Source::Message => None,
    };
    let (processor, apic_id) = routing.choose(request.affinity)?;
    let vector = routing.vectors.allocate(request.level).ok_or(ConnectError::NoVector)?;
    if let Some(line) = line {
        // SAFETY: no vector has the line, so it was masked and out of flight when its last one was given back (I3), or since the
        //         start. The vector is a device's.
        if let Err(error) = unsafe { lines::program(line, vector, apic_id, at) } {
            routing.vectors.free(vector);
            return Err(ConnectError::OutOfReach(error));
        }
    }
    let latched = line.is_none_or(|line| line.trigger == Trigger::Edge);
    chain::of(vector).bind(latched && request.share == Share::Shared);
    let (share, affinity) = (request.share, request.affinity);
    let binding = Binding { line, share, affinity, processor, apic_id, users: 1, live: 0 };
    routing.bindings[usize::from(vector) - FIRST] = Some(binding);
    Ok(Route { vector, processor, apic_id })
}

/// What `change` does under the lock, with the token of who holds it.
pub(super) fn change<L: Below<Dispatch>, R>(
    at: &mut Irql<L>,
    change: impl FnOnce(&mut Routing, &mut Irql<Dispatch>) -> R,
) -> R {
    let mut guard = ROUTING.lock(at);
    let (routing, at) = guard.parts();
    change(routing, at)
}

/// An object is in the chain of `vector`: its line, if it has one, is unmasked, also after a storm.
pub(super) fn open<L: Below<Dispatch>>(vector: u8, at: &mut Irql<L>) {
    let mut guard = ROUTING.lock(at);
    let (routing, at) = guard.parts();
    let Some(binding) = routing.binding(vector) else { return };
    binding.live += 1;
    chain::of(vector).open(binding.line.map(|line| line.gsi));
    if let Some(line) = binding.line {
        lines::set_masked(line.gsi, false, at, || true);
    }
}

/// An object is about to leave the chain of `vector`: the last one's line is masked first.
pub(super) fn close<L: Below<Dispatch>>(vector: u8, at: &mut Irql<L>) {
    let mut guard = ROUTING.lock(at);
    let (routing, at) = guard.parts();
    let Some(binding) = routing.binding(vector) else { return };
    binding.live -= 1;
    if binding.live > 0 {
        return;
    }
    chain::of(vector).close();
    if let Some(line) = binding.line {
        lines::set_masked(line.gsi, true, at, || true);
    }
}

/// An object has left: the last one gives the vector back, once its line is out of flight (I3). Until then the processor that
/// was interrupted has to get to its EOI, for which this waits with the lock free.
pub(super) fn unbind<L: Below<Dispatch>>(vector: u8, at: &mut Irql<L>) {
    while !try_unbind(vector, at) {
        arch::cpu::spin_hint();
    }
}

fn try_unbind<L: Below<Dispatch>>(vector: u8, at: &mut Irql<L>) -> bool {
    let mut guard = ROUTING.lock(at);
    let (routing, at) = guard.parts();
    let Some(binding) = routing.binding(vector) else { return true };
    if binding.users > 1 {
        binding.users -= 1;
        return true;
    }
    if binding.line.is_some_and(|line| lines::is_in_flight(line.gsi, at)) {
        return false;
    }
    routing.bindings[usize::from(vector) - FIRST] = None;
    routing.vectors.free(vector);
    true
}

impl Routing {
    fn binding(&mut self, vector: u8) -> Option<&mut Binding> {
        self.bindings.get_mut(usize::from(vector).checked_sub(FIRST)?)?.as_mut()
    }

    fn of_line(&self, gsi: u32) -> Option<u8> {
        let is_its = |binding: &Option<Binding>| {
            binding.and_then(|binding| binding.line).is_some_and(|line| line.gsi == gsi)
        };
        self.bindings.iter().position(is_its).map(|index| (index + FIRST) as u8)
    }

    /// One more user of a vector in use.
    fn join<L: Below<Synch>>(
        &mut self,
        vector: u8,
        request: &Request,
        at: &mut Irql<L>,
    ) -> Result<Route, ConnectError> {
        let binding = self.binding(vector).ok_or(ConnectError::NoSuchMessage)?;
        match (request.source, binding.line) {
            (Source::Line(wanted), Some(line)) if wanted != line => {
                return Err(ConnectError::OtherMode(line));
            }
            (Source::SameMessage(_), Some(_)) => return Err(ConnectError::NoSuchMessage),
            _ => {}
        }
        if (request.share, binding.share) != (Share::Shared, Share::Shared) {
            return Err(ConnectError::NotShared);
        }
        match DeviceLevel::of_vector(vector) {
            Some(level) if level != request.level => return Err(ConnectError::OtherLevel(level)),
            _ => {}
        }
        let common = request.affinity & binding.affinity;
        if binding.line.is_none() && common & 1 << binding.processor == 0 {
            return Err(ConnectError::OtherProcessor(binding.processor));
        }
        let route = self.settle(vector, common, at)?;
        if let Some(binding) = self.binding(vector) {
            binding.users += 1;
        }
        Ok(route)
    }

    /// Has `vector` delivered to a processor of `affinity`: of what others who share it asked for, too.
    pub(super) fn retarget(
        &mut self,
        vector: u8,
        affinity: u64,
        at: &mut Irql<Dispatch>,
    ) -> Result<Route, ConnectError> {
        let binding = self.binding(vector).ok_or(ConnectError::NotConnected)?;
        let common = if binding.users > 1 { affinity & binding.affinity } else { affinity };
        self.settle(vector, common, at)
    }

    /// From now on `vector` goes to a processor of `affinity`: the one it has, if that is in it. A line is moved here; where
    /// messages go is for the device to be told.
    fn settle<L: Below<Synch>>(
        &mut self,
        vector: u8,
        affinity: u64,
        at: &mut Irql<L>,
    ) -> Result<Route, ConnectError> {
        let Binding { line, processor, apic_id, users, .. } =
            *self.binding(vector).ok_or(ConnectError::NotConnected)?;
        let (processor, apic_id) = if affinity & ipi::online() & 1 << processor != 0 {
            (processor, apic_id)
        } else {
            let moved = self.choose(affinity).map_err(|error| match error {
                ConnectError::NoProcessor if users > 1 || affinity == 0 => {
                    ConnectError::OtherProcessor(processor)
                }
                other => other,
            })?;
            if let Some(line) = line {
                lines::retarget(line.gsi, moved.1, at).map_err(ConnectError::OutOfReach)?;
            }
            moved
        };
        if let Some(binding) = self.binding(vector) {
            (binding.affinity, binding.processor, binding.apic_id) = (affinity, processor, apic_id);
        }
        Ok(Route { vector, processor, apic_id })
    }

    /// The processor of `affinity` with the fewest vectors.
    fn choose(&self, affinity: u64) -> Result<(u32, u32), ConnectError> {
        let online = ipi::online() & affinity;
        let candidates = || {
            prcb::all()
                .map(|processor| (processor.prcb().number(), processor.prcb().apic_id()))
                .filter(|(number, _)| online & 1 << number != 0)
        };
        let vectors = |number: u32| {
            self.bindings.iter().flatten().filter(|binding| binding.processor == number).count()
        };
        let best = candidates()
            .filter(|&(_, apic_id)| destination(apic_id).is_ok())
            .min_by_key(|&(number, _)| vectors(number));
        match (best, candidates().next()) {
            (Some(best), _) => Ok(best),
            (None, Some((_, apic_id))) => Err(ConnectError::OutOfReach(OutOfReach(apic_id))),
            (None, None) => Err(ConnectError::NoProcessor),
        }
    }
}
