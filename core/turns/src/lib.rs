//! Time-slicing policy: who may use a device now, and until when.
//!
//! What is seen of the tenants goes in with the time, commands come out. Nothing here can do
//! IO or read a clock, because nothing this crate depends on can, so that years of sharing
//! are tested in seconds. Time is measured from grant to drained by the caller's own clock:
//! what a tenant says of itself bounds only what it gets.
//!
//! A [`Turns`] is one connected component of devices: claims that hold several devices tie
//! them together, and such a claim gets all of them or none.

#![forbid(unsafe_code)]

mod bucket;
mod claim;
mod command;
mod decide;
mod meter;
mod mode;
mod report;
mod terms;
mod turns;
mod window;

pub use crate::command::{Access, Command, Mode, Seen};
pub use crate::report::{ClaimReport, ClaimState};
pub use crate::terms::{ClaimKey, DeviceKey, Settings, Terms, TermsError, TurnWeight};
pub use crate::turns::{AddError, CLAIMS_MAX, Turns};
