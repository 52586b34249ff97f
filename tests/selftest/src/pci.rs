//! PCI and plug and play: functions with their ranges, a driver that is given two devices, in which order it hears of what, messages.
//! The devices are QEMU's `edu` (edu.rs).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::boot::facts;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::io::objects::KDeviceObject;
use kernel::io::pci::bar::Space;
use kernel::io::pci::config::{Config, command, read_command};
use kernel::io::pci::header::Header;
use kernel::io::pci::messages::{Message, Messages, Wanted};
use kernel::io::pci::registers::Registers;
use kernel::io::pci::{Function, capability};
use kernel::io::pnp::function::{FunctionDriver, Removal, handle};
use kernel::io::pnp::resources::{Resource, ResourceList};
use kernel::io::pnp::state::State;
use kernel::io::pnp::{self, Device};
use kernel::io::{MayDoIo, allocate, device, stack};
use kernel::ke::interrupt::{Claim, OwnInterrupt};
use kernel::ke::{clock, ipi, prcb};
use kernel::mm::pool::{Owned, Tag};
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::irql::{Device as DeviceIrql, Irql, ObjectLock, Passive};
use sync::{InterruptLock, SpinLock};

use crate::edu::{self, LEVEL};
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("pci::functions_are_found_with_their_ranges", |at| settled(functions, at)),
    ("pci::both_ways_to_a_function_agree", |at| settled(both_ways, at)),
    ("pci::a_driver_hears_of_its_devices_in_order", |at| settled(order, at)),
    ("pci::messages_come_where_they_are_sent_and_end", |at| settled(messages, at)),
];

const IDENTITY: (u16, u16) = (0x1234, 0x11E8);
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const STATUS: usize = 0x24;
const LONG: u64 = 10_000_000;

fn ok<T>(result: core::result::Result<T, NtStatus>, what: &'static str) -> core::result::Result<T, Verdict> {
    result.map_err(|status| Verdict::Fail(what, status.0.into(), 0))
}

/// Wherever a test ends, nobody drives its devices afterwards, and they answer as the other tests want them.
fn settled(test: fn(&mut Irql<Passive>) -> Result, at: &mut Irql<Passive>) -> Result {
    SAY_NO.store(0, Ordering::Relaxed);
    let result = test(at);
    SAY_NO.store(0, Ordering::Relaxed);
    // Twice, as one allocation may be refused on purpose.
    let _ = pnp::uninstall::<Probe>(at).or_else(|_| pnp::uninstall::<Probe>(at));
    allocate::trim(at);
    result
}

/// The nodes of both devices.
fn nodes(at: &mut Irql<Passive>) -> core::result::Result<[Device; 2], Verdict> {
    let mut found = ok(pnp::devices(at), "the list of devices")?.into_iter().filter(|node| {
        Function::of(&node.physical).is_some_and(|function| identity(function.header()) == IDENTITY)
    });
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err(Verdict::Skip("needs two edu devices")),
    }
}

fn identity(header: &Header) -> (u16, u16) {
    (header.vendor, header.device)
}

fn functions(at: &mut Irql<Passive>) -> Result {
    for node in nodes(at)? {
        let Some(function) = Function::of(&node.physical) else {
            return Err(Verdict::Fail("its state", 0, 0));
        };
        let Some(bar) = function.bars()[0] else { return Err(Verdict::Fail("no range", 0, 0)) };
        let memory = Space::Memory { is_wide: false, is_prefetchable: false };
        check(bar.space == memory, "the range's space", bar.base, bar.length)?;
        equal(bar.length, 1 << 20, "the range's length")?;
        check(function.bars()[1..].iter().all(Option::is_none), "ranges that it hasn't", 0, 0)?;
        equal(function.header().class.into(), 0x00_FF00, "class")?;
        equal(function.header().pin.into(), 1, "pin")?;
        check(function.msi().is_some() && function.msix().is_none(), "messages of one kind", 0, 0)?;
        check(function.is_present(at), "gone", 0, 0)?;
        let registers = ok(function.map(0, 0, 0x100, at), "its registers")?;
        let id = registers.read32(0);
        registers.end(at);
        check(id & 0xFF == 0xED, "the register that tells what it is", id.into(), 0)?;
        let outside = function.map(0, bar.length - 4, 8, at);
        check(
            outside.is_err_and(|status| status == NtStatus::INVALID_PARAMETER),
            "more than its range",
            0,
            0,
        )?;
    }
    Ok(())
}

/// What ECAM shows is what the ports show.
fn both_ways(at: &mut Irql<Passive>) -> Result {
    if facts().firmware.ecam.as_slice().is_empty() {
        return Err(Verdict::Skip("needs an MCFG"));
    }
    for node in ok(pnp::devices(at), "the list of devices")? {
        let Some(function) = Function::of(&node.physical) else { continue };
        let mut config = function.config(at);
        check(config.is_extended(), "not by ECAM", function.address().number().into(), 0)?;
        let places: u64 = capability::capabilities(&mut config).map(|found| u64::from(found.at)).sum();
        if function.address().bus() == 0 && function.address().function() == 0 {
            for register in [0x00, 0x08, 0x2C, 0x34] {
                let (ecam, ports) =
                    (config.read(register), edu::config(function.address().device(), register as u8));
                equal(ecam.into(), ports.into(), "a register by either way")?;
            }
        }
        check(places < 48 * 0x100, "capabilities", places, 0)?;
    }
    Ok(())
}

