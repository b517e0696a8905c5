//! The API server's rules for `ResourceSlices`, to the letter of Kubernetes 1.34 and 1.36.
//!
//! One slice is judged as the API server would judge it on a write; a pool as the scheduler
//! judges it before it uses it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, Counter, CounterSet, Device, DeviceAttribute, DeviceCapacity,
    DeviceTaint, ResourceSlice, ResourceSliceSpec,
};

use crate::{
    names::{
        is_dns_label, is_dns_subdomain, is_label_name, is_label_value, is_qualified_name, is_semver,
    },
    quantity::milli,
};

/// Which version's rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// 1.34: counters and the devices that draw on them in one slice.
    Combined,
    /// 1.35 and later: counters in slices of their own.
    Separate,
}

/// What is wrong with a slice; empty if nothing is.
#[must_use]
pub fn slice_errors(slice: &ResourceSlice, rules: Rules) -> Vec<String> {
    let mut errors = Errors::default();
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    errors.unless(is_dns_subdomain(name, 253), "metadata.name", name);
    spec(&slice.spec, rules, &mut errors);
    errors.0
}

/// What keeps the scheduler from using the pool that `slices` are; empty if nothing does.
#[must_use]
pub fn pool_errors(slices: &[ResourceSliceSpec]) -> Vec<String> {
    let mut errors = Errors::default();
    let count = i64::try_from(slices.len()).unwrap_or(i64::MAX);
    let generations: BTreeSet<i64> = slices.iter().map(|slice| slice.pool.generation).collect();
    errors.unless(generations.len() == 1, "generations", &format!("{generations:?}"));
    for slice in slices {
        let wanted = slice.pool.resource_slice_count;
        errors.unless(wanted == count, "resourceSliceCount", &format!("{wanted} not {count}"));
    }
    let mut names = BTreeSet::new();
    for device in slices.iter().flat_map(|slice| slice.devices.iter().flatten()) {
        errors.unless(names.insert(&device.name), "device twice", &device.name);
    }
    let mut sets = BTreeMap::new();
    for set in slices.iter().flat_map(|slice| slice.shared_counters.iter().flatten()) {
        let new = sets.insert(set.name.as_str(), &set.counters).is_none();
        errors.unless(new, "counter set twice", &set.name);
    }
    for device in slices.iter().flat_map(|slice| slice.devices.iter().flatten()) {
        known_counters(device, &sets, &mut errors);
    }
    errors.0
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn unless(&mut self, holds: bool, path: &str, value: &str) {
        if !holds {
            let value: String = value.chars().take(80).collect();
            self.0.push(format!("{path}: {value}"));
        }
    }

    fn at_most(&mut self, count: usize, max: usize, path: &str) {
        self.unless(count <= max, path, &format!("{count} are more than {max}"));
    }
}

fn spec(spec: &ResourceSliceSpec, rules: Rules, errors: &mut Errors) {
    errors.unless(is_dns_subdomain(&spec.driver, 63), "driver", &spec.driver);
    let pool = &spec.pool;
    let parts = pool.name.split('/').all(|part| is_dns_subdomain(part, 253));
    errors.unless(parts && pool.name.len() <= 253, "pool.name", &pool.name);
    errors.unless(pool.generation >= 0, "pool.generation", &pool.generation.to_string());
    let count = pool.resource_slice_count;
    errors.unless(count > 0, "pool.resourceSliceCount", &count.to_string());
    let nodes = [
        spec.node_name.is_some(),
        spec.node_selector.is_some(),
        spec.all_nodes.is_some(),
        spec.per_device_node_selection.is_some(),
    ];
    let given = nodes.into_iter().filter(|given| *given).count();
    errors.unless(given == 1, "exactly one node selection", &given.to_string());

    let devices: Vec<&Device> = spec.devices.iter().flatten().collect();
    let small =
        devices.iter().any(|device| device.taints.is_some() || device.consumes_counters.is_some());
    let max = if small && rules == Rules::Separate { 64 } else { 128 };
    errors.at_most(devices.len(), max, "devices");
    let mut names = BTreeSet::new();
    for one in &devices {
        errors.unless(names.insert(&one.name), "devices.name twice", &one.name);
        device(one, rules, errors);
    }
    let sets: Vec<&CounterSet> = spec.shared_counters.iter().flatten().collect();
    let mut names = BTreeSet::new();
    for set in &sets {
        errors.unless(names.insert(&set.name), "sharedCounters.name twice", &set.name);
        errors.unless(is_dns_label(&set.name), "sharedCounters.name", &set.name);
        counters(&set.counters, "sharedCounters.counters", errors);
    }
    match rules {
        Rules::Separate => {
            errors.at_most(sets.len(), 8, "sharedCounters");
            let both = spec.devices.is_some() && spec.shared_counters.is_some();
            errors.unless(!both, "devices and sharedCounters", "only one of them");
        }
        Rules::Combined => combined(&devices, &sets, errors),
    }
}

/// What only 1.34 asks.
fn combined(devices: &[&Device], sets: &[&CounterSet], errors: &mut Errors) {
    let all = sets.iter().map(|set| set.counters.len()).sum();
    errors.at_most(all, 32, "counters of all sets");
    let draws = devices.iter().flat_map(|device| device.consumes_counters.iter().flatten());
    errors.at_most(draws.map(|draw| draw.counters.len()).sum(), 1024, "counters of all devices");
    let known = sets.iter().map(|set| (set.name.as_str(), &set.counters)).collect();
    for device in devices {
        known_counters(device, &known, errors);
    }
}

