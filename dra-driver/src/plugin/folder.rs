//! Notices that something changed in a folder, with one inotify or, without, by looking.
//!
//! Says only that it is time to look again: what is there is read afresh each time, so a
//! lost or doubled notice does no harm.

use std::{
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{io::unix::AsyncFd, time::sleep};

/// How often one looks where no notice comes: the kubelet is back within a second.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Even with notices one looks now and then: the folder itself may have been replaced.
const LOOK_ANYWAY_INTERVAL: Duration = Duration::from_secs(10);

/// A folder that is looked after.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    notices: Option<AsyncFd<Notices>>,
    refused: bool,
}

#[derive(Debug)]
struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Folder {
    /// Looks after the folder at `path`, which need not exist yet.
    #[must_use]
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), notices: None, refused: false }
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&mut self) {
        if self.notices.is_none() {
            self.notices = self.subscribe();
        }
        let Some(notices) = &self.notices else { return sleep(LOOK_INTERVAL).await };
        let gone = tokio::select! {
            gone = next(notices) => gone,
            () = sleep(LOOK_ANYWAY_INTERVAL) => !self.path.exists(),
        };
        if gone {
            self.notices = None;
        }
    }

    fn subscribe(&mut self) -> Option<AsyncFd<Notices>> {
        match subscribe(&self.path) {
            Ok(notices) => Some(notices),
            Err(Errno::ENOENT) => None,
            Err(error) => {
                if !self.refused {
                    // The usual reason is that `fs.inotify.max_user_instances` is used up.
                    tracing::warn!(%error, "no inotify: looking every second instead");
                }
                self.refused = true;
                None
            }
        }
    }
}

fn subscribe(path: &Path) -> Result<AsyncFd<Notices>, Errno> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let what = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(path, what)?;
    #[expect(
        deprecated,
        reason = "the one constructor without `unsafe`; its doubt is about types that close or \
                  change their descriptor, and `Notices` owns one and keeps it"
    )]
    AsyncFd::new(Notices(inotify)).map_err(|_| Errno::EIO)
}

/// Waits for the next notices and takes them; true if the folder itself is gone.
async fn next(notices: &AsyncFd<Notices>) -> bool {
    loop {
        let Ok(mut ready) = notices.readable().await else { return true };
        match notices.get_ref().0.read_events() {
            Ok(events) => {
                let gone = AddWatchFlags::IN_DELETE_SELF
                    | AddWatchFlags::IN_MOVE_SELF
                    | AddWatchFlags::IN_IGNORED;
                return events.iter().any(|event| event.mask.intersects(gone));
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_file_that_comes_or_goes_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(parent.path());
        folder.notices = folder.subscribe();
        assert!(folder.notices.is_some());
        fs::write(parent.path().join("x"), "").unwrap();
        folder.changed().await;
        fs::remove_file(parent.path().join("x")).unwrap();
        folder.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_notices_one_looks_each_second() {
        // What is no folder cannot be watched, as none can once inotify is used up.
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut folder = Folder::new(file.path());
        let began = Instant::now();
        for looks in 1..=3 {
            folder.changed().await;
            assert!(folder.notices.is_none() && folder.refused);
            let (at, looked) = (looks * LOOK_INTERVAL, began.elapsed());
            assert!((at..at + LOOK_INTERVAL / 10).contains(&looked), "{looked:?}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_looked_at_anew() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("folder");
        let mut folder = Folder::new(&path);
        assert!(folder.subscribe().is_none(), "there is nothing to subscribe to yet");
        fs::create_dir(&path).unwrap();
        folder.notices = folder.subscribe();
        fs::remove_dir(&path).unwrap();
        while folder.notices.is_some() {
            folder.changed().await;
        }
        fs::create_dir(&path).unwrap();
        assert!(folder.subscribe().is_some());
    }
}
