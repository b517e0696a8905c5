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
    match shell {
        Shell::Bash => {
            clap_complete::generate(shells::Bash, &mut command, "accelpool", &mut script)
        }
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, "accelpool", &mut script),
        Shell::Fish => {
            clap_complete::generate(shells::Fish, &mut command, "accelpool", &mut script)
        }
    }
    print_text(&String::from_utf8_lossy(&script))
}
