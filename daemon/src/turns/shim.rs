//! The library that programs on shared devices load, installed under the hash of its content,
//! and how a container comes to it: loaded before all others, or in the driver's place.
//!
//! A file once installed is never written again: programs of running containers have it
//! mapped. Another version is another folder. It lies in the state folder, since hosts mount
//! `/run` so that nothing there can be mapped as a program.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use accelpool_model::{Injection, Mount};
use accelpool_shim_cuda::{DIGEST, DRIVER_PATH, DROP_IN, DROP_IN_FILE_NAME, FILE_NAME, LIBRARY};

/// Where a container finds the library.
const CONTAINER_FOLDER: &str = "/run/accelpool/shim";
/// The dynamic loader's own list. Unlike `LD_PRELOAD`, it leaves a variable of the image alone,
/// is not lost with the environment, and does nothing to an image with another C library.
const PRELOAD: &str = "/etc/ld.so.preload";
const PRELOAD_FILE: &str = "ld.so.preload";

/// How the programs of a container come to the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// The dynamic loader loads it before all others.
    #[default]
    Preload,
    /// It has the driver's name and place, and passes on what it does not stand in for. Where
    /// the vendor mounts no driver there is no place to take: then as above.
    DropIn,
}

/// Why the library was not installed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum InstallError {
    #[error("failed to make the folder `{path}`")]
    Folder { path: PathBuf, source: io::Error },
    #[error("failed to write `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

/// The installed library.
#[derive(Debug, Clone)]
pub struct Shim {
    library: PathBuf,
    drop_in: String,
    preload: [Mount; 2],
}

impl Shim {
    /// Installs the libraries of this build below `state_dir`, unless they are there already.
    pub fn install(state_dir: &Path) -> Result<Self, InstallError> {
        let folder = state_dir.join("shim").join(DIGEST);
        fs::create_dir_all(&folder)
            .map_err(|source| InstallError::Folder { path: folder.clone(), source })?;
        let inside = format!("{CONTAINER_FOLDER}/{DIGEST}/{FILE_NAME}");
        let library = folder.join(FILE_NAME);
        let (preload, drop_in) = (folder.join(PRELOAD_FILE), folder.join(DROP_IN_FILE_NAME));
        put(&library, LIBRARY, 0o555)?;
        put(&drop_in, DROP_IN, 0o555)?;
        put(&preload, format!("{inside}\n").as_bytes(), 0o444)?;
        let mount = |host: &Path, container_path: &str| Mount {
            host_path: host.display().to_string(),
            container_path: container_path.to_owned(),
        };
        let preload = [mount(&library, &inside), mount(&preload, PRELOAD)];
        Ok(Self { library, drop_in: drop_in.display().to_string(), preload })
    }

