//! House checks that neither the compiler nor clippy can make.
//!
//! `cargo run -p xtask -- tidy` prints each violation as `path:line: message` and fails
//! if there is one; `cargo test -p xtask` runs the same checks. Nothing is changed or
//! built, and no other crate imports this one.

#![forbid(unsafe_code)]

mod tidy;
mod tree;
mod workspace;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments != ["tidy"] {
        bail!("usage: xtask tidy");
    }
    let violations = tidy::run(&tree::root())?;
    for violation in &violations {
        println!("{violation}");
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