/// What both devices' drivers were asked, four bits each: 1 start, 2 query, 3 cancel, 4 surprise, 5 removal.
static ORDER: AtomicU64 = AtomicU64::new(0);
/// Says no to a removal.
static SAY_NO: AtomicU32 = AtomicU32::new(0);
/// Devices' states that are there.
static THERE: AtomicU32 = AtomicU32::new(0);

fn note(what: u64) {
    ORDER.store(ORDER.load(Ordering::Relaxed) << 4 | what, Ordering::Relaxed);
}

/// A driver of the devices.
struct Probe {
    physical: ObRef<KDeviceObject>,
    parts: SpinLock<Option<Parts>, ObjectLock>,
}

/// What it has while it is started.
struct Parts {
    messages: Messages,
    message: Message<Shared>,
}

/// What its ISR shares.
struct Shared {
    registers: Option<Registers>,
    runs: u32,
    processor: u32,
}

const TAG: Tag = Tag::new(b"Edu ");

fn serve(shared: &mut Shared, _: &mut Irql<DeviceIrql>) -> Claim {
    let Some(registers) = &shared.registers else { return Claim::NotMine };
    let bits = registers.read32(STATUS);
    registers.write32(ACKNOWLEDGE, bits);
    shared.runs += 1;
    shared.processor = arch::cpu::number();
    Claim::Claimed
}

impl Probe {
    /// Sets it to work; what a failure leaves is given back here.
    fn begin(&self, at: &mut Irql<Passive>) -> core::result::Result<Parts, NtStatus> {
        let function = Function::of(&self.physical).ok_or(NtStatus::NO_SUCH_DEVICE)?;
        let registers = function.map(0, 0, 0x1000, at)?;
        registers.write32(ACKNOWLEDGE, u32::MAX);
        let shared = Shared { registers: Some(registers), runs: 0, processor: u32::MAX };
        let object = OwnInterrupt::new(InterruptLock::new(LEVEL, shared), serve);
        let object = Owned::try_new(TAG, object, at).map_err(|(_, object)| {
            end_object(&object, at);
            NtStatus::INSUFFICIENT_RESOURCES
        })?;
        let messages = match Messages::begin(function, at) {
            Ok(messages) => messages,
            Err(status) => {
                end_object(&object, at);
                return Err(status);
            }
        };
        match messages.connect(object, Wanted { level: LEVEL, affinity: ipi::online() }, at) {
            Ok(message) => Ok(Parts { messages, message }),
            Err((status, object)) => {
                end_object(&object, at);
                messages.end(at);
                Err(status)
            }
        }
    }
}

fn end_object(object: &OwnInterrupt<Shared>, at: &mut Irql<Passive>) {
    if let Some(registers) = object.synchronize(at, |shared, _| shared.registers.take()) {
        registers.end(at);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        THERE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Driver for Probe {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        irp.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, at)
    }

    fn pnp<'c>(&self, irp: Irp<'c>, at: &mut Irql<Passive>) -> Handled<'c> {
        handle(self, irp, at)
    }
}

impl FunctionDriver for Probe {
    fn is_for(header: &Header) -> bool {
        identity(header) == IDENTITY
    }

    fn new(physical: ObRef<KDeviceObject>) -> Self {
        THERE.fetch_add(1, Ordering::Relaxed);
        Self { physical, parts: SpinLock::new(None) }
    }

    fn start(&self, resources: &ResourceList, at: &mut Irql<Passive>) -> NtStatus {
        note(1);
        let [range, message] = [0, 1].map(|n| resources.iter().nth(n));
        let right = matches!(range, Some(Resource::Memory { length: 0x10_0000, .. }))
            && message == Some(Resource::Messages { count: 1 });
        let function = Function::of(&self.physical);
        let answers = function.is_some_and(|function| read_command(&mut function.config(at)) & 6 == 6);
        if !right || !answers {
            return NtStatus::INVALID_PARAMETER;
        }
        match self.begin(at) {
            Ok(parts) => {
                *self.parts.lock(at) = Some(parts);
                NtStatus::SUCCESS
            }
            Err(status) => status,
        }
    }

    fn query_remove(&self, _: &mut Irql<Passive>) -> NtStatus {
        note(2);
        if SAY_NO.load(Ordering::Relaxed) == 0 { NtStatus::SUCCESS } else { NtStatus::UNSUCCESSFUL }
    }

    fn cancel_remove(&self, _: &mut Irql<Passive>) {
        note(3);
    }

    fn end(&self, removal: Removal, at: &mut Irql<Passive>) {
        note(if removal == Removal::Surprise { 4 } else { 5 });
        let parts = self.parts.lock(at).take();
        if let Some(Parts { messages, message }) = parts {
            let object = messages.disconnect(message, at);
            messages.end(at);
            end_object(&object, at);
        }
    }
}

