//! `accelpool completion`

use clap::CommandFactory;
use clap_complete::shells;

use crate::{
    args::{Arguments, Shell},
    failure::Failure,
    output::print_text,
};

pub(super) fn run(shell: Shell) -> Result<(), Failure> {
    let mut command = Arguments::command();
    let mut script = Vec::new();
    let shell = match shell {
        Shell::Bash => shells::Shell::Bash,
        Shell::Zsh => shells::Shell::Zsh,
        Shell::Fish => shells::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "accelpool", &mut script);
    print_text(&String::from_utf8_lossy(&script))
}
