//! Decisions about the node, one pure function per file.
//!
//! Everything here takes the node as data and gives a plan as data. Nothing can do IO, read
//! a clock or wait, because nothing this crate depends on can.

#![forbid(unsafe_code)]

mod attribute;
pub mod choose;
mod occupancy;
mod prepare;
mod reconcile;
mod release;
mod select;
mod settle;
mod taint;
#[cfg(test)]
mod testing;
mod view;

pub use crate::attribute::{
    Amount, Attribution, Holding, Owner, Part, ProcessUse, attribute, divide_energy,
};
pub use crate::prepare::{
    LEASES_MAX, Prepare, PrepareError, REQUESTS_MAX, plan_bind, plan_prepare,
};
pub use crate::reconcile::{Outcome, Repair, plan_reconcile};
pub use crate::release::{Release, plan_release, plan_undo};
pub use crate::select::COUNT_MAX;
pub use crate::settle::{Settlement, plan_settle};
pub use crate::taint::{Convalescence, LINK_QUIET_MS, SOUND_LOOKS, taint_for, taint_for_loss};
pub use crate::view::{NodeView, check_possible};
