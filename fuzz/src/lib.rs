//! Hostile input for everything that is parsed from outside.
//!
//! `targets` has one function per parser: it must not panic on any bytes, and holds the
//! parser to what it promises. Input comes from seeds, which are valid, and from recipes that
//! spoil them: random bytes alone rarely get past the first character of a format.

#![forbid(unsafe_code)]

mod recipe;
mod seeds;
pub mod targets;

pub use crate::{
    recipe::{Recipe, recipes},
    seeds::seeds,
};
