//! A vendor whose library is kept closed for a while: a driver is changed, a device given away.
//!
//! While it lasts every call is refused at once, and nothing opens the library. It ends by itself,
//! and outlives the daemon in a file of the run folder, which a boot clears: a daemon that is
//! started anew in the middle of a driver's upgrade must not open the driver again.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tracing::warn;

use crate::node::now_ms;

/// The end is written as a number; what is longer is none.
const FILE_LEN_MAX: usize = 24;

/// Until when a vendor is paused.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Milliseconds since the Unix epoch; in the past while there is no pause.
    until_ms: AtomicU64,
    file: Option<PathBuf>,
}

impl Pause {
    /// The pause that `file` tells of, which later ones are noted in.
    pub(super) fn at(file: PathBuf) -> Self {
        let until_ms = match fs::read_to_string(&file) {
            Ok(text) if text.len() <= FILE_LEN_MAX => text.trim().parse().unwrap_or_else(|_| {
                warn!(file = %file.display(), "it tells of no pause: taken for none");
                0
            }),
            Ok(_) => 0,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(file = %file.display(), %error, "a pause may not be known");
                }
                0
            }
        };
        Self { until_ms: AtomicU64::new(until_ms), file: Some(file) }
    }

    /// When the pause ends, if there is one.
    pub(super) fn until_ms(&self) -> Option<u64> {
        let until_ms = self.until_ms.load(Ordering::SeqCst);
        (until_ms > now_ms()).then_some(until_ms)
    }

    /// Begins a pause, in place of one that may be.
    pub(super) fn begin(&self, length: Duration) -> io::Result<()> {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let until_ms = now_ms().saturating_add(length);
        // On disk first: what was answered holds after a crash.
        if let Some(file) = &self.file {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            let next = file.with_extension("next");
            fs::write(&next, until_ms.to_string())?;
            fs::rename(next, file)?;
        }
        self.until_ms.store(until_ms, Ordering::SeqCst);
        Ok(())
    }

    /// Ends the pause; true if there was one.
    pub(super) fn end(&self) -> io::Result<bool> {
        if let Some(file) = &self.file {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let was = self.until_ms().is_some();
        self.until_ms.store(0, Ordering::SeqCst);
        Ok(was)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_daemon_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("paused/sim");
        let paused = || Pause::at(file.clone()).until_ms().is_some();
        let pause = Pause::at(file.clone());
        assert!(!paused() && pause.until_ms().is_none());
        pause.begin(Duration::from_hours(1)).unwrap();
        assert!(paused() && pause.until_ms().is_some());
        assert!(pause.end().unwrap() && !pause.end().unwrap());
        assert!(!paused() && pause.until_ms().is_none());
        pause.begin(Duration::ZERO).unwrap();
        assert!(!paused() && pause.until_ms().is_none());
    }

    #[test]
    fn a_file_that_makes_no_sense_is_no_pause() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sim");
        for text in ["", "soon", "-1", "99999999999999999999999999999", "\u{0}"] {
            fs::write(&file, text).unwrap();
            assert_eq!(Pause::at(file.clone()).until_ms(), None, "{text:?}");
        }
    }
}
