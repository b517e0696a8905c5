//! Debian's Prometheus, as a scraper and as a linter.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::LONG;

/// The project's rules, which it evaluates.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/rules.yaml");

/// A Prometheus that scrapes one target and evaluates the project's rules, both every second; it
/// ends with the test. A scrape has as long, which a busy machine may need.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts to scrape `target`.
    ///
    /// # Panics
    ///
    /// If Prometheus cannot be run; `tools/setup.sh` installs it.
    #[must_use]
    pub fn scrape(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{RULES:?}]\n\
             scrape_configs:\n\
             - job_name: accelpool\n  \
               static_configs: [{{ targets: ['{target}'] }}]\n"
        );
        fs::write(&config, text).expect("the folder takes files");
        let argument =
            |name: &str, value: &std::path::Path| format!("--{name}={}", value.display());
        let mut child = Command::new("prometheus")
            .arg(argument("config.file", &config))
            .arg(argument("storage.tsdb.path", &folder.path().join("data")))
            .arg("--web.listen-address=127.0.0.1:0")
            .arg("--enable-feature=native-histograms,exemplar-storage")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus is installed");
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let address = lines.by_ref().find_map(|line| {
            let (_, rest) = line.split_once("msg=\"Listening on\" address=")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        let address = address.expect("prometheus says where it listens");
        // A full pipe would stop it.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address, _folder: folder }
    }

    /// What a query finds at the moment: labels and value of each series.
    ///
    /// # Panics
    ///
    /// If the query is wrong, or Prometheus does not answer.
    #[must_use]
    pub fn query(&self, query: &str) -> Vec<(Value, f64)> {
        self.ask(query, "")
    }

    /// What a query found at a moment, in seconds since the Unix epoch.
    ///
    /// # Panics
    ///
    /// See [`Prometheus::query`].
    #[must_use]
    pub fn query_at(&self, query: &str, moment: f64) -> Vec<(Value, f64)> {
        self.ask(query, &format!("&time={moment:.3}"))
    }

    /// The traces that the exemplars of a histogram name.
    ///
    /// # Panics
    ///
    /// See [`Prometheus::query`].
    #[must_use]
    pub fn traces_of(&self, histogram: &str) -> Vec<String> {
        let path = format!("/api/v1/query_exemplars?query={histogram}&start=0&end=99999999999");
        let (status, body) = get(self.address, &path, "");
        // While it starts it has nothing to tell.
        if status == 503 {
            return Vec::new();
        }
        let answer: Value = serde_json::from_str(&body).expect("prometheus answers in JSON");
        let series = answer["data"].as_array().into_iter().flatten();
        let exemplars =
            series.flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        let named = exemplars.filter_map(|exemplar| exemplar["labels"]["trace_id"].as_str());
        named.map(str::to_owned).collect()
    }

    fn ask(&self, query: &str, more: &str) -> Vec<(Value, f64)> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").expect("a String takes any text");
        }
        let (status, body) = get(self.address, &format!("/api/v1/query?query={encoded}{more}"), "");
        // While it starts it has nothing to tell.
        if status == 503 {
            return Vec::new();
        }
        let answer: Value = serde_json::from_str(&body).expect("prometheus answers in JSON");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let found = answer["data"]["result"].as_array().expect("a query finds a vector");
        let series = found.iter().map(|series| {
            let value = series["value"][1].as_str().expect("a value is text");
            (series["metric"].clone(), value.parse().expect("a value is a number"))
        });
        series.collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for a page, in the form that `accept` says: its status and its text.
///
/// # Panics
///
/// If there is no answer.
#[must_use]
pub fn get(address: SocketAddr, path: &str, accept: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(LONG)).expect("a timeout can be set");
    let request = format!("GET {path} HTTP/1.0\r\nHost: node\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request can be sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer can be read");
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    (status.expect("an answer has a status"), body.to_owned())
}

/// What `promtool check metrics` finds wrong with a page.
///
/// # Panics
///
/// If promtool cannot be run.
#[must_use]
pub fn lint(page: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut stdin = promtool.stdin.take().expect("it is piped");
    let page = page.to_owned();
    let feeding = thread::spawn(move || stdin.write_all(page.as_bytes()));
    let output = promtool.wait_with_output().expect("promtool ends");
    feeding.join().expect("nothing panics there").expect("promtool reads all of it");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success() || !said.is_empty(), "promtool ended with {}", output.status);
    said
}
