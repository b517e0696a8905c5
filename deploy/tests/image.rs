//! The images: assembled without a network, what is in them, and that their programs start.
//!
//! Built from the programs of the test's own profile. Only those made for release are held to
//! the image's budget: `cargo test --release -p accelpool-deploy --test image`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use accelpool_deploy::{object, path};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);
/// The design's budget.
const IMAGE_BYTES_MAX: u64 = 30 << 20;

/// An image and the folder it was made of; both go when this is dropped.
struct Image {
    name: String,
    folder: TempDir,
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{errors}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The profile of this test.
const PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "release" };

/// A stage of the Containerfile.
struct Stage {
    name: &'static str,
    /// What stands in for the stage that compiles.
    context: &'static str,
    packages: &'static [&'static str],
    programs: &'static [&'static str],
}

const NODE: Stage = Stage {
    name: "node",
    context: "rootfs",
    packages: &["accelpool-daemon", "accelpool-dra-driver"],
    programs: &[], // what goes in unless one says otherwise
};
const CLI: Stage = Stage {
    name: "cli",
    context: "rootfs-cli",
    packages: &["accelpool-cli"],
    programs: &["accelpool"],
};

/// The folder of the programs of `packages`, built with the profile of this test.
fn programs(packages: &[&str]) -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    // target/<profile>/deps/<test>
    let target = test.ancestors().nth(3).expect("cargo puts tests below the target folder");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--locked", "--profile", PROFILE, "--bins"]);
    for package in packages {
        build.args(["--package", package]);
    }
    run(build.arg("--target-dir").arg(target).current_dir(path("..")));
    target.join(if PROFILE == "dev" { "debug" } else { PROFILE })
}

impl Image {
    fn build(stage: &Stage) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rootfs = folder.path().join("rootfs");
        let binaries = programs(stage.packages);
        let mut assemble = Command::new(path("image/assemble.sh"));
        run(assemble.arg(binaries).arg(&rootfs).args(stage.programs));
        let name =
            format!("localhost/accelpool-test-{}-{PROFILE}:{}", stage.name, std::process::id());
        run(Command::new("podman")
            .args(["build", "--quiet", "--network=none", "--pull=never", "--tag", &name])
            .args(["--target", stage.name])
            .arg(format!("--build-context={}={}", stage.context, rootfs.display()))
            .arg("--file")
            .arg(path("Containerfile"))
            .arg(path("image")));
        Self { name, folder }
    }

    /// Starts a container of the DaemonSet, with a root that it cannot change. The pod's
    /// paths lie in a folder of this test.
    fn start(&self, role: &str, network: &str, paths: &[&str], env: &[(&str, &str)]) -> Container {
        let name = format!("accelpool-image-{}-{role}", std::process::id());
        let command = command(role.trim_end_matches("-next"));
        let mut podman = Command::new("podman");
        podman.args(["run", "--detach", "--name", &name, "--network", network]);
        podman.args(["--read-only", "--read-only-tmpfs=false"]);
        // Where the tests themselves run in a container, limits cannot be raised.
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.args(["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"]);
        podman.arg(format!("--volume={}:/etc/accelpool:ro", path("kustomize/base").display()));
        for at in paths {
            let host = self.host(at);
            fs::create_dir_all(&host).expect("folders can be made");
            podman.arg(format!("--volume={}:{at}", host.display()));
        }
        for (key, value) in env {
            podman.arg(format!("--env={key}={value}"));
        }
        run(podman.arg(&self.name).args(command));
        Container { name }
    }

    fn size(&self) -> u64 {
        let inspect = ["image", "inspect", "--format={{.Size}}", &self.name];
        run(Command::new("podman").args(inspect)).trim().parse().expect("a number of bytes")
    }

    /// Where a path of the container lies on this machine.
    fn host(&self, at: &str) -> PathBuf {
        self.folder.path().join("host").join(at.trim_start_matches('/'))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("podman").args(["rmi", "--force", &self.name]).output();
    }
}

/// The command of a container of the DaemonSet.
fn command(container: &str) -> Vec<String> {
    let set = object("DaemonSet", "accelpool");
    let containers = set["spec"]["template"]["spec"]["containers"].as_array().cloned();
    let mut containers = containers.expect("a list").into_iter();
    let found = containers.find(|one| one["name"] == container).expect("the container");
    serde_json::from_value(found["command"].clone()).expect("a command is a list of words")
}

struct Container {
    name: String,
}

