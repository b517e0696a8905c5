//! PCI addresses: `domain:bus:device.function` in hexadecimal.

use std::{fmt, str::FromStr};

/// Where a device sits on the PCI bus, such as `0000:3b:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    /// Device (5 bits) and function (3 bits), as the bus carries them.
    devfn: u8,
}

/// A text that is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PCI address `{0}` is not valid: write it as 0000:3b:00.0")]
pub struct BadPciAddress(String);

impl PciAddress {
    /// The address in the form of a DNS label, such as `0000-3b-00-0`.
    #[must_use]
    pub fn label(self) -> String {
        self.to_string().replace([':', '.'], "-")
    }
}

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        // The pattern of the standard attribute `resource.kubernetes.io/pciBusID`.
        let bad = || BadPciAddress(text.chars().take(32).flat_map(char::escape_debug).collect());
        let bytes = text.as_bytes();
        let shape = bytes.len() == 12 && bytes[4] == b':' && bytes[7] == b':' && bytes[10] == b'.';
        if !shape {
            return Err(bad());
        }
        let field = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
        };
        let narrow = |value: Option<u16>, max: u8| {
            value.and_then(|value| u8::try_from(value).ok()).filter(|value| *value <= max)
        };
        let domain = field(0..4).ok_or_else(bad)?;
        let bus = narrow(field(5..7), u8::MAX).ok_or_else(bad)?;
        let device = narrow(field(8..10), 0x1f).ok_or_else(bad)?;
        let function = narrow(field(11..12), 7).ok_or_else(bad)?;
        Ok(Self { domain, bus, devfn: device << 3 | function })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, devfn } = self;
        let (device, function) = (devfn >> 3, devfn & 7);
        f.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_text() {
        for text in ["0000:3b:00.0", "ffff:ff:1f.7", "0001:00:02.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:3B:00.0".parse::<PciAddress>().unwrap().label(), "0000-3b-00-0");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "3b:00.0",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "0000:3b:00.0 ",
            "+000:3b:00.0",
            "0000:3b:00\u{e9}",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
