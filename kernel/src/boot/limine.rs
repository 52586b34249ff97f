//! The requests of the Limine boot protocol, and its answers as plain values.
//!
//! The kernel asks for base revision 3. A loader that leaves the tag unchanged has answered with the highest it knows, which
//! is accepted if that is 2: Limine 8.2 does so. The two differ in what matters here: the RSDP is a physical address in 3 and
//! an HHDM one in 2.
//!
//! Sources: Limine boot protocol, "Base Revisions", "Requests"; crate `limine`.

use core::ffi::CStr;

use limine::BaseRevision;
pub use limine::memory_map::{Entry, EntryType};
pub use limine::mp::Cpu;
use limine::mp::RequestFlags;
use limine::request::{
    BootloaderInfoRequest, DateAtBootRequest, ExecutableAddressRequest, ExecutableCmdlineRequest,
    ExecutableFileRequest, FirmwareTypeRequest, HhdmRequest, MemoryMapRequest, ModuleRequest, MpRequest,
    RequestsEndMarker, RequestsStartMarker, RsdpRequest, StackSizeRequest,
};

use super::Refusal;
use crate::mm::early::EarlyPages;

/// Stack that the loader gives each processor until the kernel's own.
const LOADER_STACK: u64 = 64 * 1024;

macro_rules! requests {
    ($($section:literal $name:ident: $type:ty = $value:expr;)*) => {
        $(
            // SAFETY: the section holds requests only; image.ld places it in the writable data segment.
            #[used]
            #[unsafe(link_section = $section)]
            static $name: $type = $value;
        )*
    };
}

requests! {
    ".limine_requests_start" START: RequestsStartMarker = RequestsStartMarker::new();
    ".limine_requests" BASE_REVISION: BaseRevision = BaseRevision::with_revision(3);
    ".limine_requests" STACK_SIZE: StackSizeRequest = StackSizeRequest::new().with_size(LOADER_STACK);
    ".limine_requests" HHDM: HhdmRequest = HhdmRequest::new();
    ".limine_requests" MEMORY_MAP: MemoryMapRequest = MemoryMapRequest::new();
    ".limine_requests" ADDRESS: ExecutableAddressRequest = ExecutableAddressRequest::new();
    ".limine_requests" FILE: ExecutableFileRequest = ExecutableFileRequest::new();
    ".limine_requests" COMMAND_LINE: ExecutableCmdlineRequest = ExecutableCmdlineRequest::new();
    ".limine_requests" MODULES: ModuleRequest = ModuleRequest::new();
    ".limine_requests" RSDP: RsdpRequest = RsdpRequest::new();
    ".limine_requests" MP: MpRequest = MpRequest::new().with_flags(RequestFlags::X2APIC);
    ".limine_requests" DATE: DateAtBootRequest = DateAtBootRequest::new();
    ".limine_requests" LOADER: BootloaderInfoRequest = BootloaderInfoRequest::new();
    ".limine_requests" FIRMWARE: FirmwareTypeRequest = FirmwareTypeRequest::new();
    ".limine_requests_end" END: RequestsEndMarker = RequestsEndMarker::new();
}

/// What the loader told. References live in loader-reclaimable memory until [`BootInfo::detach`] copies them.
#[derive(Clone, Copy)]
pub struct BootInfo {
    /// Base revision in force: 2 or 3.
    pub revision: u64,
    /// Address at which physical memory starts.
    pub hhdm: u64,
    /// The loader's memory map, ascending.
    pub memory_map: &'static [&'static Entry],
    /// Physical and virtual start of the image.
    pub image: (u64, u64),
    /// The command line.
    pub command_line: &'static str,
    /// Physical address of the RSDP.
    pub rsdp: u64,
    /// Every processor that the loader started, and the boot processor's APIC id.
    pub processors: &'static [&'static Cpu],
    /// The boot processor's APIC id.
    pub boot_apic_id: u32,
    /// Whether the loader put the processors into x2APIC mode.
    pub x2apic: bool,
    /// Seconds since 1970 when the loader ran, if it looked.
    pub unix_seconds: Option<u64>,
    /// Name and version of the loader.
    pub loader: (&'static str, &'static str),
    /// Modules that came along.
    pub modules: usize,
}

