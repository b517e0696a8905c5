//! Unix sockets that this program serves on, and the files they leave behind.
//!
//! A socket file is removed only when its owner says so, and only if it is still the one
//! that was bound: another program may have taken the path since. A crash leaves the file,
//! as the kubelet expects; the next start with the same path takes its place.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// The longest path that fits a socket address, without the closing zero (`unix(7)`).
const PATH_LEN_MAX: usize = 107;

/// From binding to listening a program takes microseconds.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);

/// A file that can be told from any later one at the same path: while it is held, its inode
/// is not given to another.
#[derive(Debug)]
pub struct HeldFile {
    held: File,
}

impl HeldFile {
    /// The file that is at `path` now. It is not opened for anything but this.
    ///
    /// # Errors
    ///
    /// There is none, or the system refuses.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let held = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        Ok(Self { held })
    }

    /// True if it is still the one at `path`.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let (Ok(there), Ok(held)) = (fs::symlink_metadata(path), self.held.metadata()) else {
            return false;
        };
        (there.dev(), there.ino()) == (held.dev(), held.ino())
    }
}

/// The file of a socket that this process bound.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    held: HeldFile,
}

/// Listens on a socket at `path`, in the place of whatever stale socket is there.
///
/// # Errors
///
/// The folder cannot be made, the path is too long, or something else than a socket is there.
pub fn bind(path: &Path) -> Result<(UnixListenerStream, SocketFile), BindError> {
    if path.as_os_str().len() > PATH_LEN_MAX {
        return Err(BindError::TooLong { path: path.to_owned() });
    }
    let failed = |source| BindError::Bind { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    remove_stale(path).map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    let held = HeldFile::at(path).map_err(failed)?;
    Ok((UnixListenerStream::new(listener), SocketFile { path: path.to_owned(), held }))
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit a socket address.
    #[error("`{path}` is longer than the {PATH_LEN_MAX} bytes that a socket's path may have")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("failed to listen on `{path}`")]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the file is still there and still ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.held.is_at(&self.path)
    }

    /// Removes the file, unless another program has put its own there.
    pub fn remove(self) {
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket could not be removed");
        }
    }
}

/// Removes the sockets beside `own` whose names are `ours` and which nobody has served for a
/// while. One that is younger may belong to a program that is just starting.
pub fn sweep(own: &Path, ours: impl Fn(&str) -> bool) {
    let Some(entries) = own.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(&ours);
        if path != own && named && is_abandoned(&path) {
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "abandoned socket removed"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "socket stays"),
            }
        }
    }
}

fn is_abandoned(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let age = metadata.modified().ok().and_then(|made| made.elapsed().ok());
    metadata.file_type().is_socket()
        && age.is_some_and(|age| age > ABANDONED_AFTER)
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes a socket. Anything else is not ours to remove, and binding then fails.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/x.sock");
        let (_, first) = bind(&path).unwrap();
        let (_, second) = bind(&path).unwrap();
        assert!(!first.is_ours());
        assert!(second.is_ours());

        let plain = folder.path().join("plain");
        fs::write(&plain, "kept").unwrap();
        assert!(matches!(bind(&plain), Err(BindError::Bind { .. })));
        assert_eq!(fs::read_to_string(&plain).unwrap(), "kept");
    }

    #[tokio::test]
    async fn only_the_owner_removes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let (_, first) = bind(&path).unwrap();
        let (_, second) = bind(&path).unwrap();
        first.remove();
        assert!(path.exists(), "the later owner's socket stays");
        second.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_that_fits_no_address_is_refused() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(108)));
        assert!(matches!(bind(&path), Err(BindError::TooLong { .. })));
    }

    #[tokio::test]
    async fn only_what_is_old_and_not_served_is_swept() {
        use nix::sys::{
            stat::{UtimensatFlags, utimensat},
            time::TimeSpec,
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let age = |name: &str| {
            let old = TimeSpec::new(1_000_000_000, 0);
            let flags = UtimensatFlags::NoFollowSymlink;
            utimensat(nix::fcntl::AT_FDCWD, &at(name), &old, &old, flags).unwrap();
        };
        let served = bind(&at("dra-served.sock")).unwrap();
        for name in ["dra-old.sock", "dra-new.sock", "other.sock", "dra-own.sock"] {
            drop(bind(&at(name)).unwrap());
        }
        fs::write(at("dra-file.sock"), "").unwrap();
        for name in
            ["dra-served.sock", "dra-old.sock", "other.sock", "dra-own.sock", "dra-file.sock"]
        {
            age(name);
        }
        sweep(&at("dra-own.sock"), |name| name.starts_with("dra-"));
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(
            left,
            ["dra-file.sock", "dra-new.sock", "dra-own.sock", "dra-served.sock", "other.sock"]
        );
        drop(served);
    }
}
