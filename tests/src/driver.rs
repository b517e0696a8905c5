//! `accelpool-dra` as a process of its own, which serves `/metrics`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use crate::{Home, program};

/// `accelpool-dra`; it ends with the test.
#[derive(Debug)]
pub struct Driver {
    child: Child,
    address: SocketAddr,
}

impl Driver {
    /// Starts it over the daemon of `home`, between the API server at `api` and no kubelet yet.
    /// What it writes lies in `folder`.
    ///
    /// # Panics
    ///
    /// If it does not come to serve.
    #[must_use]
    pub fn start(home: &Home, folder: &Path, node: &str, api: &str) -> Self {
        let config = folder.join("accelpool-dra.toml");
        let root = folder.join("kubelet");
        let (socket, root) = (home.socket().display().to_string(), root.display().to_string());
        let text = format!(
            "node_socket = {socket:?}\nkubelet_root = {root:?}\nlisten = \"127.0.0.1:0\"\n"
        );
        fs::write(&config, text).expect("the folder takes files");
        let mut child = Command::new(program().with_file_name("accelpool-dra"))
            .args(["--node-name", node, "--pod-uid", "demo", "--api-server", api, "--config"])
            .arg(&config)
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("accelpool-dra is built");
        let log = BufReader::new(child.stderr.take().expect("its log is piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let address = lines.by_ref().find_map(|line| {
            let (_, address) = line.split_once("serving http=")?;
            address.trim().parse().ok()
        });
        // A full pipe would stop it.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it says where it serves") }
    }

    /// Where it serves.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
