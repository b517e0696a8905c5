//! How a function of the driver is written down once and known to the loader and to look-ups.

use std::ffi::c_void;

/// The address of an exported function.
#[derive(Clone, Copy)]
pub(crate) struct Address(pub(crate) *const c_void);

// SAFETY: the address of code, which never changes.
unsafe impl Sync for Address {}
// SAFETY: as above.
unsafe impl Send for Address {}

/// A name and what it is the name of.
pub(crate) type Table = &'static [(&'static str, Address)];

/// Which stream a null handle means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Legacy,
    PerThread,
}

/// Functions of which there is one.
macro_rules! exports {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub(crate) extern "C" fn $name($($argument: $type),*) -> $crate::abi::Code {
                let run = || -> Result<(), $crate::abi::Code> { $body };
                run().err().unwrap_or($crate::abi::SUCCESS)
            }
        )*
        pub(crate) static TABLE: $crate::exports::Table = &[$(
            (stringify!($name), $crate::exports::Address($name as *const std::ffi::c_void)),
        )*];
    };
}

/// Functions on a stream: each with its other self for the per-thread default stream.
macro_rules! stream_exports {
    ($variant:ident;
     $($(#[$meta:meta])* fn $name:ident/$other:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub(crate) extern "C" fn $name($($argument: $type),*) -> $crate::abi::Code {
                let $variant = $crate::exports::Variant::Legacy;
                let run = || -> Result<(), $crate::abi::Code> { $body };
                run().err().unwrap_or($crate::abi::SUCCESS)
            }
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub(crate) extern "C" fn $other($($argument: $type),*) -> $crate::abi::Code {
                let $variant = $crate::exports::Variant::PerThread;
                let run = || -> Result<(), $crate::abi::Code> { $body };
                run().err().unwrap_or($crate::abi::SUCCESS)
            }
        )*
        pub(crate) static STREAM_TABLE: $crate::exports::Table = &[$(
            (stringify!($name), $crate::exports::Address($name as *const std::ffi::c_void)),
            (stringify!($other), $crate::exports::Address($other as *const std::ffi::c_void)),
        )*];
    };
}

pub(crate) use {exports, stream_exports};