impl Container {
    #[track_caller]
    fn wait_for(&self, what: &Path) {
        let until = Instant::now() + PATIENCE;
        while !what.exists() {
            assert!(Instant::now() < until, "no {}\n{}", what.display(), self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn wait_for_log(&self, words: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < until, "no `{words}` in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn inspect(&self, what: &str) -> String {
        let format = format!("--format={{{{{what}}}}}");
        run(Command::new("podman").args(["inspect", &format, &self.name])).trim().to_owned()
    }

    /// The network that its first process is in.
    fn network(&self) -> PathBuf {
        let pid = self.inspect(".State.Pid");
        fs::read_link(format!("/proc/{pid}/ns/net")).expect("the process is there")
    }

    fn log(&self) -> String {
        let output = Command::new("podman").args(["logs", &self.name]).output();
        output.map_or_else(
            |error| error.to_string(),
            |Output { stdout, stderr, .. }| {
                String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
            },
        )
    }

    /// Asks it to end as the kubelet does, and returns its exit code.
    fn stop(&self) -> String {
        run(Command::new("podman").args(["stop", "--time=30", &self.name]));
        self.inspect(".State.ExitCode")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("podman").args(["rm", "--force", "--time=0", &self.name]).output();
    }
}

/// Every file below `folder`, relative to it.
fn contents(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("the folder can be read").flatten() {
        let kind = entry.file_type().expect("the entry has a type");
        if kind.is_dir() {
            contents(&entry.path(), root, found);
        } else {
            let path = entry.path();
            let below = path.strip_prefix(root).expect("it lies below its root");
            found.insert(below.display().to_string());
        }
    }
}

#[test]
fn both_programs_start_from_the_image_and_nothing_else_is_in_it() {
    let image = Image::build(&NODE);
    if PROFILE == "release" {
        let size = image.size();
        println!("image: {size} bytes of {IMAGE_BYTES_MAX}");
        assert!(size <= IMAGE_BYTES_MAX, "{size} bytes are more than {IMAGE_BYTES_MAX}");
    }
    let rootfs = image.folder.path().join("rootfs");
    let mut found = BTreeSet::new();
    contents(&rootfs, &rootfs, &mut found);
    let programs: Vec<&String> = found.iter().filter(|path| path.starts_with("usr/bin/")).collect();
    assert_eq!(programs, ["usr/bin/accelpool-dra", "usr/bin/accelpoold"]);
    let known = |path: &&String| {
        path.contains(".so")
            || path.starts_with("usr/bin/")
            || path.starts_with("etc/")
            || ["bin", "lib", "lib64"].contains(&path.as_str())
    };
    let strange: Vec<&String> = found.iter().filter(|path| !known(path)).collect();
    assert_eq!(strange, [""; 0]);

    // As the DaemonSet starts them, with its configurations, in one network as in one pod. The
    // API server does not answer, which is no reason to end.
    let driver = image.start(
        "driver",
        "none",
        &["/run/accelpool", "/var/lib/kubelet"],
        &[
            ("ACCELPOOL_DRA_CONFIG", "/etc/accelpool/accelpool-dra.toml"),
            ("NODE_NAME", "n1"),
            ("POD_NAME", "accelpool-x"),
            ("POD_NAMESPACE", "accelpool-system"),
            ("POD_UID", "00000000-0000-4000-8000-000000000001"),
            ("ACCELPOOL_API_SERVER", "http://127.0.0.1:1"),
        ],
    );
    let registration = "/var/lib/kubelet/plugins_registry/\
        accelpool.dev@00000000-0000-4000-8000-000000000001-reg.sock";
    driver.wait_for(&image.host(registration));
    let network = format!("container:{}", driver.name);
    let folders = ["/run/accelpool", "/var/lib/accelpool", "/var/run/cdi"];
    let daemon = image.start("daemon", &network, &folders, &[]);
    let socket = image.host("/run/accelpool/node.sock");
    daemon.wait_for(&socket);
    assert_ne!(daemon.network(), driver.network(), "the daemon stays on the pod's network");
    check_tool(&image);

    // A rolling update: the next daemon waits for this one, and then serves.
    let next = image.start("daemon-next", &network, &folders, &[]);
    next.wait_for_log("another daemon holds the ledger");
    assert_eq!(daemon.stop(), "0", "{}", daemon.log());
    next.wait_for(&socket);
    assert_eq!(next.stop(), "0", "{}", next.log());
    assert_eq!(driver.stop(), "0", "{}", driver.log());
    assert!(!image.host(registration).exists(), "it takes its socket along");
    let shell = Command::new("podman")
        .args(["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024"])
        .args(["--ulimit=nproc=1024:1024", &image.name, "/bin/sh", "-c", "exit 0"])
        .output()
        .expect("podman can be run");
    assert!(!shell.status.success(), "there is a shell");
}

/// The operator's tool, in an image of its own, finds the daemon where `kubectl debug` shows the
/// host.
fn check_tool(host: &Image) {
    let image = Image::build(&CLI);
    let mut found = BTreeSet::new();
    let rootfs = image.folder.path().join("rootfs");
    contents(&rootfs.join("usr/bin"), &rootfs, &mut found);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["usr/bin/accelpool"]);
    let seen = format!("--volume={}:/host/run/accelpool", host.host("/run/accelpool").display());
    let answer = run(Command::new("podman")
        .args(["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024"])
        .args(["--ulimit=nproc=1024:1024", &seen, &image.name, "accelpool", "status"]));
    assert!(answer.contains(" is ready "), "{answer}");
}
