//! Valid input, from files of the repository.

use std::{fs, path::Path};

/// The files in `folders`, given from the root of the repository, in the order of their paths.
///
/// # Panics
///
/// If a folder cannot be read or is empty: a target without seeds tries next to nothing.
#[must_use]
pub fn seeds(folders: &[&str]) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz lies in the root");
    let mut seeds = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(root.join(folder)).expect("a folder of seeds can be read");
        let mut paths: Vec<_> =
            entries.map(|entry| entry.expect("a folder of seeds can be read").path()).collect();
        assert!(!paths.is_empty(), "{folder} has no seeds");
        paths.sort();
        seeds.extend(paths.iter().map(|path| fs::read(path).expect("a seed can be read")));
    }
    seeds
}
