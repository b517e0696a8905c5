//! The gate as BPF instructions: how they are written, and which they are.
//!
//! Pure: what comes out is a list of numbers, which the kernel runs and, in tests, an
//! interpreter.

pub(crate) mod assembler;
#[cfg(test)]
mod interpreter;
pub(crate) mod program;
#[cfg(test)]
pub(crate) mod tests;
