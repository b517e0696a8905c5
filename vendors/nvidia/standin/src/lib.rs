//! A stand-in for `libnvidia-ml.so.1`: the C interface that the adapter calls, without a GPU.
//!
//! It is loaded exactly as the driver's library is. One file says what machine it describes,
//! what fails, hangs or lies; it is read anew when it changes. What MIG calls make lies in a
//! file beside it, so that it outlives the process as it outlives one on real hardware. It
//! refuses to be right about anything that the adapter does not ask.
#![expect(unsafe_code, reason = "exports C functions that write through their callers' pointers")]

mod abi;
mod calls;
mod machine;
mod partition;
mod place;
mod settings;
