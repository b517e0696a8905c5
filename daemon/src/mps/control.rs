//! Talks to an MPS control daemon, through the driver's own program for that.
//!
//! `nvidia-cuda-mps-control` without arguments passes the commands on its standard input to the
//! control daemon whose pipes are in `$CUDA_MPS_PIPE_DIRECTORY`, and prints the answers. It may
//! hang where the driver does, so it has a deadline.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::Place;

/// A control daemon that is there answers in milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// An answer has a line for each server or client; the driver takes at most 60 clients a device.
const ANSWER_LEN_MAX: u64 = 64 << 10;

/// The most servers and clients that are believed.
const LIST_LEN_MAX: usize = 256;

/// Why a control daemon gave no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum AskError {
    #[error("failed to run `{program}`")]
    Run { program: String, source: io::Error },
    #[error("the MPS control daemon does not answer: {0}")]
    Silent(String),
    #[error("the MPS control daemon took longer than {DEADLINE:?} to answer")]
    Deadline,
}

/// What a server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Its process.
    pub(super) pid: u32,
    /// True after a fatal fault, which ended the work of all clients on the device.
    pub(super) faulty: bool,
    /// Its clients' processes.
    pub(super) clients: Vec<u32>,
}

/// The servers of the control daemon at `place`: one as a rule, none while there is no client.
pub(super) async fn servers(place: &Place) -> Result<Vec<Server>, AskError> {
    let mut servers = Vec::new();
    for pid in pids(&ask(place, "get_server_list").await?) {
        // A control daemon that does not know these two has servers without a status.
        let status = ask(place, &format!("get_server_status {pid}")).await?;
        let clients = pids(&ask(place, &format!("get_client_list {pid}")).await?);
        servers.push(Server { pid, faulty: is_faulty(&status), clients });
    }
    Ok(servers)
}

/// Gives one command, and takes the answer.
pub(super) async fn ask(place: &Place, command: &str) -> Result<String, AskError> {
    tokio::time::timeout(DEADLINE, exchange(place, command))
        .await
        .map_err(|_| AskError::Deadline)?
}

async fn exchange(place: &Place, command: &str) -> Result<String, AskError> {
    let program = place.launch.program.display().to_string();
    let failed = |source| AskError::Run { program: program.clone(), source };
    let mut child = Command::new(&place.launch.program)
        .args(place.arguments("client"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends at once has closed it; its exit status says why.
        let _ = stdin.write_all(format!("{command}\n").as_bytes()).await;
    }
    let (mut answer, mut words) = (String::new(), String::new());
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_LEN_MAX).read_to_string(&mut answer).await.map_err(failed)?;
    }
    if let Some(stderr) = child.stderr.take() {
        stderr.take(ANSWER_LEN_MAX).read_to_string(&mut words).await.map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(answer);
    }
    let said = if words.trim().is_empty() { answer } else { words };
    let said: String = said.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    Err(AskError::Silent(if said.is_empty() { status.to_string() } else { said }))
}

/// The numbers that stand alone on a line.
fn pids(answer: &str) -> Vec<u32> {
    let numbers = answer.lines().filter_map(|line| line.trim().parse().ok());
    numbers.filter(|pid| *pid > 0).take(LIST_LEN_MAX).collect()
}

/// `ACTIVE`, `INITIALIZING` or `FAULT`, in words around it that differ between drivers.
fn is_faulty(status: &str) -> bool {
    status.to_ascii_uppercase().contains("FAULT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_lines_with_a_number() {
        assert_eq!(pids("12\n 7 \n"), [12, 7]);
        assert_eq!(pids("Server list is empty\n0\n-3\n99999999999\n1 2\n"), Vec::<u32>::new());
        assert_eq!(pids(&"1\n".repeat(9999)).len(), LIST_LEN_MAX);
    }

    #[test]
    fn a_fault_is_told_from_the_rest() {
        for (status, faulty) in
            [("FAULT\n", true), ("Status: Fault", true), ("ACTIVE", false), ("", false)]
        {
            assert_eq!(is_faulty(status), faulty, "{status}");
        }
    }
}
