//! One CDI spec file per claim: how a container runtime learns what a claim was granted.
//!
//! Specs are made from the lease and from a live `stat` of each device node, since major
//! numbers drift when a driver is loaded again and the folder is empty after a boot. A spec
//! has no hooks, uses the lowest `cdiVersion` that its fields need (older runtimes refuse a
//! file they do not know all of), and is replaced by a rename, so that a reader sees the old
//! one or the new one. Source of the rules: CDI `SPEC.md` and `specs-go`, version 1.1.0.

mod spec;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use accelpool_model::{ClaimId, Injection, Lease};

use self::spec::{ContainerEdits, DeviceNode, Mount, Spec};

/// Files of ours begin so: vendor and class, then the claim.
const PREFIX: &str = "accelpool.dev-claim_";
const SUFFIX: &str = ".json";
/// A file that was being written when its writer died ends so; runtimes do not read it.
const UNFINISHED: &str = ".json.tmp";

/// The folder that container runtimes read CDI specs from.
#[derive(Debug, Clone)]
pub struct SpecFolder {
    path: PathBuf,
}

/// What each allocation of a lease puts into a container, by the name of its target.
pub type Injections = BTreeMap<String, Injection>;

/// Why a spec was not written, read or removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum SpecError {
    #[error("failed to make the CDI folder `{path}`")]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error("failed to list the CDI folder `{path}`")]
    List { path: PathBuf, source: io::Error },
    #[error("failed to write CDI spec `{path}`")]
    Write { path: PathBuf, source: io::Error },
    #[error("failed to remove CDI spec `{path}`")]
    Remove { path: PathBuf, source: io::Error },
    #[error("failed to look at device node `{path}`")]
    Node { path: PathBuf, source: io::Error },
    #[error("`{path}` is no device node")]
    NotADevice { path: PathBuf },
    #[error("nothing is known of how to use {target}: its vendor has not listed it")]
    NoInjection { target: String },
}

impl SpecFolder {
    /// The folder at `path`, made if it is missing. Leftovers of a writer that died are removed:
    /// later, such a file may be one that is being written.
    pub fn open(path: &Path) -> Result<Self, SpecError> {
        fs::create_dir_all(path)
            .map_err(|source| SpecError::MakeFolder { path: path.to_owned(), source })?;
        let folder = Self { path: path.to_owned() };
        for name in folder.names()?.into_iter().filter(|name| name.ends_with(UNFINISHED)) {
            let path = path.join(format!("{PREFIX}{name}"));
            fs::remove_file(&path).map_err(|source| SpecError::Remove { path, source })?;
        }
        Ok(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the spec of `lease` is there and as it should be.
    pub fn is_right(&self, lease: &Lease, injections: &Injections) -> Result<bool, SpecError> {
        Ok(self.holds(&lease.claim.id, &render(lease, injections)?))
    }

    /// Makes the spec of `lease` right; true if the file was missing or different.
    pub fn mend(&self, lease: &Lease, injections: &Injections) -> Result<bool, SpecError> {
        let text = render(lease, injections)?;
        let differs = !self.holds(&lease.claim.id, &text);
        if differs {
            self.put(&lease.claim.id, &text)?;
        }
        Ok(differs)
    }

    /// Writes the spec of `lease`, whatever is there.
    pub fn write(&self, lease: &Lease, injections: &Injections) -> Result<(), SpecError> {
        self.put(&lease.claim.id, &render(lease, injections)?)
    }

    fn holds(&self, claim: &ClaimId, text: &str) -> bool {
        fs::read_to_string(self.spec_path(claim)).is_ok_and(|found| found == text)
    }

    fn put(&self, claim: &ClaimId, text: &str) -> Result<(), SpecError> {
        let path = self.spec_path(claim);
        let unfinished = self.path.join(format!("{PREFIX}{claim}{UNFINISHED}"));
        let failed = |source| SpecError::Write { path: path.clone(), source };
        let mut file = match File::create(&unfinished) {
            // The folder may have been taken away since the start (a tmpfs, a boot).
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.path).map_err(failed)?;
                File::create(&unfinished).map_err(failed)?
            }
            created => created.map_err(failed)?,
        };
        file.write_all(text.as_bytes()).map_err(failed)?;
        // Readable for all, as runtimes without root expect; device permissions guard access.
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
        fs::rename(&unfinished, &path).map_err(failed)
    }

    /// Removes the spec of `claim`. One that is gone counts as removed.
    pub fn remove(&self, claim: &ClaimId) -> Result<(), SpecError> {
        let path = self.spec_path(claim);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(SpecError::Remove { path, source }),
        }
    }

    /// The claims that have a spec in the folder.
    pub fn claims(&self) -> Result<BTreeSet<ClaimId>, SpecError> {
        let names = self.names()?;
        let claims = names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        Ok(claims.collect())
    }

    /// The names of our files, without what they all begin with.
    fn names(&self) -> Result<Vec<String>, SpecError> {
        let list = |source| SpecError::List { path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(list(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(list)?.file_name();
            names.extend(
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::to_owned),
            );
        }
        Ok(names)
    }

    fn spec_path(&self, claim: &ClaimId) -> PathBuf {
        self.path.join(format!("{PREFIX}{claim}{SUFFIX}"))
    }
}

/// The variable that a container has which was given `allocation` of `claim`, and its value.
pub(crate) fn grant_variable(
    claim: &ClaimId,
    allocation: &accelpool_model::Allocation,
) -> (String, String) {
    spec::grant_variable(&allocation.cdi_name(claim), allocation)
}

/// The spec of `lease` as text.
fn render(lease: &Lease, injections: &Injections) -> Result<String, SpecError> {
    let mut devices = Vec::new();
    for granted in lease.grant().devices {
        let allocation = &granted.allocation;
        let injection = injections
            .get(allocation.target())
            .ok_or_else(|| SpecError::NoInjection { target: allocation.target().to_owned() })?;
        let name = allocation.cdi_name(&lease.claim.id);
        let edits = ContainerEdits {
            env: spec::environment(&name, allocation, injection),
            device_nodes: injection.nodes.iter().map(device_node).collect::<Result<_, _>>()?,
            mounts: injection
                .mounts
                .iter()
                .map(Mount::read_only)
                .chain(injection.folders.iter().map(Mount::writable))
                .collect(),
        };
        devices.push(spec::Device { name, container_edits: edits });
    }
    let spec = Spec::new(Lease::CDI_KIND, devices);
    let mut text = serde_json::to_string_pretty(&spec).expect("a spec has only string keys");
    text.push('\n');
    Ok(text)
}

fn device_node(node: &accelpool_model::DeviceNode) -> Result<DeviceNode, SpecError> {
    let path = PathBuf::from(&node.host_path);
    let found =
        fs::metadata(&path).map_err(|source| SpecError::Node { path: path.clone(), source })?;
    let kind = if found.file_type().is_char_device() {
        "c"
    } else if found.file_type().is_block_device() {
        "b"
    } else {
        return Err(SpecError::NotADevice { path });
    };
    Ok(DeviceNode {
        path: node.container_path.clone(),
        host_path: (node.host_path != node.container_path).then(|| node.host_path.clone()),
        kind: kind.to_owned(),
        major: nix::sys::stat::major(found.rdev()),
        minor: nix::sys::stat::minor(found.rdev()),
        permissions: "rw".to_owned(),
    })
}
