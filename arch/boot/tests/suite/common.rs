//! Inputs for the loader, built field by field so that each test can spoil one.

/// A program header and the contents it points to.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) address: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory: u64,
    /// Where the header says that the contents are; where they are if `None`.
    pub(crate) offset: Option<u64>,
    /// How long the header says that they are; as long as they are if `None`.
    pub(crate) file_length: Option<u64>,
}

pub(crate) const R: u32 = 4;
pub(crate) const RW: u32 = 6;
pub(crate) const RX: u32 = 5;
pub(crate) const RWX: u32 = 7;
pub(crate) const TOP: u64 = 0xffff_ffff_8000_0000;

impl Segment {
    pub(crate) fn new(flags: u32, address: u64, data: &[u8], memory: u64) -> Self {
        Self { kind: 1, flags, address, data: data.to_vec(), memory, offset: None, file_length: None }
    }
}

/// An ELF file.
#[derive(Debug, Clone)]
pub(crate) struct ElfFile {
    pub(crate) magic: [u8; 4],
    pub(crate) class: u8,
    pub(crate) order: u8,
    pub(crate) version: u32,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) header_size: u16,
    pub(crate) segments: Vec<Segment>,
}

impl ElfFile {
    /// Text, rodata, and data with a tail of zeroes, each on its own pages.
    pub(crate) fn kernel() -> Self {
        Self::with_data(&[0xdd; 600])
    }

