//! The socket: made so that nobody can connect before its permissions are right.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use super::Access;

/// The bound socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    listener: Option<UnixListener>,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum BindError {
    #[error("another daemon serves `{path}`")]
    InUse { path: PathBuf },
    #[error("`{path}` exists and is no socket: move it away")]
    NotASocket { path: PathBuf },
    #[error("failed to make the socket `{path}`")]
    Make { path: PathBuf, source: io::Error },
}

impl BindError {
    /// The code of the page that tells what to do.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "AP0011"
    }
}

impl Listener {
    /// Binds `path`; a socket that a dead daemon left behind is replaced.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, BindError> {
        let make = |source| BindError::Make { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(make)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => {
                return Err(BindError::InUse { path: path.to_owned() });
            }
            Ok(_) | Err(_) => {}
        }
        // Bound under another name, given its owner and mode, and only then renamed to where
        // callers look: there is no moment in which the wrong ones can connect.
        let unready = path.with_extension("sock.new");
        match fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(make(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = StdUnixListener::bind(&unready).map_err(make)?;
        if let Some(gid) = access.gid() {
            nix::unistd::chown(&unready, None, Some(gid)).map_err(|e| make(e.into()))?;
        }
        fs::set_permissions(&unready, fs::Permissions::from_mode(0o660)).map_err(make)?;
        fs::rename(&unready, path).map_err(make)?;
        listener.set_nonblocking(true).map_err(make)?;
        let listener = UnixListener::from_std(listener).map_err(make)?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    /// The stream of connections.
    ///
    /// # Panics
    ///
    /// If called twice.
    pub fn incoming(&mut self) -> tokio_stream::wrappers::UnixListenerStream {
        let listener = self.listener.take().expect("connections are taken once");
        tokio_stream::wrappers::UnixListenerStream::new(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another daemon may have replaced it; then this is that daemon's next start's work.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/node.sock");
        let access = Access::new("no-such-group");
        let live = Listener::bind(&path, &access).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = Listener::bind(&path, &access).unwrap_err().to_string();
        assert_eq!(error, format!("another daemon serves `{}`", path.display()));
        // A daemon that is killed does not run its destructors.
        drop(StdUnixListener::bind(dir.path().join("other")).unwrap());
        drop(live);
        assert!(!path.exists());
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&path, &access).unwrap();
    }

    #[tokio::test]
    async fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.sock");
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, &Access::new("x")).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
