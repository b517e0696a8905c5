//! The program as people and scripts meet it: the real binary against a daemon that is made up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod doctor;
mod failures;
mod fake;
mod formats;
mod golden;
mod guarded;
mod ledger;
mod node;
mod picture;
mod requests;
mod terminal;
