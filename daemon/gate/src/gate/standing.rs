//! Whether the gate still stands as it was put up, and what stands beside it.

use std::{
    fmt, fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crate::{
    bpf::program::NAME,
    error::GateError,
    gate::{Gate, inspect, open_link, pin_error, pin_path, remove_pin},
    root::Cgroup,
    sys::{self, LinkFd, LoadedProgram, ProgramFd},
};

/// A device program at a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedProgram {
    /// Its number in the kernel.
    pub id: u32,
    /// Its name; whoever loads a program chooses it.
    pub name: String,
    /// The kernel's hash over its instructions: the same for the same version of a program.
    pub tag: [u8; 8],
    /// Whether it is this gate's, in this version.
    pub is_ours: bool,
}

impl fmt::Display for AttachedProgram {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, tag, is_ours } = self;
        let name = if name.is_empty() { "nameless" } else { name };
        let ours = if *is_ours { ", ours" } else { "" };
        write!(formatter, "program {id} {name} {:016x}{ours}", u64::from_be_bytes(*tag))
    }
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    /// The link holds no cgroup, or another than the root: the root was removed and made
    /// anew, or somebody detached the link.
    Detached,
    /// The link holds another program.
    OtherProgram,
    /// The kernel does not list the program among those of the root.
    NotListed,
    /// The pin is gone, or holds another link: the gate would end with this process.
    Unpinned,
    /// A gate of another layout of maps stands beside this one. Both must admit; see
    /// [`Gate::remove_others`].
    Other(PathBuf),
}

/// The state of a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The device programs at the root itself, in the order in which they run.
    pub programs: Vec<AttachedProgram>,
    /// What is not as it should be; nothing, as a rule. [`Gate::repair`] mends all but others.
    pub defects: Vec<Defect>,
}

impl Gate {
    /// Asks the kernel how the gate stands. Changes nothing.
    pub fn verify(&self) -> Result<Standing, GateError> {
        let root = Cgroup::open(&self.config.root)?;
        let programs = self.programs_at(&root, false)?;
        let link = self.link.describe().map_err(inspect("describe the gate's link"))?;
        let mut defects = Vec::new();
        if link.cgroup != root.id().0 {
            defects.push(Defect::Detached);
        } else if !programs.iter().any(|it| it.id == link.program) {
            defects.push(Defect::NotListed);
        } else if !programs.iter().any(|it| it.id == link.program && it.is_ours) {
            defects.push(Defect::OtherProgram);
        }
        let pinned = open_link(&pin_path(&self.config.pins));
        let pinned = pinned.ok().flatten().and_then(|it| it.describe().ok());
        if pinned.map(|it| it.id) != Some(link.id) {
            defects.push(Defect::Unpinned);
        }
        defects.extend(self.others()?.into_iter().map(Defect::Other));
        Ok(Standing { programs, defects })
    }

    /// The device programs that a process in a cgroup below the root has to pass: the
    /// container runtime's own, those of each ancestor, and this gate's.
    pub fn programs_of(&self, cgroup: &Path) -> Result<Vec<AttachedProgram>, GateError> {
        self.programs_at(&self.root.open_below(cgroup)?, true)
    }

    /// The numbers of these programs: enough to tell whether others run than before.
    pub fn program_ids_of(&self, cgroup: &Path) -> Result<Vec<u32>, GateError> {
        let cgroup = self.root.open_below(cgroup)?;
        let ids = sys::attached_programs(cgroup.as_fd(), true);
        ids.map_err(inspect("list the programs of a cgroup"))
    }

    /// Takes down gates of other layouts that stand beside this one: after an upgrade, once
    /// this one has its grants and guards.
    pub fn remove_others(&self) -> Result<(), GateError> {
        for path in self.others()? {
            // What is no link holds no program, and only its pin goes.
            if let Ok(link) = LinkFd::open(&path) {
                link.detach().map_err(inspect("detach a gate of another layout"))?;
            }
            remove_pin(&path)?;
        }
        Ok(())
    }

    fn others(&self) -> Result<Vec<PathBuf>, GateError> {
        let refuse = pin_error("list", &self.config.pins);
        let entries = match fs::read_dir(&self.config.pins) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(&refuse)?,
        };
        let own = pin_path(&self.config.pins);
        let mut others = Vec::new();
        for entry in entries {
            let path = entry.map_err(&refuse)?.path();
            let is_gate =
                path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"gate-"));
            if is_gate && path != own {
                others.push(path);
            }
        }
        others.sort();
        Ok(others)
    }

    fn programs_at(
        &self,
        cgroup: &Cgroup,
        effective: bool,
    ) -> Result<Vec<AttachedProgram>, GateError> {
        let ids = sys::attached_programs(cgroup.as_fd(), effective);
        let ids = ids.map_err(inspect("list the programs of a cgroup"))?;
        // One that is detached while we look is left out.
        let loaded = ids.into_iter().filter_map(|id| ProgramFd::open(id).ok()?.describe().ok());
        let describe = |it: LoadedProgram| {
            let is_ours = it.is_same(&self.loaded);
            AttachedProgram { id: it.id, name: it.name, tag: it.tag, is_ours }
        };
        Ok(loaded.map(describe).collect())
    }
}

impl LoadedProgram {
    /// Whether it does the same with the same maps.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.tag) == (&other.name, other.tag)
            && self.name == NAME
            && self.maps.iter().all(|map| other.maps.contains(map))
            && self.maps.len() == other.maps.len()
    }
}
