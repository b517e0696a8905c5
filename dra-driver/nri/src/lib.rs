//! The wire between a container runtime and its NRI plugins: two ttrpc connections, one in
//! each direction, over one unix stream.
//!
//! Knows frames, calls and the names of methods; decides nothing about containers. Whatever
//! the other side sends, the worst that comes of it is the end of the connection.

#![forbid(unsafe_code)]

mod connection;
pub mod frame;
mod plugin;
mod status;

pub use crate::{
    connection::{CallError, Caller, Ended, Request, Role, Service, connect},
    plugin::{About, Events, Plugin, PluginService},
    status::{Code, Status},
};

/// The service of the plugin, called by the runtime.
pub const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service of the runtime, called by the plugin.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