    /// Removes what other builds have installed and no process has mapped; to be called while
    /// no lease mounts it. Gives how many folders it removed.
    pub fn remove_others(&self, proc: &Path) -> io::Result<usize> {
        let Some(installed) = self.library.parent().and_then(Path::parent) else { return Ok(0) };
        let others: Vec<PathBuf> = fs::read_dir(installed)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| digest_of(path).is_some_and(|digest| digest != DIGEST))
            .collect();
        if others.is_empty() {
            return Ok(0);
        }
        let mapped = mapped_libraries(proc)?;
        let is_mapped = |path: &Path| {
            // In a container the drop-in has the driver's path: it is told by its inode.
            let drop_in = fs::metadata(path.join(DROP_IN_FILE_NAME)).map(|file| file.ino()).ok();
            let is_of = |line: &str, digest: &str| {
                let inode = line.split_ascii_whitespace().nth(4).and_then(|it| it.parse().ok());
                line.contains(digest) || drop_in.is_some() && inode == drop_in
            };
            digest_of(path).is_none_or(|digest| mapped.iter().any(|line| is_of(line, digest)))
        };
        let mut removed = 0;
        for path in others.iter().filter(|path| !is_mapped(path)) {
            // Ended half-way, the next start finds the rest.
            fs::remove_dir_all(path)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Where it is on this node.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Adds to `injection` what a container needs, read-only. Repeated, it adds what is new.
    pub fn add_to(&self, injection: &mut Injection, delivery: Delivery) {
        let stands_in = match delivery {
            Delivery::Preload => false,
            Delivery::DropIn => self.take_place(&mut injection.mounts),
        };
        for mount in self.preload.iter().filter(|_| !stands_in) {
            if !injection.mounts.contains(mount) {
                injection.mounts.push(mount.clone());
            }
        }
    }

    /// Mounts the drop-in wherever the driver was to be, and the driver where the drop-in looks
    /// for it; `false` where there was none.
    fn take_place(&self, mounts: &mut Vec<Mount>) -> bool {
        let driver_path = DRIVER_PATH.to_string_lossy();
        let mut driver = None;
        for mount in mounts.iter_mut().filter(|it| it.container_path != driver_path) {
            if Path::new(&mount.container_path).ends_with(DROP_IN_FILE_NAME)
                && mount.host_path != self.drop_in
            {
                driver = Some(std::mem::replace(&mut mount.host_path, self.drop_in.clone()));
            }
        }
        if let Some(host_path) = driver {
            mounts.push(Mount { host_path, container_path: driver_path.into_owned() });
        }
        mounts.iter().any(|mount| mount.host_path == self.drop_in)
    }
}

/// The digest that a folder is named by; nothing for what is no folder of ours.
fn digest_of(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let is_ours = name.len() == DIGEST.len() && name.bytes().all(|it| it.is_ascii_hexdigit());
    is_ours.then_some(name)
}

/// The lines of all processes' maps that are of a shim; each path has its digest, in a
/// container too.
fn mapped_libraries(proc: &Path) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(proc)? {
        let path = entry?.path();
        let is_process = path.file_name().and_then(|it| it.to_str());
        if !is_process.is_some_and(|it| it.bytes().all(|it| it.is_ascii_digit())) {
            continue;
        }
        // A process may end meanwhile. Of one that cannot be read nothing is known.
        match fs::read(path.join("maps")) {
            Ok(maps) => lines.extend(
                String::from_utf8_lossy(&maps)
                    .lines()
                    .filter(|line| line.contains(FILE_NAME) || line.contains(DROP_IN_FILE_NAME))
                    .map(str::to_owned),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

/// Makes the file at `path` hold `content`. One that does is left alone; one that does not, a
/// damaged one, gives its name to a new file and stays for whoever has it open.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    let failed = |source| InstallError::Write { path: path.to_owned(), source };
    // Two daemons never run on one state folder: the ledger's lock came first.
    let unfinished = path.with_extension("tmp");
    let mut file = fs::File::create(&unfinished).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Child, ChildStdin, Command, Stdio},
    };

    use super::*;

    #[test]
    fn it_is_installed_once_and_repaired_beside() {
        let state = tempfile::tempdir().expect("a folder");
        let first = Shim::install(state.path()).expect("installed");
        let inode = |shim: &Shim| fs::metadata(shim.library()).expect("it is there").ino();
        assert_eq!(fs::read(first.library()).expect("readable"), LIBRARY);
        assert!(first.library().to_string_lossy().contains(DIGEST));
        let again = Shim::install(state.path()).expect("installed");
        assert_eq!(inode(&first), inode(&again), "written again");

        let before = inode(&first);
        let mapped = fs::File::open(first.library()).expect("readable");
        fs::set_permissions(first.library(), fs::Permissions::from_mode(0o755)).expect("ours");
        fs::write(first.library(), b"half").expect("ours");
        let repaired = Shim::install(state.path()).expect("installed");
        assert_ne!(before, inode(&repaired), "the file of running programs was written");
        assert_eq!(mapped.metadata().expect("open").ino(), before);
        assert_eq!(fs::read(repaired.library()).expect("readable"), LIBRARY);
    }

    #[test]
    fn the_loaders_list_names_the_library_where_it_is_mounted() {
        let state = tempfile::tempdir().expect("a folder");
        let shim = Shim::install(state.path()).expect("installed");
        let mut injection = Injection::default();
        shim.add_to(&mut injection, Delivery::Preload);
        shim.add_to(&mut injection, Delivery::Preload);
        let [library, preload] = &injection.mounts[..] else { panic!("two mounts") };
        let list = fs::read_to_string(&preload.host_path).expect("readable");
        assert_eq!(list, format!("{}\n", library.container_path));
        assert_eq!(preload.container_path, PRELOAD);
    }

    #[test]
    fn the_drop_in_takes_the_drivers_place_where_there_is_one() {
        let state = tempfile::tempdir().expect("a folder");
        let shim = Shim::install(state.path()).expect("installed");
        let mount = |host: &str, container: &str| Mount {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
        };
        let (driver, other) = ("/usr/lib64/libcuda.so.580", mount("/x/libnvidia-ml.so.1", "/y"));
        let places = ["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib64/libcuda.so.1"];
        let mut mounts: Vec<Mount> = places.map(|place| mount(driver, place)).into();
        mounts.push(other.clone());
        let mut injection = Injection { mounts, ..Injection::default() };
        shim.add_to(&mut injection, Delivery::DropIn);
        let installed = state.path().join("shim").join(DIGEST).join("libcuda.so.1");
        let installed = installed.to_str().expect("text");
        let [first, second] = places.map(|place| mount(installed, place));
        let moved = mount(driver, "/run/accelpool/driver/libcuda.so.1");
        assert_eq!(injection.mounts, [first, second, other.clone(), moved]);
        let before = injection.clone();
        shim.add_to(&mut injection, Delivery::DropIn);
        assert_eq!(injection, before, "repeated");
        assert_eq!(fs::read(installed).expect("readable"), DROP_IN);

        let mut without = Injection { mounts: vec![other], ..Injection::default() };
        shim.add_to(&mut without, Delivery::DropIn);
        let places: Vec<_> = without.mounts.iter().map(|it| &it.container_path[..]).collect();
        assert_eq!(places[2], PRELOAD, "no driver is mounted: {places:?}");
    }

    /// A program that has a library mapped until its input ends.
    fn user_of(library: &Path) -> (Child, ChildStdin) {
        let mut user = Command::new("cat")
            .env("LD_PRELOAD", library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        // What comes back was read by a program that is loaded.
        let mut input = user.stdin.take().expect("a pipe");
        input.write_all(b"x").expect("written");
        user.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("loaded");
        (user, input)
    }

    #[test]
    fn other_builds_go_once_nobody_has_them_mapped() {
        let state = tempfile::tempdir().expect("a folder");
        let shim = Shim::install(state.path()).expect("installed");
        let installed = state.path().join("shim");
        // Not by chance the digest of something that runs on this machine.
        let digest = format!("{:016x}", 0xdead_0000_0000_0000 | u64::from(std::process::id()));
        let (other, foreign) = (installed.join(&digest), installed.join("notes"));
        for folder in [&other, &foreign] {
            fs::create_dir(folder).expect("made");
        }
        let library = other.join(FILE_NAME);
        fs::write(&library, LIBRARY).expect("written");
        // Another path than the installed one, as in a container.
        let (drop_in, elsewhere) = (other.join(DROP_IN_FILE_NAME), state.path().join("elsewhere"));
        fs::write(&drop_in, DROP_IN).expect("written");
        fs::create_dir(&elsewhere).expect("made");
        let inside = elsewhere.join(DROP_IN_FILE_NAME);
        fs::hard_link(&drop_in, &inside).expect("linked");
        let (mut user, input) = user_of(&library);
        let (mut contained, contained_input) = user_of(&inside);
        // This process and its children alone: a test may not read those of the whole machine.
        let seen = tempfile::tempdir().expect("a folder");
        for pid in [std::process::id(), user.id(), contained.id()].map(|pid| pid.to_string()) {
            std::os::unix::fs::symlink(Path::new("/proc").join(&pid), seen.path().join(&pid))
                .expect("linked");
        }
        let proc = seen.path();
        assert_eq!(shim.remove_others(proc).expect("looked"), 0, "it is mapped");
        assert!(library.exists());
        drop(input);
        user.wait().expect("it ended with its input");
        assert_eq!(shim.remove_others(proc).expect("looked"), 0, "the drop-in is mapped");
        drop(contained_input);
        contained.wait().expect("it ended with its input");
        assert_eq!(shim.remove_others(proc).expect("looked"), 1);
        assert!(!other.exists() && foreign.exists() && shim.library().exists());
        assert_eq!(shim.remove_others(proc).expect("looked"), 0);
    }
}
