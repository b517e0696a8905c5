//! Finds, opens and closes the library.
//!
//! It is open between calls only while it is of use: [`Library::close`] closes every file that
//! it holds, so that the driver can be unloaded or a device given away.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use accelpool_vendor_api::VendorError;

use crate::{
    roots::Roots,
    sys::{CallError, LoadError, Nvml},
};

/// The name with the number of the interface: the one without is for compilers.
const SONAME: &str = "libnvidia-ml.so.1";

/// Where drivers put their libraries, below the driver's root: Debian and its kin, Fedora and
/// its kin, then the places of container-optimized systems.
pub(crate) const FOLDERS: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "lib64",
    "usr/local/nvidia/lib64",
    "home/kubernetes/bin/nvidia/lib64",
    "usr/lib",
];

/// The library of one machine.
#[derive(Debug)]
pub(crate) struct Library {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
enum State {
    /// It may be opened.
    #[default]
    Closed,
    /// It was closed by request: only a call that needs it opens it, not one that waits.
    Quiet,
    Open(Arc<Nvml>),
}

/// Who asks for the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A call that needs an answer.
    Asking,
    /// A call that waits for whatever comes.
    Waiting,
}

impl Library {
    pub(crate) fn new() -> Self {
        Self { state: RwLock::default() }
    }

    /// Runs `call` with the library, which stays open meanwhile.
    ///
    /// `call` gets none where this machine has no NVIDIA driver, or where the library is kept
    /// closed and `caller` does not need it.
    pub(crate) fn with<T>(
        &self,
        roots: &Roots,
        caller: Caller,
        call: impl FnOnce(Option<&Arc<Nvml>>) -> Result<T, VendorError>,
    ) -> Result<T, VendorError> {
        // Poison means a panic elsewhere; the state is replaced whole, so it is still good.
        let mut state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let quiet = caller == Caller::Waiting && matches!(*state, State::Quiet);
        if !matches!(*state, State::Open(_)) && !quiet {
            drop(state);
            self.open(roots)?;
            state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        }
        let answer = match &*state {
            State::Open(nvml) => call(Some(nvml)),
            State::Closed | State::Quiet => call(None),
        };
        drop(state);
        if matches!(answer, Err(VendorError::Library(_))) {
            self.close_if_open();
        }
        answer
    }

    /// Opens it if it is not open; a machine without driver leaves it closed.
    fn open(&self, roots: &Roots) -> Result<(), VendorError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Open(_)) {
            return Ok(());
        }
        match load(roots) {
            Ok(nvml) => {
                *state = State::Open(Arc::new(nvml));
                Ok(())
            }
            Err(_) if !roots.has_driver() => Ok(()),
            Err(error) => Err(VendorError::Library(error)),
        }
    }

    /// Closes it, after the calls that run have ended. `before` drops what else keeps it open.
    ///
    /// False if something still does.
    pub(crate) fn close(&self, before: impl FnOnce()) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        before();
        match std::mem::replace(&mut *state, State::Quiet) {
            State::Open(nvml) => Arc::try_unwrap(nvml).map(drop).is_ok(),
            State::Closed | State::Quiet => true,
        }
    }

    /// Has the next call open it anew: the driver changed under it.
    pub(crate) fn close_if_open(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Open(_)) {
            *state = State::Closed;
        }
    }
}

/// Loads the first library that can be; the error tells of each that was tried.
fn load(roots: &Roots) -> Result<Nvml, String> {
    let mut tried = Vec::new();
    for path in candidates(roots) {
        match Nvml::load(&path) {
            Ok(nvml) => return Ok(nvml),
            // It is the right one and says that it cannot: another would say no better.
            Err(LoadError::Initialize(error)) => {
                return Err(format!("`{}`: {}", path.display(), initialize_words(&error)));
            }
            Err(error) => tried.push(format!("`{}`: {error}", path.display())),
        }
    }
    if tried.is_empty() {
        return Err(format!("`{SONAME}` is not below `{}`", roots.driver.display()));
    }
    Err(tried.join("; "))
}

fn initialize_words(error: &CallError) -> String {
    if error.is_unusable() {
        return format!("{error}; was the driver upgraded or unloaded under it?");
    }
    error.to_string()
}

fn candidates(roots: &Roots) -> Vec<PathBuf> {
    let folder = FOLDERS.iter().map(|folder| roots.driver.join(folder).join(SONAME));
    let mut found: Vec<PathBuf> = folder.filter(|path| path.exists()).take(1).collect();
    if roots.driver == Path::new("/") {
        // What the loader's cache knows, for a distribution with places of its own.
        found.push(SONAME.into());
    }
    found
}
