//! The gate in the kernel: opened, told what to admit, asked what it did.
//!
//! One pin holds all of it: the link pins the program to the cgroup, the program pins its
//! maps. So a gate is there as a whole or not at all, and outlives every process. To open
//! one adopts what is pinned. Nothing is taken down on drop.

mod maps;
mod program;
mod standing;

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{
    bpf::program::NAME,
    denials::Denials,
    device::{Access, DeviceNumber},
    error::GateError,
    layout::{self, LAYOUT, Map, grant_key},
    root::Cgroup,
    rules::{CgroupId, Guards, Mode, Rules},
    step::step,
    sys::{self, LinkFd, LoadedProgram, ProgramFd},
};

use maps::Maps;

pub use maps::Counts;
pub use standing::{AttachedProgram, Defect, Standing};

/// Where a gate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateConfig {
    /// The cgroup of version 2 that is held with all below it, such as the pods' one.
    pub root: PathBuf,
    /// The folder of the gate's pin, in a BPF file system. Made if only it is missing.
    pub pins: PathBuf,
}

/// The gate at one root.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    root: Cgroup,
    maps: Maps,
    program: ProgramFd,
    loaded: LoadedProgram,
    link: LinkFd,
}

impl Gate {
    /// The most pairs of cgroup and device that can be granted.
    pub const GRANTS_MAX: u32 = layout::GRANTS_MAX;

    /// Whether a gate could stand on this machine. Leaves nothing behind.
    pub fn check(config: &GateConfig) -> Result<(), GateError> {
        Cgroup::open(&config.root)?;
        expect_bpffs(&config.pins)?;
        let maps = Maps::create()?;
        program::load(&maps).map(drop)
    }

    /// Puts the gate up, or adopts the one that stands.
    ///
    /// One of another version of the program gets this one's in one step of the kernel. One
    /// whose root has gone, and was made anew, is attached to the new root before its
    /// old pin goes. A new gate guards nothing, so everything passes: write the grants first,
    /// then [`Gate::guard`].
    pub fn open(config: &GateConfig) -> Result<Self, GateError> {
        let root = Cgroup::open(&config.root)?;
        expect_bpffs(&config.pins)?;
        make_folder(&config.pins)?;
        let config = config.clone();
        let mut gate = match open_link(&pin_path(&config.pins))? {
            Some(link) => Self::adopt(config, root, link)?,
            None => Self::raise(config, root)?,
        };
        gate.repair()?;
        Ok(gate)
    }

    fn raise(config: GateConfig, root: Cgroup) -> Result<Self, GateError> {
        let maps = Maps::create()?;
        let program = program::load(&maps)?;
        let loaded = describe(&program)?;
        let link = attach(&program, &root)?;
        Ok(Self { config, root, maps, program, loaded, link })
    }

    fn adopt(config: GateConfig, root: Cgroup, link: LinkFd) -> Result<Self, GateError> {
        let foreign = || GateError::ForeignPin(pin_path(&config.pins));
        let attached = link.describe().map_err(inspect("describe the pinned link"))?;
        if !attached.is_device {
            return Err(foreign());
        }
        let opened = ProgramFd::open(attached.program);
        let found = describe(&opened.map_err(inspect("open the attached program"))?)?;
        if found.name != NAME {
            return Err(foreign());
        }
        let maps = Maps::of_program(&found)?.ok_or_else(foreign)?;
        let program = program::load(&maps)?;
        let loaded = describe(&program)?;
        Ok(Self { config, root, maps, program, loaded, link })
    }

    /// The number of a cgroup at or below the gate's root, by its folder.
    pub fn cgroup(&self, path: &Path) -> Result<CgroupId, GateError> {
        self.root.open_below(path).map(|cgroup| cgroup.id())
    }

    /// The numbers of a cgroup at or below the gate's root and of all above it, for
    /// [`Rules::decide`]: with [`Gate::rules`], what a process there can open.
    pub fn lineage(&self, path: &Path) -> Result<Vec<CgroupId>, GateError> {
        self.root.open_below(path)?.lineage()
    }

    /// Says which devices are guarded and how, in place of what was said before.
    ///
    /// A device that stays guarded is guarded at every moment, in the old mode or the new.
    pub fn guard(&self, guards: &Guards) -> Result<(), GateError> {
        self.maps.set_guards(guards)
    }

    /// Puts every guarded device into one mode, at once for each.
    pub fn set_mode(&self, mode: Mode) -> Result<(), GateError> {
        self.guard(&self.maps.guards()?.with_mode(mode))
    }

    /// Lets a cgroup, and all below it, do something with a device. Replaces what it was
    /// granted of this device before. Holds when the call returns.
    pub fn grant(
        &self,
        cgroup: CgroupId,
        device: DeviceNumber,
        access: Access,
    ) -> Result<(), GateError> {
        self.maps.update(Map::Grants, &grant_key(cgroup, device), &access.bits().to_ne_bytes())
    }

    /// Takes a grant back; one that is gone counts as taken back. What is open stays open.
    pub fn revoke(&self, cgroup: CgroupId, device: DeviceNumber) -> Result<(), GateError> {
        self.maps.delete(Map::Grants, &grant_key(cgroup, device))
    }

    /// Lets a cgroup, and all below it, open everything.
    pub fn exempt(&self, cgroup: CgroupId) -> Result<(), GateError> {
        self.maps.update(Map::Exemptions, &cgroup.0.to_ne_bytes(), &[0; 4])
    }

    /// Ends an exemption; one that is gone counts as ended.
    pub fn end_exemption(&self, cgroup: CgroupId) -> Result<(), GateError> {
        self.maps.delete(Map::Exemptions, &cgroup.0.to_ne_bytes())
    }

