//! What a decision thread is told.

use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, SyncSender, channel},
};

use accelpool_turns::{ClaimKey, Turns};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{arming::Arming, claim::Claim};

/// What a decision thread is told.
pub(crate) enum Message {
    /// A claim takes part from now on.
    Arm(Box<Claim>),
    /// A claim that takes part has other terms now, on the same devices.
    Rearm(ClaimKey, Arming),
    /// A claim is over; answered when its gates are closed for good.
    Disarm(ClaimKey, SyncSender<()>),
    /// The claim shall leave its devices, so that its memory can be moved away.
    Park(ClaimKey),
    /// It may come back.
    Resume(ClaimKey),
    /// End, and hand over everything: a new claim ties this component to another.
    Surrender(SyncSender<Estate>),
    /// Take over what another thread had.
    Absorb(Estate),
    /// End: the daemon stops. Pages and gates stay as they are.
    Stop,
}

/// All that a decision thread has.
pub(crate) struct Estate {
    pub(crate) turns: Turns,
    pub(crate) claims: Vec<Claim>,
}

/// The sending end of a thread's mailbox.
pub(crate) struct Address {
    sender: Sender<Message>,
    bell: Arc<EventFd>,
}

/// The thread's end.
pub(crate) struct Mailbox {
    pub(crate) receiver: Receiver<Message>,
    pub(crate) bell: Arc<EventFd>,
}

pub(crate) fn mailbox() -> std::io::Result<(Address, Mailbox)> {
    let (sender, receiver) = channel();
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let bell = Arc::new(bell);
    Ok((Address { sender, bell: bell.clone() }, Mailbox { receiver, bell }))
}

impl Address {
    /// Sends; false if the thread is gone.
    pub(crate) fn send(&self, message: Message) -> bool {
        let sent = self.sender.send(message).is_ok();
        // A bell that rings already is full at worst.
        let _ = self.bell.write(1);
        sent
    }
}
