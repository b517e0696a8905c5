//! The text files of the source tree, read once for all checks.
//!
//! Walks folders rather than asking git, so that a copy without history can be checked
//! too. Build output and hidden folders other than `.ci` are left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Hidden entries that are sources all the same.
const HIDDEN: [&str; 2] = [".ci", ".github"];

/// Folders of the root that are made, not written.
const MADE: [&str; 2] = ["target", "node_modules"];

/// One text file.
pub(crate) struct TextFile {
    /// Relative to the root, with `/` between parts.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl TextFile {
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Code that a program wrote from a `.proto` file.
    pub(crate) fn is_generated(&self) -> bool {
        self.path.contains("/src/gen/")
    }
}

/// The folder of the workspace that this program was built from.
pub(crate) fn root() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.ancestors().nth(2).expect("the crate lies in tools/xtask").to_path_buf()
}

/// Reads every file below `root` that is UTF-8 text, in the order of their paths.
pub(crate) fn read(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let context = || format!("failed to list `{}`", folder.display());
        for entry in fs::read_dir(&folder).with_context(context)? {
            let entry = entry.with_context(context)?;
            let kind = entry.file_type().with_context(context)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && !HIDDEN.contains(&name.as_str());
            let made = folder == root && MADE.contains(&name.as_str());
            if kind.is_dir() && !hidden && !made {
                folders.push(entry.path());
            } else if kind.is_file() && !hidden {
                files.extend(read_file(root, &entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn read_file(root: &Path, path: &Path) -> Result<Option<TextFile>> {
    let bytes = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let relative = path.strip_prefix(root).expect("the walk stays below the root");
    // What is no text (a captured ledger, a picture) has no style to check.
    Ok(String::from_utf8(bytes)
        .ok()
        .map(|text| TextFile { path: relative.to_string_lossy().into_owned(), text }))
}