    /// Reads back everything by which the kernel decides.
    pub fn rules(&self) -> Result<Rules, GateError> {
        self.maps.rules()
    }

    /// How often devices were refused, or would have been; in the order of numbers. What
    /// belongs to `None` came of too many different numbers, such as a tenant can make up.
    pub fn counts(&self) -> Result<Vec<(Option<DeviceNumber>, Counts)>, GateError> {
        self.maps.counts()
    }

    /// The reader of denials. Only one may be in use at a time.
    pub fn denials(&self) -> Result<Denials, GateError> {
        Denials::open(self.maps.reopen(Map::Denials)?)
    }

    /// Takes the gate down: everything passes.
    pub fn remove(self) -> Result<(), GateError> {
        remove_pin(&pin_path(&self.config.pins))?;
        self.link.detach().map_err(inspect("detach the gate"))
    }

    /// The program as it was loaded, for tests that need another version of it.
    #[cfg(test)]
    pub(crate) fn code(&self) -> Vec<[u8; 8]> {
        program::encode(&self.maps)
    }

    /// The numbers of the map of grants, the program and the link, for tests of who gets at them.
    #[cfg(test)]
    pub(crate) fn numbers(&self) -> (u32, u32, u32) {
        let link = self.link.describe().expect("it can be asked");
        let program = self.program.describe().expect("it can be asked");
        (program.maps[0], link.program, link.id)
    }

    /// Makes the link hold our program at our root, and pins it. Does nothing where that is so.
    pub fn repair(&mut self) -> Result<(), GateError> {
        let attached = self.link.describe().map_err(inspect("describe the gate's link"))?;
        // The folder may have been removed and made anew since it was opened.
        self.root = Cgroup::open(&self.config.root)?;
        if attached.cgroup == self.root.id().0 {
            self.repair_program(attached.program)?;
        } else {
            self.link = attach(&self.program, &self.root)?;
            step("gate.attached");
        }
        self.repair_pin()
    }

    fn repair_program(&self, attached: u32) -> Result<(), GateError> {
        let found = ProgramFd::open(attached).map_err(inspect("open the attached program"))?;
        if describe(&found)?.is_same(&self.loaded) {
            return Ok(());
        }
        let refuse = |source| GateError::Attach { root: self.root.path().to_owned(), source };
        self.link.replace_program(&self.program).map_err(refuse)?;
        step("gate.replaced");
        Ok(())
    }

    /// Sets the pin beside the old one, then puts it in its place: there is always one.
    fn repair_pin(&self) -> Result<(), GateError> {
        let path = pin_path(&self.config.pins);
        let own = self.link.describe().map_err(inspect("describe the gate's link"))?;
        if let Some(pinned) = open_link(&path)? {
            let pinned = pinned.describe().map_err(inspect("describe the pinned link"))?;
            if pinned.id == own.id {
                return Ok(());
            }
        }
        make_folder(&self.config.pins)?;
        let next = self.config.pins.join(format!("gate-{LAYOUT}-next"));
        remove_pin(&next)?;
        sys::pin(&self.link, &next).map_err(pin_error("pin the link at", &next))?;
        step("gate.pinned-beside");
        fs::rename(&next, &path).map_err(pin_error("replace the pin", &path))?;
        step("gate.pinned");
        Ok(())
    }
}

/// The pin of a gate with this layout of maps. The kernel allows no dot in the name.
fn pin_path(pins: &Path) -> PathBuf {
    pins.join(format!("gate-{LAYOUT}"))
}

fn open_link(path: &Path) -> Result<Option<LinkFd>, GateError> {
    match LinkFd::open(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(GateError::ForeignPin(path.to_owned()))
        }
        Err(error) => Err(pin_error("open the pin", path)(error)),
    }
}

/// Removes a pin; one that is gone counts as removed.
fn remove_pin(path: &Path) -> Result<(), GateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove the pin", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn attach(program: &ProgramFd, root: &Cgroup) -> Result<LinkFd, GateError> {
    LinkFd::create(program, root.as_fd()).map_err(|source| match source.raw_os_error() {
        // The process got as far as to load a program, so it may; what stands in the way is
        // a program without `BPF_F_ALLOW_MULTI`.
        Some(libc::EPERM) => GateError::RootHeld(root.path().to_owned()),
        Some(_) | None => GateError::Attach { root: root.path().to_owned(), source },
    })
}

/// Nothing can be pinned elsewhere. The folder itself may be missing.
fn expect_bpffs(pins: &Path) -> Result<(), GateError> {
    let nearest = if pins.exists() { Some(pins) } else { pins.parent() };
    let kind = nearest.and_then(|path| statfs(path).ok()).map(|it| it.filesystem_type());
    if kind == Some(BPF_FS_MAGIC) { Ok(()) } else { Err(GateError::NotBpffs(pins.to_owned())) }
}

fn make_folder(pins: &Path) -> Result<(), GateError> {
    match fs::DirBuilder::new().mode(0o700).create(pins) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(pin_error("make the folder", pins)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn describe(program: &ProgramFd) -> Result<LoadedProgram, GateError> {
    program.describe().map_err(inspect("describe a program"))
}

fn inspect(action: &'static str) -> impl Fn(io::Error) -> GateError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM) => GateError::NotPermitted { action },
        Some(_) | None => GateError::Inspect { action, source },
    }
}

fn pin_error<'path>(
    action: &'static str,
    path: &'path Path,
) -> impl Fn(io::Error) -> GateError + use<'path> {
    move |source| GateError::Pin { action, path: path.to_owned(), source }
}
