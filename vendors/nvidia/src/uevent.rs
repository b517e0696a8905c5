//! Kernel uevents: devices and drivers that come and go, told at once.
//!
//! What is read here only has somebody look sooner: who is there is asked of the driver. So a
//! message that is lost, or that nobody may listen for, costs the time to the next look.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
    },
};

/// The group in which the kernel itself tells; udev has another.
const KERNEL_GROUP: u32 = 1;

/// `UEVENT_BUFFER_SIZE` of the kernel, twice, for what it appends.
const MESSAGE_LEN_MAX: usize = 4096;

/// Messages of one look. A machine that boots tells thousands, of which few are about GPUs.
const MESSAGES_MAX: usize = 1024;

/// NVIDIA's number among makers of PCI devices.
const MAKER: &str = "10DE:";

/// A socket on which the kernel tells.
#[derive(Debug)]
pub(crate) struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Listens from now on; none where that is not allowed.
    pub(crate) fn open() -> Option<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .ok()?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).ok()?;
        Some(Self { socket })
    }

    /// True if something was told that has to do with NVIDIA's devices or their driver, or that
    /// was lost and may have had. Never waits.
    pub(crate) fn concern_us(&self) -> bool {
        let mut concerned = false;
        let mut buffer = [0; MESSAGE_LEN_MAX];
        for _ in 0..MESSAGES_MAX {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                // Others may send to the group too; only the kernel is number 0.
                Ok((len, Some(from))) if from.pid() == 0 => {
                    concerned |= is_ours(&buffer[..len.min(MESSAGE_LEN_MAX)]);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => concerned = true,
                Err(_) => break,
            }
        }
        concerned
    }
}

/// Whether a message, `ACTION@PATH` and then `KEY=VALUE` with a NUL after each, is about one of
/// NVIDIA's devices, or about its driver being loaded or unloaded.
fn is_ours(message: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(message) else { return false };
    let value = |key: &str| {
        let fields = text.split('\0').filter_map(|field| field.split_once('='));
        fields.filter(|(name, _)| *name == key).map(|(_, value)| value).next()
    };
    let comes_or_goes = matches!(value("ACTION"), Some("add" | "remove" | "bind" | "unbind"));
    let ours = match value("SUBSYSTEM") {
        Some("pci") => value("PCI_ID").is_some_and(|id| id.starts_with(MAKER)),
        Some("module") => value("DEVPATH") == Some("/module/nvidia"),
        _ => false,
    };
    comes_or_goes && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fields: &[&str], expected: bool) {
        let message = format!("x@/devices/x\0{}\0", fields.join("\0"));
        assert_eq!(is_ours(message.as_bytes()), expected, "{fields:?}");
    }

    #[test]
    fn only_what_has_to_do_with_nvidia_counts() {
        let gpu = ["SUBSYSTEM=pci", "PCI_ID=10DE:2330"];
        for action in ["add", "remove", "bind", "unbind"] {
            check(&[&format!("ACTION={action}"), gpu[0], gpu[1]], true);
        }
        check(&["ACTION=change", gpu[0], gpu[1]], false);
        check(&["ACTION=add", "SUBSYSTEM=pci", "PCI_ID=8086:0D5D"], false);
        check(&["ACTION=add", "SUBSYSTEM=usb", "PCI_ID=10DE:2330"], false);
        check(&["ACTION=remove", "SUBSYSTEM=module", "DEVPATH=/module/nvidia"], true);
        check(&["ACTION=remove", "SUBSYSTEM=module", "DEVPATH=/module/nvidia_uvm"], false);
        check(&["SUBSYSTEM=pci"], false);
        check(&["ACTION", "=", ""], false);
        assert!(!is_ours(&[0xff, 0, 0xfe]));
        assert!(!is_ours(&[]));
    }
}
