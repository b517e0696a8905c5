//! Creations and removals in a folder and the folders below it, as the kubelet's fsnotify
//! reports them: a rename away is neither.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

/// Something that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    Created(PathBuf),
    Removed(PathBuf),
}

pub(crate) struct Notices {
    inotify: AsyncFd<Descriptor>,
    folders: HashMap<WatchDescriptor, PathBuf>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Notices {
    /// Begins to watch `folder`; what is there already comes as created.
    pub(crate) fn of(folder: &Path) -> io::Result<(Self, Vec<Notice>)> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "the one constructor without `unsafe`; `Descriptor` owns its descriptor and \
                      keeps it, which is what its doubt is about"
        )]
        let inotify = AsyncFd::new(Descriptor(inotify))?;
        let mut notices = Self { inotify, folders: HashMap::new() };
        let mut found = Vec::new();
        notices.add(folder, &mut found)?;
        Ok((notices, found))
    }

    fn add(&mut self, folder: &Path, found: &mut Vec<Notice>) -> io::Result<()> {
        let what = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF;
        let descriptor = self.inotify.get_ref().0.add_watch(folder, what)?;
        self.folders.insert(descriptor, folder.to_owned());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path, found)?;
            } else {
                found.push(Notice::Created(path));
            }
        }
        Ok(())
    }

    /// The next notices.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<Notice>> {
        loop {
            let events = {
                let mut ready = self.inotify.readable().await?;
                match self.inotify.get_ref().0.read_events() {
                    Ok(events) => events,
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            let mut notices = Vec::new();
            for event in events {
                self.take(event, &mut notices)?;
            }
            return Ok(notices);
        }
    }

    fn take(&mut self, event: InotifyEvent, notices: &mut Vec<Notice>) -> io::Result<()> {
        let Some(folder) = self.folders.get(&event.wd) else { return Ok(()) };
        let Some(name) = event.name else { return Ok(()) };
        let path = folder.join(name);
        if event.mask.contains(AddWatchFlags::IN_DELETE) {
            notices.push(Notice::Removed(path));
        } else if path.is_dir() {
            self.add(&path, notices)?;
        } else {
            notices.push(Notice::Created(path));
        }
        Ok(())
    }
}
