//! A simulated node behind the vendor trait: any devices, real device nodes, scripted trouble.
//!
//! It is the adapter for machines without accelerators: for tests, demonstrations and crash
//! drills. Nothing is computed by it, and nothing is enforced: shares of a simulated device
//! are as strong as its profile claims. See the README for profiles and scripts.
#![forbid(unsafe_code)]

mod calls;
mod chain;
mod cut;
mod folder;
mod machine;
mod nesting;
mod profile;
mod refusal;
mod script;
mod sim;
mod state;
mod usage;

pub use crate::{
    folder::FolderError,
    nesting::from_toml,
    profile::{PROFILE_LEN_MAX, ParseProfileError, Profile},
    refusal::Refusal,
    script::{ParseScriptError, SCRIPT_LEN_MAX, Script},
    sim::{OpenSimError, Sim},
    state::StateError,
};
