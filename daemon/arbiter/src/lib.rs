//! The arbiter: who may use a shared device now, made so.
//!
//! What the policy in `core/turns` decides is put here into the pages of `vendors/shim`, and
//! what tenants write there is read back. Devices that claims tie together have one decision
//! thread, all others one each. Time is the daemon's own, from the opened gate to the drained
//! device: what a tenant says of itself bounds only what it gets.
//!
//! A tenant is not trusted with anything but its own share: each value in a page that it can
//! write is read once and is no index and no bound here, sizes of such pages are sealed, and
//! what it can make the thread do is limited for each claim.

mod arbiter;
mod arming;
mod claim;
mod component;
mod folder;
mod hand_over;
mod judge;
mod post;
mod process;
mod report;
mod rows;
mod sample;
mod sys;
mod wait;

pub use crate::arbiter::{Admit, Arbiter, ArmError, Settings};
pub use crate::arming::{ArmedDevice, Arming, uuid_bytes};
pub use crate::judge::{Held, Violation, What};
pub use crate::report::{ClaimTurns, DeviceTurns, Ended, Report};
pub use crate::sample::{Turn, Witness};
