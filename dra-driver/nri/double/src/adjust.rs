//! What a plugin's answer does to a container, with NRI's rules for several plugins.

use std::collections::BTreeMap;

use accelpool_proto::nri::{Container, ContainerAdjustment, ContainerUpdate, LinuxResources};

/// Which plugin has set what; the next one to set it makes the creation fail.
#[derive(Debug, Default)]
pub(crate) struct Owners(BTreeMap<String, String>);

impl Owners {
    fn claim(&mut self, what: &str, plugin: &str) -> Result<(), String> {
        match self.0.insert(what.to_owned(), plugin.to_owned()) {
            Some(owner) => Err(format!("plugins {owner} and {plugin} both set {what}")),
            None => Ok(()),
        }
    }
}

pub(crate) fn apply(
    container: &mut Container,
    adjust: &ContainerAdjustment,
    plugin: &str,
    owners: &mut Owners,
) -> Result<(), String> {
    for removed in adjust.env.iter().filter_map(|env| env.key.strip_prefix('-')) {
        owners.0.remove(&format!("env {removed}"));
        container.env.retain(|env| name(env) != removed);
    }
    for set in adjust.env.iter().filter(|env| !env.key.starts_with('-')) {
        owners.claim(&format!("env {}", set.key), plugin)?;
        container.env.retain(|env| name(env) != set.key);
        container.env.push(format!("{}={}", set.key, set.value));
    }
    let resources = adjust.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let Some(resources) = resources else { return Ok(()) };
    let cpu = resources.cpu.clone().unwrap_or_default();
    if !cpu.cpus.is_empty() {
        owners.claim("CPU set", plugin)?;
    }
    if !cpu.mems.is_empty() {
        owners.claim("memory nodes", plugin)?;
    }
    for key in resources.unified.keys() {
        owners.claim(&format!("unified {key}"), plugin)?;
    }
    set(container, resources);
    Ok(())
}

pub(crate) fn update(container: &mut Container, update: &ContainerUpdate) {
    if let Some(resources) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        set(container, resources);
    }
}

/// What is not said stays as it is.
fn set(container: &mut Container, change: &LinuxResources) {
    let resources = container.linux.get_or_insert_default().resources.get_or_insert_default();
    if let Some(change) = &change.cpu {
        let cpu = resources.cpu.get_or_insert_default();
        for (old, new) in [(&mut cpu.cpus, &change.cpus), (&mut cpu.mems, &change.mems)] {
            if !new.is_empty() {
                old.clone_from(new);
            }
        }
    }
    resources.unified.extend(change.unified.clone());
}

fn name(env: &str) -> &str {
    env.split_once('=').map_or(env, |(name, _)| name)
}