fn refused(result: core::result::Result<(), NtStatus>, wanted: NtStatus, what: &'static str) -> Result {
    let found = result.err().unwrap_or(NtStatus::SUCCESS);
    equal(found.0.into(), wanted.0.into(), what)
}

fn order(at: &mut Irql<Passive>) -> Result {
    let [first, _] = nodes(at)?;
    ORDER.store(0, Ordering::Relaxed);
    equal(ok(pnp::install::<Probe>(at), "install")?.into(), 2, "devices that were started")?;
    equal(ORDER.swap(0, Ordering::Relaxed), 0x11, "starts")?;
    let physical = &first.physical;
    refused(pnp::start_device(physical, at), NtStatus::INVALID_DEVICE_STATE, "a second start")?;
    refused(pnp::remove(physical, at), NtStatus::INVALID_DEVICE_STATE, "a removal unasked")?;
    equal(ORDER.load(Ordering::Relaxed), 0, "requests that the driver was not to hear of")?;
    SAY_NO.store(1, Ordering::Relaxed);
    refused(pnp::query_remove(physical, at), NtStatus::UNSUCCESSFUL, "a removal that the driver refuses")?;
    SAY_NO.store(0, Ordering::Relaxed);
    let [node, _] = nodes(at)?;
    check(node.state == State::Started, "still started", node.state as u64, 0)?;
    drop(node);
    ok(pnp::query_remove(physical, at), "a question")?;
    ok(pnp::cancel_remove(physical, at), "taken back")?;
    ok(pnp::query_remove(physical, at), "the question again")?;
    equal(THERE.load(Ordering::Relaxed).into(), 2, "states")?;
    ok(pnp::remove(physical, at), "a removal")?;
    equal(ORDER.swap(0, Ordering::Relaxed), 0x2_2325, "order of an orderly removal")?;
    let [gone, other] = nodes(at)?;
    check(gone.functional.is_none() && gone.state == State::Found, "nobody drives it", gone.state as u64, 0)?;
    check(stack::top_of(physical, at).is(physical), "nothing is on top", 0, 0)?;
    let function = Function::of(physical).ok_or(Verdict::Fail("its state", 0, 0))?;
    let bits = read_command(&mut function.config(at)) & (command::MEMORY | command::MASTER);
    equal(bits.into(), 0, "what it may do behind its removal")?;
    drop(gone);
    equal(THERE.load(Ordering::Relaxed).into(), 1, "states that are left")?;
    ok(pnp::surprise_remove(&other.physical, at), "a surprise")?;
    refused(
        pnp::start_device(&other.physical, at),
        NtStatus::INVALID_DEVICE_STATE,
        "a start of what is gone",
    )?;
    ok(pnp::remove(&other.physical, at), "the removal behind it")?;
    equal(ORDER.load(Ordering::Relaxed), 0x45, "order of a surprise")?;
    drop(other);
    equal(THERE.load(Ordering::Relaxed).into(), 0, "no state is left")?;
    equal(ok(pnp::install::<Probe>(at), "install again")?.into(), 2, "devices that are started again")
}

fn messages(at: &mut Irql<Passive>) -> Result {
    nodes(at)?;
    equal(ok(pnp::install::<Probe>(at), "install")?.into(), 2, "devices that were started")?;
    for node in nodes(at)? {
        let functional = node.functional.ok_or(Verdict::Fail("no driver", 0, 0))?;
        let probe = device::state_of::<Probe>(&functional).ok_or(Verdict::Fail("not its driver", 0, 0))?;
        let parts = probe.parts.lock(at).take().ok_or(Verdict::Fail("not started", 0, 0))?;
        let result = each_processor(&parts, at);
        *probe.parts.lock(at) = Some(parts);
        result?;
    }
    Ok(())
}

/// A message to each of up to eight processors in turn.
fn each_processor(parts: &Parts, at: &mut Irql<Passive>) -> Result {
    let Parts { messages, message } = parts;
    let object = message.object();
    let raise = |at: &mut Irql<Passive>| {
        object.synchronize(at, |shared, _| {
            if let Some(registers) = &shared.registers {
                registers.write32(RAISE, 1);
            }
        });
    };
    for number in (0..prcb::count()).step_by(prcb::count().div_ceil(8) as usize) {
        let route = ok(messages.retarget(message, 1 << number, at), "a move")?;
        equal(route.processor.into(), number.into(), "where it goes")?;
        for _ in 0..20 {
            let before = object.synchronize(at, |shared, _| shared.runs);
            raise(at);
            let start = clock::since_start();
            while object.synchronize(at, |shared, _| shared.runs) == before {
                check(clock::since_start() - start < LONG, "no interrupt", number.into(), 0)?;
                arch::cpu::spin_hint();
            }
            let (runs, processor) = object.synchronize(at, |shared, _| (shared.runs, shared.processor));
            equal(runs.into(), (before + 1).into(), "interrupts for one message")?;
            equal(processor.into(), number.into(), "the processor that took it")?;
        }
    }
    check(messages.retarget(message, 0, at).is_err(), "a move to nowhere", 0, 0)
}
