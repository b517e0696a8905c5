//! Brings the gate's program into the kernel, and says why where the kernel refuses.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use crate::{
    bpf::program::{NAME, assemble},
    error::GateError,
    gate::maps::Maps,
    sys::ProgramFd,
};

/// Room for what the verifier says of a program of this length.
const LOG_BYTES: usize = 1 << 20;

/// As much of it as an error carries.
const LOG_LINES_MAX: usize = 4;

/// Loads the program over `maps`.
pub(super) fn load(maps: &Maps) -> Result<ProgramFd, GateError> {
    let code = encode(maps);
    ProgramFd::load(NAME, &code, None).or_else(|_| {
        // Once more, to hear why: to write the log takes longer than to load.
        let mut log = vec![0; LOG_BYTES];
        ProgramFd::load(NAME, &code, Some(&mut log))
            .map_err(|error| explain(error, &crate::sys::text(&log)))
    })
}

/// The program as the kernel reads it, with the descriptors of `maps`.
pub(super) fn encode(maps: &Maps) -> Vec<[u8; 8]> {
    let mut program = assemble();
    for (at, map) in &program.maps {
        program.instructions[*at].immediate = maps.get(*map).as_fd().as_raw_fd();
    }
    program.instructions.iter().map(|it| it.encode()).collect()
}

fn explain(source: io::Error, log: &str) -> GateError {
    match source.raw_os_error() {
        Some(libc::EPERM) => GateError::NotPermitted { action: "load a BPF program" },
        Some(libc::EINVAL) if log.is_empty() => GateError::NoCgroupPrograms,
        Some(_) | None => match helper_in(log) {
            Some(helper) => GateError::NoHelper { helper: helper.to_owned() },
            None => GateError::Refused { log: last_lines(log), source },
        },
    }
}

/// The helper that the verifier does not allow. Kernels say it in one of these ways:
/// `unknown func bpf_x#1`, `invalid func unknown#1`, `program of this type cannot use helper
/// bpf_x#1`.
fn helper_in(log: &str) -> Option<&str> {
    let marks = ["unknown func ", "invalid func ", "cannot use helper "];
    let rest = marks.into_iter().find_map(|mark| log.split_once(mark))?.1;
    rest.split_whitespace().next()
}

fn last_lines(log: &str) -> String {
    // The last one or two are the verifier's statistics; they stay, for they do no harm.
    let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_MAX).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::assembler::{Instruction, code};

    #[track_caller]
    fn check(errno: i32, log: &str, expected: &str) {
        let error = explain(io::Error::from_raw_os_error(errno), log);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn this_kernel_names_what_it_does_not_allow() {
        // A call of `bpf_skb_load_bytes`, which is for packets, then exit.
        let call = Instruction { code: code::CALL, immediate: 26, ..Instruction::default() };
        let exit = Instruction { code: code::EXIT, ..Instruction::default() };
        let program = [call.encode(), exit.encode()];
        let mut log = vec![0; LOG_BYTES];
        let error = ProgramFd::load(NAME, &program, Some(&mut log)).expect_err("it is forbidden");
        let error = explain(error, &crate::sys::text(&log));
        let GateError::NoHelper { helper } = &error else { panic!("{error}") };
        assert_eq!(helper, "bpf_skb_load_bytes#26");
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let helper = "the kernel does not let a device program call \
                      `bpf_get_current_ancestor_cgroup_id#123`, which the gate needs";
        let name = "bpf_get_current_ancestor_cgroup_id#123";
        check(libc::EINVAL, &format!("25: (85) call x\nunknown func {name}\nprocessed 7"), helper);
        check(libc::EINVAL, &format!("program of this type cannot use helper {name}\n"), helper);
        check(libc::EINVAL, "", "the kernel runs no BPF programs at cgroups (CONFIG_CGROUP_BPF)");
        check(
            libc::EACCES,
            "a\nb\nR1 invalid mem access\nprocessed 7 insns\n\n",
            "the kernel refuses the gate's program: b; R1 invalid mem access; processed 7 insns; ",
        );
    }
}