    /// The same with `data` in the data segment, which starts at `TOP + 0x3000`.
    pub(crate) fn with_data(data: &[u8]) -> Self {
        let memory = data.len() as u64 + 0x2000;
        Self {
            magic: *b"\x7fELF",
            class: 2,
            order: 1,
            version: 1,
            kind: 2,
            machine: 62,
            entry: TOP + 0x10,
            header_size: 56,
            segments: vec![
                Segment::new(RX, TOP, &[0x90; 0x1234], 0x1234),
                Segment::new(R, TOP + 0x2000, &[0x11; 0x100], 0x100),
                Segment::new(RW, TOP + 0x3000, data, memory),
            ],
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(self.magic);
        file.extend([self.class, self.order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(self.version.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        file.extend(64_u64.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.extend(0_u32.to_le_bytes());
        for half in [64, self.header_size, self.segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut at = 64 + 56 * self.segments.len() as u64;
        for segment in &self.segments {
            file.extend(segment.kind.to_le_bytes());
            file.extend(segment.flags.to_le_bytes());
            let length = segment.file_length.unwrap_or(segment.data.len() as u64);
            for field in [
                segment.offset.unwrap_or(at),
                segment.address,
                segment.address,
                length,
                segment.memory,
                0x1000,
            ] {
                file.extend(field.to_le_bytes());
            }
            at += segment.data.len() as u64;
        }
        self.segments.iter().for_each(|segment| file.extend(&segment.data));
        file
    }
}

/// Where `StartInfoFile` lies.
pub(crate) const START_INFO: u64 = 0x1000;

/// A start info, and all that it points to, as one piece of memory at [`START_INFO`].
#[derive(Debug, Clone)]
pub(crate) struct StartInfoFile {
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) rsdp: u64,
    /// Base, length, E820 type.
    pub(crate) ranges: Vec<(u64, u64, u32)>,
    /// How many ranges the header says there are; as many as there are if `None`.
    pub(crate) range_count: Option<u32>,
    pub(crate) modules: u32,
    /// `None`: the header points to nothing.
    pub(crate) command_line: Option<Vec<u8>>,
    pub(crate) initrd: Vec<u8>,
}

impl StartInfoFile {
    pub(crate) fn new() -> Self {
        Self {
            magic: 0x336e_c578,
            version: 1,
            rsdp: 0xf_5250,
            ranges: vec![
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x400, 2),
                (0xf_0000, 0x1_0000, 2),
                (0x10_0000, 0x3fed_f000, 1),
                (0x3ffd_f000, 0x2_1000, 2),
                (0xb000_0000, 0x1000_0000, 2),
                (0x1_0000_0000, 0x4000_0000, 1),
            ],
            range_count: None,
            modules: 1,
            command_line: Some(b"seed=1 only=boot".to_vec()),
            initrd: b"the kernel".to_vec(),
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let ranges_at = START_INFO + 56;
        let module_at = ranges_at + 24 * self.ranges.len() as u64;
        let line_at = module_at + 32;
        let line_len = self.command_line.as_ref().map_or(0, |line| line.len() as u64 + 1);
        let mut memory = Vec::new();
        for word in [self.magic, self.version, 0, self.modules] {
            memory.extend(word.to_le_bytes());
        }
        let line = if self.command_line.is_some() { line_at } else { 0 };
        for quad in [module_at, line, self.rsdp, ranges_at] {
            memory.extend(quad.to_le_bytes());
        }
        memory.extend(self.range_count.unwrap_or(self.ranges.len() as u32).to_le_bytes());
        memory.extend([0; 4]);
        for (base, length, kind) in &self.ranges {
            memory.extend(base.to_le_bytes());
            memory.extend(length.to_le_bytes());
            memory.extend(u64::from(*kind).to_le_bytes());
        }
        for quad in [line_at + line_len, self.initrd.len() as u64, 0, 0] {
            memory.extend(quad.to_le_bytes());
        }
        if let Some(line) = &self.command_line {
            memory.extend(line);
            memory.push(0);
        }
        memory.extend(&self.initrd);
        memory
    }
}

/// A "newc" archive of regular files, preceded by a folder and ended by the trailer.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    archive_entry(&mut archive, ".", 0o40_755, b"");
    for (name, data) in files {
        archive_entry(&mut archive, name, 0o100_644, data);
    }
    archive_entry(&mut archive, "TRAILER!!!", 0, b"");
    archive
}

pub(crate) fn archive_entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    archive.extend(b"070701");
    let fields = [1, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Sets byte `at` so that all bytes add up to 0.
pub(crate) fn fix_checksum(table: &mut [u8], at: usize) {
    table[at] = 0;
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[at] = sum.wrapping_neg();
}

/// An ACPI table with its header, checksum right.
pub(crate) fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.resize(36, 0);
    table.extend(body);
    fix_checksum(&mut table, 9);
    table
}

/// MADT entries: processor, processor with x2APIC, I/O APIC.
pub(crate) fn local_apic(uid: u8, id: u8, flags: u32) -> Vec<u8> {
    [&[0, 8, uid, id][..], &flags.to_le_bytes()].concat()
}

pub(crate) fn local_x2apic(uid: u32, id: u32, flags: u32) -> Vec<u8> {
    [&[9, 16, 0, 0][..], &id.to_le_bytes(), &flags.to_le_bytes(), &uid.to_le_bytes()].concat()
}

pub(crate) fn io_apic(address: u32) -> Vec<u8> {
    [&[1, 12, 0, 0][..], &address.to_le_bytes(), &[0; 4]].concat()
}

pub(crate) fn madt(entries: &[Vec<u8>]) -> Vec<u8> {
    table(b"APIC", &[&[0; 8][..], &entries.concat()].concat())
}

/// Where [`acpi`] puts the RSDP.
pub(crate) const RSDP: u64 = 0x1000;

/// An RSDP of revision 2 or 0, an XSDT or RSDT that names `others` and then the MADT, and the tables.
pub(crate) fn acpi(new: bool, others: &[Vec<u8>], madt: &[u8]) -> Vec<u8> {
    let root_at = RSDP + 64;
    let width = if new { 8 } else { 4 };
    let tables: Vec<&[u8]> = others.iter().map(Vec::as_slice).chain([madt]).collect();
    let mut at = root_at + 36 + width as u64 * tables.len() as u64;
    let mut pointers = Vec::new();
    for table in &tables {
        pointers.extend(&at.to_le_bytes()[..width]);
        at += table.len() as u64;
    }
    let mut rsdp = b"RSD PTR \0KIRQL ".to_vec();
    rsdp.push(if new { 2 } else { 0 });
    rsdp.extend(if new { 0 } else { root_at as u32 }.to_le_bytes());
    rsdp.extend(36_u32.to_le_bytes());
    rsdp.extend(if new { root_at } else { 0 }.to_le_bytes());
    rsdp.resize(36, 0);
    fix_checksum(&mut rsdp[..20], 8);
    fix_checksum(&mut rsdp, 32);
    rsdp.resize(64, 0);
    let root = table(if new { b"XSDT" } else { b"RSDT" }, &pointers);
    [&rsdp[..], &root, &tables.concat()].concat()
}
