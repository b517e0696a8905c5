//! The variables by which vendors' own runtimes take devices into a container, whoever set
//! them: an image that brings `NVIDIA_VISIBLE_DEVICES=all` asks for every GPU of the node.
//! Pure.
//!
//! Only such as a container *runtime* obeys. What a program reads inside its container
//! (`CUDA_VISIBLE_DEVICES`, `ROCR_VISIBLE_DEVICES`) chooses among what was granted.

use std::collections::BTreeSet;

use accelpool_model::VendorName;
use accelpool_proto::nri::KeyValue;

/// What is reported of a value.
const VALUE_LEN_MAX: usize = 64;

/// A variable, and the adapters that drive the devices that it asks for.
struct Variable {
    name: &'static str,
    vendors: &'static [&'static str],
    /// What it is set to, where to take it away is not enough.
    instead: Option<&'static str>,
}

const fn variable(name: &'static str, vendors: &'static [&'static str]) -> Variable {
    Variable { name, vendors, instead: None }
}

const NVIDIA: &[&str] = &["nvidia"];

const VARIABLES: [Variable; 11] = [
    // An old CUDA image without it gets all of them; `void` is none, as if it had no meaning.
    Variable { name: "NVIDIA_VISIBLE_DEVICES", vendors: NVIDIA, instead: Some("void") },
    variable("NVIDIA_MIG_CONFIG_DEVICES", NVIDIA),
    variable("NVIDIA_MIG_MONITOR_DEVICES", NVIDIA),
    variable("NVIDIA_IMEX_CHANNELS", NVIDIA),
    variable("AMD_VISIBLE_DEVICES", &["amd"]),
    variable("ASCEND_VISIBLE_DEVICES", &["ascend", "huawei"]),
    variable("HABANA_VISIBLE_DEVICES", &["habana", "gaudi", "intel"]),
    variable("HABANA_VISIBLE_MODULES", &["habana", "gaudi", "intel"]),
    variable("AWS_NEURON_VISIBLE_DEVICES", &["neuron", "aws"]),
    variable("CAMBRICON_VISIBLE_DEVICES", &["cambricon"]),
    variable("MTHREADS_VISIBLE_DEVICES", &["mthreads"]),
];

/// The vendor that stands for every other, in tests and demonstrations.
const SIMULATED: &str = "sim";

/// Values that ask for nothing.
const HARMLESS: [&str; 3] = ["", "void", "none"];

/// A variable that asks for devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) variable: &'static str,
    /// Cut, since it is whatever a tenant wrote.
    pub(super) value: String,
    instead: Option<&'static str>,
}

impl Attempt {
    /// The change that makes it ask for nothing. It is taken away before it is set, so that no
    /// other plugin's change of it is in conflict with this one.
    pub(super) fn undo(&self) -> impl Iterator<Item = KeyValue> + use<> {
        let remove = KeyValue { key: format!("-{}", self.variable), value: String::new() };
        let set = |value: &str| KeyValue { key: self.variable.to_owned(), value: value.to_owned() };
        [remove].into_iter().chain(self.instead.map(set))
    }
}

/// The variables of `env` that ask for devices of these vendors.
pub(super) fn attempts(env: &[String], vendors: &BTreeSet<VendorName>) -> Vec<Attempt> {
    attempts_where(env, |variable| {
        vendors.iter().any(|vendor| {
            vendor.as_str() == SIMULATED || variable.vendors.contains(&vendor.as_str())
        })
    })
}

/// True if `env` asks for devices of whatever vendor.
pub(super) fn asks(env: &[String]) -> bool {
    !attempts_where(env, |_| true).is_empty()
}

fn attempts_where(env: &[String], managed: impl Fn(&Variable) -> bool) -> Vec<Attempt> {
    let asked = |variable: &Variable| {
        let mut values = env.iter().filter_map(|entry| {
            let (name, value) = entry.split_once('=')?;
            (name == variable.name).then_some(value)
        });
        let value = values.rfind(|value| !HARMLESS.contains(value))?;
        Some(Attempt {
            variable: variable.name,
            value: value.chars().take(VALUE_LEN_MAX).collect(),
            instead: variable.instead,
        })
    };
    VARIABLES.iter().filter(|&variable| managed(variable)).filter_map(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an environment on a node with devices of these vendors, in NRI's words.
    #[track_caller]
    fn check(vendors: &[&str], env: &[&str], expected: &[&str]) {
        let vendors = vendors.iter().map(|vendor| vendor.parse().unwrap()).collect();
        let env: Vec<String> = env.iter().map(|&entry| entry.to_owned()).collect();
        let changes = attempts(&env, &vendors).into_iter().flat_map(|attempt| attempt.undo());
        let changes: Vec<String> = changes.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
        assert_eq!(changes, expected);
    }

    #[test]
    fn what_asks_for_devices_is_undone() {
        let void = ["-NVIDIA_VISIBLE_DEVICES=", "NVIDIA_VISIBLE_DEVICES=void"];
        for value in ["all", "0", "GPU-1", " void", "void,all"] {
            check(&["nvidia"], &[&format!("NVIDIA_VISIBLE_DEVICES={value}")], &void);
        }
        check(&["amd"], &["PATH=/bin", "AMD_VISIBLE_DEVICES=0=1"], &["-AMD_VISIBLE_DEVICES="]);
        let twice = ["NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_VISIBLE_DEVICES=all"];
        check(&["nvidia"], &twice, &void);
    }

    #[test]
    fn what_asks_for_nothing_is_left() {
        for value in ["", "void", "none"] {
            check(&["nvidia"], &[&format!("NVIDIA_VISIBLE_DEVICES={value}")], &[]);
        }
        let own =
            ["CUDA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=all", "ROCR_VISIBLE_DEVICES=0"];
        check(&["sim"], &own, &[]);
        check(&["sim"], &["NVIDIA_VISIBLE_DEVICES", "=all", ""], &[]);
    }

    #[test]
    fn only_the_vendors_of_this_node_are_its_business() {
        let env = ["NVIDIA_VISIBLE_DEVICES=all", "AMD_VISIBLE_DEVICES=all"];
        check(&[], &env, &[]);
        check(&["amd"], &env, &["-AMD_VISIBLE_DEVICES="]);
        check(
            &["sim"],
            &env,
            &["-NVIDIA_VISIBLE_DEVICES=", "NVIDIA_VISIBLE_DEVICES=void", "-AMD_VISIBLE_DEVICES="],
        );
    }

    #[test]
    fn a_value_is_cut_before_it_is_reported() {
        let env = [format!("NVIDIA_VISIBLE_DEVICES={}", "x".repeat(10_000))];
        let attempts = attempts(&env, &["nvidia".parse().unwrap()].into());
        assert_eq!(attempts[0].value.len(), VALUE_LEN_MAX);
    }
}
