//! An error with its causes in one line, for the errors that carry only text.

use std::{error::Error, fmt};

/// Shows an error and its sources.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.0.to_string().trim_end().to_owned();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            words = format!("{words}: {}", error.to_string().trim_end());
            cause = error.source();
        }
        f.write_str(&words.replace('\n', " | "))
    }
}
