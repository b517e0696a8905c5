//! A claim's folder: the control page and the socket, which CDI mounts into its containers.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use accelpool_shim::{CONTROL_FILE, SOCKET_FILE, layout::ControlPage, mapping::Mapping};

use crate::sys;

/// Tenants of any user id must get in; the mount and the claim's containers are what keeps
/// others out.
const FOLDER_MODE: u32 = 0o755;
const CONTROL_MODE: u32 = 0o644;
const SOCKET_MODE: u32 = 0o666;

/// An open claim's folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    pub(crate) control: Mapping<ControlPage>,
    pub(crate) listener: UnixListener,
}

impl Folder {
    /// Makes the folder, or takes over what an earlier daemon left: the control page is written
    /// in place, since tenants have it mapped; the socket is made anew.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(FOLDER_MODE))?;
        let control = path.join(CONTROL_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(CONTROL_MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&control)?;
        file.set_permissions(Permissions::from_mode(CONTROL_MODE))?;
        let control = Mapping::<ControlPage>::of_own_file(file.as_fd())?;
        let socket = path.join(SOCKET_FILE);
        remove(&socket)?;
        let folder: OwnedFd = File::open(&path)?.into();
        let listener = sys::listener(&folder, SOCKET_FILE)?;
        fs::set_permissions(&socket, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self { path, control, listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder. Who has it mounted keeps the control page, which says that the claim
    /// is over.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
