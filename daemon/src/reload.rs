//! The configuration, read again while the daemon runs: how pools are guarded changes at once,
//! for all else the daemon is restarted.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::{
    config::{Config, ConfigError},
    gate::Keeper,
    node::{Node, NodeError},
};

/// What became of a configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What is otherwise than before, one sentence each.
    pub changes: Vec<String>,
    /// The file differs elsewhere too from what the daemon was started with.
    pub restart_needed: bool,
}

/// Why a configuration was not taken over: nothing was changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ReloadError {
    #[error("the configuration is not taken over: all stays as it is")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Reads the configuration again for whoever asks. All clones are one.
#[derive(Clone)]
pub struct Reloader(Arc<Shared>);

struct Shared {
    path: PathBuf,
    node: Node,
    gate: Keeper,
    /// What holds now. One reload after the other.
    running: Mutex<Config>,
}

impl Reloader {
    /// For a daemon that was started with `running`, as read from `path`.
    #[must_use]
    pub fn new(path: PathBuf, running: Config, node: Node, gate: Keeper) -> Self {
        Self(Arc::new(Shared { path, node, gate, running: Mutex::new(running) }))
    }

    /// Reads the file again. What it changes holds in the kernel when this returns; who holds a
    /// grant is refused at no moment, and who holds none passes at none that both want guarded.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let Shared { path, node, gate, running } = &*self.0;
        let mut running = running.lock().await;
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        let written = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let (next, reloaded) = take_over(&running, &written);
        if !reloaded.changes.is_empty() {
            node.set_pools(next.pools.clone().into()).await?;
            let observed = node.read(None).await?;
            let (keeper, exempt) = (gate.clone(), next.gate.exempt.clone());
            let done = tokio::task::spawn_blocking(move || {
                keeper.set_exempt(exempt);
                keeper.observe(&observed)
            });
            let done = done.await;
            if done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                node.tell_gate(None).await;
            }
        }
        *running = next;
        for change in &reloaded.changes {
            info!(change, "configuration");
        }
        if reloaded.restart_needed {
            warn!(file = %path.display(), "the configuration differs where only a restart helps");
        }
        Ok(reloaded)
    }
}

/// What holds once `written` is taken over as far as can be.
fn take_over(running: &Config, written: &Config) -> (Config, Reloaded) {
    let mut next = running.clone();
    let mut changes = Vec::new();
    for pool in &mut next.pools {
        let Some(new) = written.pools.iter().find(|new| new.name == pool.name) else { continue };
        if new.gate != pool.gate {
            changes.push(format!("pool `{}`: gate is {}, was {}", pool.name, new.gate, pool.gate));
            pool.gate = new.gate;
        }
        if new.on_stale_holder != pool.on_stale_holder {
            changes.push(format!(
                "pool `{}`: on_stale_holder is {}, was {}",
                pool.name, new.on_stale_holder, pool.on_stale_holder
            ));
            pool.on_stale_holder = new.on_stale_holder;
        }
    }
    if written.gate.exempt != next.gate.exempt {
        changes.push(format!("gate.exempt is {:?}", written.gate.exempt));
        next.gate.exempt.clone_from(&written.gate.exempt);
    }
    let restart_needed = next != *written;
    (next, Reloaded { changes, restart_needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "[[pool]]\nname = \"a\"\n[[pool]]\nname = \"b\"\ngate = \"enforce\"\n";

    /// What becomes of `RUNNING` when `written` is read.
    #[track_caller]
    fn check(written: &str, changes: &[&str], restart_needed: bool) {
        let config = |text| Config::parse(text).expect("it is valid");
        let (running, written) = (config(RUNNING), config(written));
        let (next, reloaded) = take_over(&running, &written);
        assert_eq!(reloaded.changes, changes);
        assert_eq!(reloaded.restart_needed, restart_needed);
        // Read a second time, it changes nothing.
        assert_eq!(take_over(&next, &written).1.changes, Vec::<String>::new());
    }

    #[test]
    fn what_is_guarded_how_changes_and_nothing_else() {
        check(RUNNING, &[], false);
        check(
            "[[pool]]\nname = \"a\"\ngate = \"off\"\n[[pool]]\nname = \"b\"\ngate = \"enforce\"\n\
             on_stale_holder = \"kill\"\n[gate]\nexempt = [\"/x\"]\n",
            &[
                "pool `a`: gate is off, was audit",
                "pool `b`: on_stale_holder is kill, was report",
                "gate.exempt is [\"/x\"]",
            ],
            false,
        );
        // A new pool, and another order, wait for a restart; what can be done is done.
        check("[[pool]]\nname = \"b\"\n", &["pool `b`: gate is audit, was enforce"], true);
        check(&format!("group = \"x\"\n{RUNNING}"), &[], true);
    }
}
