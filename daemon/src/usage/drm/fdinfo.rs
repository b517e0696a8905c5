//! One `fdinfo` of an open DRM file, as `Documentation/gpu/drm-usage-stats.rst` has it.

use std::{collections::BTreeMap, time::Duration};

use accelpool_model::{Engine, PciAddress};

/// More keys than any driver writes.
const LINES_MAX: usize = 256;

/// Who has a device open, and what it used since it opened it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The device.
    pub device: PciAddress,
    /// Its number, unique for the device: duplicates of an open file have the same.
    pub id: u64,
    /// By engine; one that is absent is not measured.
    pub engines: BTreeMap<Engine, Count>,
    /// Memory of the device that it holds, in bytes.
    pub memory: u64,
}

/// How long an engine was busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// In nanoseconds, each of a group of engines counted as its part of the group.
    pub ns: u64,
    /// In cycles of the client and of the clock, where that is what is counted.
    pub cycles: Option<(u64, u64)>,
}

impl Count {
    /// How long since `before`, which was so long ago; all of it for a client that was not there.
    /// A count that went back has begun anew, and tells nothing this time.
    #[must_use]
    pub fn since(&self, before: Option<&Self>, elapsed: Duration) -> Duration {
        let counted = self.ns.saturating_sub(before.map_or(0, |before| before.ns));
        let of_clock = match (self.cycles, before.and_then(|before| before.cycles)) {
            (Some((busy, clock)), Some((busy_then, clock_then))) => {
                let (busy, clock) =
                    (busy.saturating_sub(busy_then), clock.saturating_sub(clock_then));
                // Never more than the engine has time.
                let part = u128::from(busy.min(clock));
                let ns = (elapsed.as_nanos() * part).checked_div(u128::from(clock)).unwrap_or(0);
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
            _ => 0,
        };
        Duration::from_nanos(counted.saturating_add(of_clock))
    }
}

/// Why a text tells of no client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ParseError {
    #[error("`{key}` has a value that it cannot have")]
    Value { key: String },
    #[error("`{key}` stands there twice")]
    Twice { key: String },
    #[error("a client without `{0}`")]
    Missing(&'static str),
    #[error("more than {LINES_MAX} lines")]
    TooLong,
}

/// How memory is told, from the least to the best word for what is held.
const MEMORY_KEYS: [&str; 3] = ["drm-memory-", "drm-total-", "drm-resident-"];

/// Reads one; none if the open file is no DRM client of a PCI device.
///
/// # Errors
///
/// Refuses what a driver cannot have written.
pub fn parse(text: &str) -> Result<Option<Client>, ParseError> {
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        if index >= LINES_MAX {
            return Err(ParseError::TooLong);
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        if key.starts_with("drm-") && keys.insert(key, value.trim()).is_some() {
            return Err(ParseError::Twice { key: shown(key) });
        }
    }
    // An accelerator that is no PCI device has no name here.
    let Some(device) = keys.get("drm-pdev") else { return Ok(None) };
    let device = device.parse().map_err(|_| wrong("drm-pdev"))?;
    let id = keys.get("drm-client-id").ok_or(ParseError::Missing("drm-client-id"))?;
    let id = id.parse().map_err(|_| wrong("drm-client-id"))?;
    Ok(Some(Client { device, id, engines: engines(&keys)?, memory: memory(&keys)? }))
}

fn engines(keys: &BTreeMap<&str, &str>) -> Result<BTreeMap<Engine, Count>, ParseError> {
    let mut engines: BTreeMap<Engine, Count> = BTreeMap::new();
    for (key, value) in keys {
        if let Some(name) = key.strip_prefix("drm-engine-") {
            if name.starts_with("capacity-") {
                continue;
            }
            let ns = value.strip_suffix(" ns").and_then(|ns| ns.trim().parse::<u64>().ok());
            let ns = ns.ok_or_else(|| wrong(key))?;
            let count = engines.entry(engine(name)).or_default();
            count.ns = count.ns.saturating_add(ns / capacity(keys, name)?);
        } else if let Some(name) = key.strip_prefix("drm-cycles-") {
            let busy: u64 = value.parse().map_err(|_| wrong(key))?;
            let total = format!("drm-total-cycles-{name}");
            let clock = keys.get(total.as_str()).ok_or(ParseError::Missing("drm-total-cycles-"))?;
            let clock: u64 = clock.parse().map_err(|_| wrong(&total))?;
            let count = engines.entry(engine(name)).or_default();
            let (before, _) = count.cycles.unwrap_or_default();
            count.cycles = Some((before.saturating_add(busy / capacity(keys, name)?), clock));
        }
    }
    Ok(engines)
}

/// How many engines of that name there are.
fn capacity(keys: &BTreeMap<&str, &str>, name: &str) -> Result<u64, ParseError> {
    let key = format!("drm-engine-capacity-{name}");
    let Some(count) = keys.get(key.as_str()) else { return Ok(1) };
    count.parse().ok().filter(|count| *count > 0).ok_or_else(|| wrong(&key))
}

/// Device memory: what lies in system memory is no device's.
fn memory(keys: &BTreeMap<&str, &str>) -> Result<u64, ParseError> {
    let mut regions: BTreeMap<&str, u64> = BTreeMap::new();
    // The better word stands last and replaces the others.
    for prefix in MEMORY_KEYS {
        for (key, value) in keys {
            let region = key.strip_prefix(prefix);
            let Some(region) =
                region.filter(|it| it.starts_with("vram") || it.starts_with("local"))
            else {
                continue;
            };
            regions.insert(region, bytes(value).ok_or_else(|| wrong(key))?);
        }
    }
    Ok(regions.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)))
}