fn known_counters(
    device: &Device,
    sets: &BTreeMap<&str, &BTreeMap<String, Counter>>,
    errors: &mut Errors,
) {
    for draw in device.consumes_counters.iter().flatten() {
        let path = format!("{}: counter set", device.name);
        let Some(set) = sets.get(draw.counter_set.as_str()) else {
            errors.unless(false, &path, &draw.counter_set);
            continue;
        };
        for name in draw.counters.keys() {
            errors.unless(set.contains_key(name), &path, name);
        }
    }
}

fn counters(counters: &BTreeMap<String, Counter>, path: &str, errors: &mut Errors) {
    errors.unless(!counters.is_empty(), path, "none");
    errors.at_most(counters.len(), 32, path);
    for (name, counter) in counters {
        errors.unless(is_dns_label(name), path, name);
        errors.unless(milli(&counter.value.0).is_some(), path, &counter.value.0);
    }
}

fn device(device: &Device, rules: Rules, errors: &mut Errors) {
    let at = |field: &str| format!("{}: {field}", device.name);
    errors.unless(is_dns_label(&device.name), "device name", &device.name);
    let attributes = device.attributes.iter().flatten();
    let capacities = device.capacity.iter().flatten();
    errors.at_most(attributes.clone().count() + capacities.clone().count(), 32, &at("attributes"));
    for (name, value) in attributes {
        errors.unless(is_qualified_name(name), &at("attribute"), name);
        attribute(value, &at(name), errors);
    }
    for (name, value) in capacities {
        errors.unless(is_qualified_name(name), &at("capacity"), name);
        let several = device.allow_multiple_allocations == Some(true);
        capacity(value, several, &at(name), errors);
    }
    let draws = device.consumes_counters.iter().flatten();
    errors.at_most(draws.clone().count(), 2, &at("consumesCounters"));
    let mut sets = BTreeSet::new();
    for draw in draws {
        errors.unless(sets.insert(&draw.counter_set), &at("counter set twice"), &draw.counter_set);
        counters(&draw.counters, &at("consumesCounters"), errors);
    }
    let taints = device.taints.iter().flatten();
    let max = match rules {
        Rules::Combined => 4,
        Rules::Separate => 16,
    };
    errors.at_most(taints.clone().count(), max, &at("taints"));
    let mut keys = BTreeSet::new();
    for one in taints {
        errors.unless(keys.insert((&one.key, &one.effect)), &at("taint twice"), &one.key);
        taint(one, &at("taint"), errors);
    }
}

fn attribute(value: &DeviceAttribute, path: &str, errors: &mut Errors) {
    let DeviceAttribute { bool, bools, int, ints, string, strings, version, versions } = value;
    let lists = [bools.is_some(), ints.is_some(), strings.is_some(), versions.is_some()];
    errors.unless(!lists.contains(&true), path, "lists are alpha");
    let given = [bool.is_some(), int.is_some(), string.is_some(), version.is_some()];
    let given = given.into_iter().filter(|given| *given).count();
    errors.unless(given == 1, path, "exactly one value");
    if let Some(text) = string {
        errors.at_most(text.len(), 64, path);
    }
    if let Some(text) = version {
        errors.at_most(text.len(), 64, path);
        errors.unless(is_semver(text), path, text);
    }
}

fn capacity(capacity: &DeviceCapacity, several: bool, path: &str, errors: &mut Errors) {
    let DeviceCapacity { value, request_policy } = capacity;
    let Some(value) = milli(&value.0) else {
        errors.unless(false, path, &value.0);
        return;
    };
    if let Some(found) = request_policy {
        errors.unless(several, path, "requestPolicy without allowMultipleAllocations");
        if let Err(reason) = policy(found, value) {
            errors.unless(false, path, reason);
        }
    }
}

fn policy(policy: &CapacityRequestPolicy, value: i128) -> Result<(), &'static str> {
    let amount = |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        milli(&quantity.0).ok_or("not a quantity")
    };
    let CapacityRequestPolicy { default, valid_range, valid_values } = policy;
    let default = default.as_ref().map(amount).transpose()?;
    if valid_range.is_some() && valid_values.is_some() {
        return Err("validRange and validValues");
    }
    if let Some(values) = valid_values {
        let values = values.iter().map(amount).collect::<Result<Vec<_>, _>>()?;
        let default = default.ok_or("no default")?;
        let good = values.len() <= 10 && values.is_sorted() && values.contains(&default);
        return if good { Ok(()) } else { Err("validValues") };
    }
    let Some(range) = valid_range else { return Ok(()) };
    let default = default.ok_or("no default")?;
    let min = amount(&range.min)?;
    let max = range.max.as_ref().map(amount).transpose()?.unwrap_or(value);
    if max > value || default < min || default > max {
        return Err("default or max outside of the range");
    }
    let Some(step) = range.step.as_ref().map(amount).transpose()? else { return Ok(()) };
    let on_step = |amount: i128| step > 0 && (amount - min) % step == 0;
    if min + step > value {
        return Err("min and step exceed the value");
    }
    let max_on_step = range.max.is_none() || on_step(max);
    if on_step(default) && max_on_step { Ok(()) } else { Err("not a multiple of the step") }
}

fn taint(taint: &DeviceTaint, path: &str, errors: &mut Errors) {
    errors.unless(is_label_name(&taint.key), path, &taint.key);
    if let Some(value) = &taint.value {
        errors.unless(is_label_value(value), path, value);
    }
    let known = ["None", "NoSchedule", "NoExecute"].contains(&taint.effect.as_str());
    errors.unless(known, path, &taint.effect);
}

#[cfg(test)]
mod tests;
