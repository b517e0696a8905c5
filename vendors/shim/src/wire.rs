//! The records on a claim's socket: of one size, little-endian, one a packet.
//!
//! Decoding refuses whatever it does not know to the last byte: another magic, version, kind
//! or length, an unknown reason, a reserved byte that is not zero.

/// The length of every record.
pub const RECORD_BYTES: usize = 128;

/// The version of the records; another one is refused.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"APSW";
const KIND_HELLO: u16 = 1;
const KIND_WELCOME: u16 = 2;
const KIND_REFUSED: u16 = 3;
const KIND_HINT: u16 = 4;

/// Descriptors beside a [`Hello`] that brings pages: the ledger page, the process page.
pub const HELLO_DESCRIPTORS: usize = 2;

/// Descriptors beside a [`Welcome`]: eventfd; with new pages the ledger page and the process
/// page before it.
pub const WELCOME_DESCRIPTORS_MAX: usize = 3;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A process registers, or registers anew.
    Hello(Hello),
    /// The daemon took it.
    Welcome(Welcome),
    /// The daemon did not.
    Refused(Refusal),
    /// A process reports what no page says.
    Hint(Hint),
}

/// What a process says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// [`LAYOUT_HASH`](crate::layout::LAYOUT_HASH) of the shim.
    pub layout_hash: u64,
    /// Version of the shim: major, minor, patch in a byte each.
    pub shim_version: u32,
    /// Version of the vendor's API, as its library says; 0 for unknown.
    pub api_version: u32,
    /// The process id in the process's own namespace, for display alone.
    pub process_id: u32,
    /// The process's monotonic time when it sent this.
    pub monotonic_ns: u64,
    /// The incarnation that welcomed it before, and the pages that it still has from there.
    pub returns: Option<Returns>,
}

/// A process that a daemon has welcomed before. Its two pages come beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returns {
    /// Who welcomed it.
    pub incarnation: u64,
    /// Its row in the ledger page.
    pub process_index: u32,
}

/// What the daemon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The number of this start of the daemon.
    pub incarnation: u64,
    /// The daemon's monotonic time when it sent this.
    pub monotonic_ns: u64,
    /// [`claim_hash`](crate::layout::claim_hash) of the claim.
    pub claim_hash: u64,
    /// The process's row in the ledger page.
    pub process_index: u32,
    /// Whether the pages that the process brought stay in use; else new ones are beside.
    pub keeps_pages: bool,
}

/// Why a process is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The pages of shim and daemon look different.
    Layout = 1,
    /// The process does not run where the claim was prepared.
    Stranger = 2,
    /// The claim has as many processes as it may have.
    TooMany = 3,
    /// Registrations come too fast: try again later.
    TooFast = 4,
    /// The claim is over.
    Revoked = 5,
    /// The pages that it brought are not the claim's.
    Pages = 6,
}

/// What a process reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// What happened.
    pub what: What,
    /// The index of the device in the control page, or 0.
    pub device: u32,
    /// Bytes or a number of calls.
    pub value: u64,
}

/// What happened in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum What {
    /// It made its first context on the device.
    ContextMade = 1,
    /// Its last context on the device is gone.
    ContextGone = 2,
    /// It uses entry points that the shim does not know; the value is how many.
    Unclassified = 3,
    /// An entry point is not what its name says, so it is left alone.
    NotWrapped = 4,
}

