//! A stand-in for CUDA's `libcuda.so.1`: the driver API, without a GPU and without arithmetic.
//!
//! What it runs takes the time it claims, on an engine that all processes share (see
//! `accelpool-cuda-engine`); what it allocates is counted there. Functions that it does not
//! play answer that they are not supported. It refuses to be right about anything that no
//! program of the tests asks, and to serve CUDA's runtime, which needs private tables.
#![expect(unsafe_code, reason = "exports C functions that write through their callers' pointers")]
#![allow(non_snake_case, reason = "the names are CUDA's")]

mod abi;
mod calls;
mod exports;
mod graph;
mod link;
mod memory;
mod state;