impl BootInfo {
    /// Reads the answers; the missing one is named.
    pub fn read() -> Result<Self, Refusal> {
        let revision = revision()?;
        let hhdm = HHDM.get_response().ok_or(Refusal::NoAnswer("HHDM"))?.offset();
        let address = ADDRESS.get_response().ok_or(Refusal::NoAnswer("executable address"))?;
        let rsdp = RSDP.get_response().ok_or(Refusal::NoAnswer("RSDP"))?.address() as u64;
        let mp = MP.get_response().ok_or(Refusal::NoAnswer("MP"))?;
        let command_line = match COMMAND_LINE.get_response() {
            Some(answer) => Some(answer.cmdline()),
            None => FILE.get_response().map(|answer| answer.file().string()),
        };
        Ok(Self {
            revision,
            hhdm,
            memory_map: MEMORY_MAP.get_response().ok_or(Refusal::NoAnswer("memory map"))?.entries(),
            image: (address.physical_base(), address.virtual_base()),
            command_line: command_line.and_then(|text: &CStr| text.to_str().ok()).unwrap_or(""),
            rsdp: if rsdp >= hhdm { rsdp - hhdm } else { rsdp },
            processors: mp.cpus(),
            boot_apic_id: mp.bsp_lapic_id(),
            x2apic: mp.flags().contains(limine::mp::ResponseFlags::X2APIC),
            unix_seconds: DATE.get_response().map(|answer| answer.timestamp().as_secs()),
            loader: LOADER
                .get_response()
                .map_or(("unknown loader", ""), |answer| (answer.name(), answer.version())),
            modules: MODULES.get_response().map_or(0, |answer| answer.modules().len()),
        })
    }
}

impl BootInfo {
    /// A copy that needs nothing of the loader's memory; it names no processors any more.
    pub fn detach(&self, pages: &mut EarlyPages) -> Option<Self> {
        let mut text = |text: &str| -> Option<&'static str> {
            let copy = copied(text.as_bytes(), pages)?;
            // SAFETY: the bytes of a `str`.
            Some(unsafe { core::str::from_utf8_unchecked(copy) })
        };
        let command_line = text(self.command_line)?;
        let loader = (text(self.loader.0)?, text(self.loader.1)?);
        let count = self.memory_map.len();
        let entries = pages.contiguous((count * (size_of::<Entry>() + size_of::<&Entry>())) as u64)?;
        let entries = (arch::paging::hhdm() + entries) as *mut Entry;
        // SAFETY: behind the entries, in the same pages, whose size allows for both; aligned, as entries are words.
        let list = unsafe { entries.add(count) }.cast::<&'static Entry>();
        for (at, entry) in self.memory_map.iter().enumerate() {
            // SAFETY: 1. within the pages just taken, which are never given back. 2. an entry is plain data.
            unsafe {
                core::ptr::copy_nonoverlapping(*entry, entries.add(at), 1);
                list.add(at).write(&*entries.add(at));
            }
        }
        // SAFETY: all written just now.
        let memory_map = unsafe { core::slice::from_raw_parts(list, count) };
        Some(Self { memory_map, command_line, processors: &[], loader, ..*self })
    }
}

/// The bytes in a page of their own, for good.
fn copied(bytes: &[u8], pages: &mut EarlyPages) -> Option<&'static [u8]> {
    let copy = (arch::paging::hhdm() + pages.contiguous(bytes.len().max(1) as u64)?) as *mut u8;
    // SAFETY: fresh pages, large enough, never given back.
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        Some(core::slice::from_raw_parts(copy, bytes.len()))
    }
}

/// The base revision in force, if it is one that the kernel speaks.
fn revision() -> Result<u64, Refusal> {
    if BASE_REVISION.is_supported() {
        return Ok(3);
    }
    match BASE_REVISION.loaded_revision() {
        // The loader says which revision it used instead.
        Some(used @ 2..) => Ok(used),
        Some(used) => Err(Refusal::BaseRevision(used)),
        // It left the tag as it was, and may have used any revision that it knows. Limine 8 knew 2; what older ones used
        // can't be told.
        None => {
            let version = LOADER
                .get_response()
                .filter(|answer| answer.name() == "Limine")
                .map(|answer| answer.version());
            match version.and_then(|version| version.split('.').next()?.parse::<u32>().ok()) {
                Some(8..) => Ok(2),
                _ => Err(Refusal::BaseRevision(0)),
            }
        }
    }
}