fn bytes(value: &str) -> Option<u64> {
    let mut words = value.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let unit = match words.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some(_) => return None,
    };
    words.next().is_none().then_some(())?;
    number.checked_mul(unit)
}

/// The engine that amdgpu, i915 and xe call by that name.
fn engine(name: &str) -> Engine {
    match name {
        "compute" | "ccs" => Engine::Compute,
        "gfx" | "render" | "rcs" => Engine::Render,
        "dma" | "copy" | "bcs" => Engine::Copy,
        "dec" | "video" | "vcs" => Engine::Decoder,
        "enc" | "enc_1" => Engine::Encoder,
        "jpeg" => Engine::Jpeg,
        _ => Engine::Other,
    }
}

fn wrong(key: &str) -> ParseError {
    ParseError::Value { key: shown(key) }
}

fn shown(key: &str) -> String {
    key.escape_debug().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMDGPU: &str = "pos:\t0\nflags:\t02100002\nmnt_id:\t26\nino:\t731\n\
        drm-driver:\tamdgpu\ndrm-client-id:\t42\ndrm-pdev:\t0000:03:00.0\npasid:\t32771\n\
        drm-memory-vram:\t8 KiB\ndrm-memory-gtt: \t2048 KiB\n\
        drm-total-vram:\t2048 KiB\ndrm-resident-vram:\t1024 KiB\n\
        drm-engine-gfx:\t1000 ns\ndrm-engine-compute:\t2000 ns\ndrm-engine-enc:\t10 ns\n\
        drm-engine-enc_1:\t5 ns\n";
    const XE: &str = "drm-driver:\txe\ndrm-client-id:\t7\ndrm-pdev:\t0000:03:00.0\n\
        drm-resident-vram0:\t3 MiB\ndrm-resident-system:\t9 MiB\n\
        drm-cycles-ccs:\t400\ndrm-total-cycles-ccs:\t1000\ndrm-engine-capacity-ccs:\t2\n";

    fn client(text: &str) -> Client {
        parse(text).unwrap().unwrap()
    }

    fn ns(client: &Client, engine: Engine) -> Option<u64> {
        client.engines.get(&engine).map(|count| count.ns)
    }

    #[test]
    fn amdgpu_tells_time_and_memory() {
        let client = client(AMDGPU);
        assert_eq!((client.id, client.device.to_string().as_str()), (42, "0000:03:00.0"));
        assert_eq!(client.memory, 1 << 20, "resident, and not what lies in system memory");
        assert_eq!(ns(&client, Engine::Compute), Some(2000));
        assert_eq!(ns(&client, Engine::Render), Some(1000));
        assert_eq!(ns(&client, Engine::Encoder), Some(15));
        assert_eq!(ns(&client, Engine::Decoder), None, "absent is not zero");
    }

    #[test]
    fn xe_tells_cycles_of_engines_that_are_several() {
        let then = client(XE);
        let now = client(&XE.replace("\t400\n", "\t1400\n").replace("\t1000\n", "\t2000\n"));
        let (then, now) = (then.engines[&Engine::Compute], now.engines[&Engine::Compute]);
        let second = Duration::from_secs(1);
        assert_eq!(now.since(Some(&then), second), second / 2);
        assert_eq!(then.since(Some(&now), second), Duration::ZERO, "it went back");
        assert_eq!(then.since(None, second), Duration::ZERO, "no clock to compare with");
        assert_eq!(client(XE).memory, 3 << 20);
    }

    #[test]
    fn engines_of_a_group_are_parts_of_it() {
        let text = "drm-client-id: 1\ndrm-pdev: 0000:00:02.0\ndrm-engine-video: 900 ns\n\
                    drm-engine-capacity-video: 3\n";
        assert_eq!(ns(&client(text), Engine::Decoder), Some(300));
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let text = format!("drm-pdev:\t0000:03:00.0\n{text}");
        assert_eq!(parse(&text).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_no_driver_writes_is_refused() {
        assert_eq!(parse("pos:\t0\nflags:\t0\n"), Ok(None), "some other file");
        refused("", "a client without `drm-client-id`");
        refused("drm-client-id:\tx\n", "`drm-client-id` has a value that it cannot have");
        for (key, value) in [
            ("drm-engine-gfx", "1"),
            ("drm-engine-gfx", "-1 ns"),
            ("drm-engine-gfx", "99999999999999999999 ns"),
            ("drm-resident-vram", "1 GiB"),
            ("drm-resident-vram", "1 KiB KiB"),
            ("drm-resident-vram", "18446744073709551615 KiB"),
            ("drm-cycles-ccs", ""),
        ] {
            let text = format!("drm-client-id:\t1\n{key}:\t{value}\n");
            refused(&text, &format!("`{key}` has a value that it cannot have"));
        }
        let none = "drm-client-id:\t1\ndrm-engine-gfx:\t1 ns\ndrm-engine-capacity-gfx:\t0\n";
        refused(none, "`drm-engine-capacity-gfx` has a value that it cannot have");
        refused("drm-client-id:\t1\ndrm-client-id:\t2\n", "`drm-client-id` stands there twice");
        refused("drm-client-id:\t1\ndrm-cycles-ccs:\t1\n", "a client without `drm-total-cycles-`");
        refused(&"x: y\n".repeat(LINES_MAX), "more than 256 lines");
    }
}
