//! `accelpool usage`

use std::fs;

use crate::{
    args::UsageArguments,
    client::Client,
    failure::Failure,
    output::{Console, note, print_text},
    usage::{Usage, draw, write_agent, write_agents},
};

pub(super) async fn run(
    client: &Client,
    console: &Console,
    wanted: UsageArguments,
) -> Result<(), Failure> {
    let span_ms = u64::try_from(wanted.since.as_millis()).unwrap_or(u64::MAX);
    let answer = client.usage(console.now_ms().saturating_sub(span_ms)).await?;
    let since_ms = answer.unix_ms.saturating_sub(span_ms);
    let usage = Usage::new(answer, since_ms, wanted.agent.as_deref());
    if usage.agents.is_empty() {
        match &wanted.agent {
            Some(agent) => note(&format!("agent `{agent}` used nothing in that time")),
            None => note("nobody used anything in that time"),
        }
    }
    match wanted.svg {
        Some(path) if path.as_os_str() == "-" => print_text(&draw(&usage)),
        Some(path) => {
            fs::write(&path, draw(&usage))
                .map_err(|source| Failure::WriteFile { path: path.clone(), source })?;
            note(&format!("drew {} agents into {}", usage.agents.len(), path.display()));
            Ok(())
        }
        None => console.print(&usage, |page| {
            if usage.agents.is_empty() {
                return;
            }
            match wanted.agent {
                Some(_) => write_agent(&usage, page),
                None => write_agents(&usage, page),
            }
        }),
    }
}