/// Not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Record {
    /// The bytes of the record.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut writer = Writer { bytes: [0; RECORD_BYTES], at: 0 };
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        match self {
            Self::Hello(it) => {
                writer.put(&KIND_HELLO.to_le_bytes());
                writer.put(&it.layout_hash.to_le_bytes());
                writer.put(&it.shim_version.to_le_bytes());
                writer.put(&it.api_version.to_le_bytes());
                writer.put(&it.process_id.to_le_bytes());
                writer.put(&u32::from(it.returns.is_some()).to_le_bytes());
                writer.put(&it.monotonic_ns.to_le_bytes());
                if let Some(returns) = it.returns {
                    writer.put(&returns.incarnation.to_le_bytes());
                    writer.put(&returns.process_index.to_le_bytes());
                }
            }
            Self::Welcome(it) => {
                writer.put(&KIND_WELCOME.to_le_bytes());
                writer.put(&it.incarnation.to_le_bytes());
                writer.put(&it.monotonic_ns.to_le_bytes());
                writer.put(&it.claim_hash.to_le_bytes());
                writer.put(&it.process_index.to_le_bytes());
                writer.put(&u32::from(it.keeps_pages).to_le_bytes());
            }
            Self::Refused(refusal) => {
                writer.put(&KIND_REFUSED.to_le_bytes());
                writer.put(&(*refusal as u32).to_le_bytes());
            }
            Self::Hint(it) => {
                writer.put(&KIND_HINT.to_le_bytes());
                writer.put(&(it.what as u32).to_le_bytes());
                writer.put(&it.device.to_le_bytes());
                writer.put(&it.value.to_le_bytes());
            }
        }
        writer.bytes
    }

    /// Reads a record out of a whole packet.
    pub fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; RECORD_BYTES] = packet.try_into().map_err(|_| Malformed)?;
        let mut reader = Reader { bytes, at: 0 };
        if reader.take::<4>()? != MAGIC || reader.u16()? != VERSION {
            return Err(Malformed);
        }
        let record = match reader.u16()? {
            KIND_HELLO => Self::Hello(reader.hello()?),
            KIND_WELCOME => Self::Welcome(reader.welcome()?),
            KIND_REFUSED => Self::Refused(Refusal::from_wire(reader.u32()?)?),
            KIND_HINT => Self::Hint(Hint {
                what: What::from_wire(reader.u32()?)?,
                device: reader.u32()?,
                value: reader.u64()?,
            }),
            _ => return Err(Malformed),
        };
        reader.finish()?;
        Ok(record)
    }
}

impl Refusal {
    const ALL: [Self; 6] =
        [Self::Layout, Self::Stranger, Self::TooMany, Self::TooFast, Self::Revoked, Self::Pages];

    fn from_wire(value: u32) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|&it| it as u32 == value).ok_or(Malformed)
    }
}

impl What {
    const ALL: [Self; 4] =
        [Self::ContextMade, Self::ContextGone, Self::Unclassified, Self::NotWrapped];

    fn from_wire(value: u32) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|&it| it as u32 == value).ok_or(Malformed)
    }
}

/// Puts fields one behind the other; all records together are shorter than their length.
struct Writer {
    bytes: [u8; RECORD_BYTES],
    at: usize,
}

impl Writer {
    fn put(&mut self, field: &[u8]) {
        if let Some(there) = self.bytes.get_mut(self.at..self.at + field.len()) {
            there.copy_from_slice(field);
        }
        self.at += field.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8; RECORD_BYTES],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let field = self.bytes.get(self.at..self.at + N).ok_or(Malformed)?;
        self.at += N;
        field.try_into().map_err(|_| Malformed)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn hello(&mut self) -> Result<Hello, Malformed> {
        let layout_hash = self.u64()?;
        let shim_version = self.u32()?;
        let api_version = self.u32()?;
        let process_id = self.u32()?;
        let returns = self.flag()?;
        let monotonic_ns = self.u64()?;
        let returns = if returns {
            Some(Returns { incarnation: self.u64()?, process_index: self.u32()? })
        } else {
            None
        };
        Ok(Hello { layout_hash, shim_version, api_version, process_id, monotonic_ns, returns })
    }

    fn welcome(&mut self) -> Result<Welcome, Malformed> {
        Ok(Welcome {
            incarnation: self.u64()?,
            monotonic_ns: self.u64()?,
            claim_hash: self.u64()?,
            process_index: self.u32()?,
            keeps_pages: self.flag()?,
        })
    }

    /// What is left must be zero.
    fn finish(self) -> Result<(), Malformed> {
        let rest = self.bytes.get(self.at..).ok_or(Malformed)?;
        if rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Malformed) }
    }
}
