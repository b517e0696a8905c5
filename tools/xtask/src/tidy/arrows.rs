//! Who may import whom: section 2 of the design as a table, compared with cargo's view.
//!
//! Only what is needed to build and to run counts; tests may import anything. An arrow
//! that is allowed need not be used. A crate that the table does not know is a violation,
//! so a new crate states its place here first.

use super::Violation;
use crate::workspace::Crate;

/// A crate, where it lies, and the crates of the workspace that it may import.
struct Place {
    name: &'static str,
    folder: &'static str,
    imports: &'static [&'static str],
    reason: &'static str,
}

const fn place(
    name: &'static str,
    folder: &'static str,
    imports: &'static [&'static str],
    reason: &'static str,
) -> Place {
    Place { name, folder, imports, reason }
}

const MODEL: &str = "accelpool-model";
const PLANNER: &str = "accelpool-planner";
const TURNS: &str = "accelpool-turns";
const VENDOR_API: &str = "accelpool-vendor-api";
const VENDOR_SIM: &str = "accelpool-vendor-sim";
const VENDOR_NVIDIA: &str = "accelpool-vendor-nvidia";
const CUDA_ENGINE: &str = "accelpool-cuda-engine";
const CUDA_STANDIN: &str = "accelpool-cuda-standin";
const SHIM: &str = "accelpool-shim";
const SHIM_CUDA: &str = "accelpool-shim-cuda";
const PROTO: &str = "accelpool-proto";
const LEDGER: &str = "accelpool-ledger";
const TOPOLOGY: &str = "accelpool-topology";
const GATE: &str = "accelpool-gate";
const ARBITER: &str = "accelpool-arbiter";
const DAEMON: &str = "accelpool-daemon";
const DRA_DRIVER: &str = "accelpool-dra-driver";
const CLUSTER: &str = "accelpool-cluster";
const CLUSTER_DOUBLE: &str = "accelpool-cluster-double";
const KUBELET_DOUBLE: &str = "accelpool-kubelet-double";
const NRI: &str = "accelpool-nri";
const RUNTIME_DOUBLE: &str = "accelpool-runtime-double";
const NVML_STANDIN: &str = "accelpool-nvml-standin";
const BENCHES: &str = "accelpool-benches";

/// What the suites may import: every library, the daemon's too.
const SUITES: &[&str] = &[
    MODEL,
    PLANNER,
    TURNS,
    VENDOR_API,
    VENDOR_SIM,
    VENDOR_NVIDIA,
    SHIM,
    SHIM_CUDA,
    PROTO,
    LEDGER,
    TOPOLOGY,
    GATE,
    ARBITER,
    DAEMON,
    DRA_DRIVER,
    CLUSTER,
    CLUSTER_DOUBLE,
    KUBELET_DOUBLE,
    CUDA_ENGINE,
    CUDA_STANDIN,
    NRI,
    RUNTIME_DOUBLE,
];

/// Every crate, those that are still to come too.
const PLACES: [Place; 30] = [
    place(MODEL, "core/model", &[], "nouns stand on nothing"),
    place(PLANNER, "core/planner", &[MODEL], "decisions know nouns alone"),
    place(TURNS, "core/turns", &[MODEL], "time-slicing policy knows nouns alone"),
    place(VENDOR_API, "vendors/api", &[MODEL], "the trait speaks in nouns"),
    place(VENDOR_SIM, "vendors/sim", &[VENDOR_API, MODEL], "an adapter never decides"),
    place(VENDOR_NVIDIA, "vendors/nvidia", &[VENDOR_API, MODEL], "an adapter never decides"),
    place(NVML_STANDIN, "vendors/nvidia/standin", &[], "it knows NVML, not us"),
    place(SHIM, "vendors/shim", &[], "it runs inside the tenant's process"),
    place(SHIM_CUDA, "vendors/shim-cuda", &[SHIM], "as its base does"),
    place(CUDA_ENGINE, "vendors/shim-cuda/engine", &[], "it knows CUDA, not us"),
    place(CUDA_STANDIN, "vendors/shim-cuda/standin", &[CUDA_ENGINE], "it knows CUDA, not us"),
    place(PROTO, "proto", &[], "wire types are no model types"),
    place(LEDGER, "daemon/ledger", &[MODEL], "it keeps leases and knows nobody"),
    place(TOPOLOGY, "daemon/topology", &[MODEL], "it reads the host and knows nobody"),
    place(ARBITER, "daemon/arbiter", &[MODEL, TURNS, SHIM], "it gives turns and knows no vendor"),
    place(GATE, "daemon/gate", &[MODEL], "the kernel's side of a grant"),
    place(
        DAEMON,
        "daemon",
        &[
            MODEL,
            PLANNER,
            TURNS,
            VENDOR_API,
            VENDOR_SIM,
            VENDOR_NVIDIA,
            SHIM,
            SHIM_CUDA,
            PROTO,
            LEDGER,
            TOPOLOGY,
            GATE,
            ARBITER,
        ],
        "the one place where everything on a node meets",
    ),
    place(DRA_DRIVER, "dra-driver", &[CLUSTER, NRI, PROTO, MODEL], "it meets the node by socket"),
    place(NRI, "dra-driver/nri", &[PROTO], "it knows the runtime's protocol"),
    place(RUNTIME_DOUBLE, "dra-driver/nri/double", &[NRI, PROTO], "it knows the runtime, not us"),
    place(CLUSTER, "dra-driver/cluster", &[PROTO, MODEL], "it meets the node by socket"),
    place(CLUSTER_DOUBLE, "dra-driver/cluster/double", &[], "it knows Kubernetes, not us"),
    place(KUBELET_DOUBLE, "dra-driver/double", &[PROTO], "it knows the kubelet's protocols"),
    place("accelpool-cli", "tools/cli", &[PROTO], "it meets the node by socket"),
    place("xtask", "tools/xtask", &[], "it looks at sources, not at programs"),
    place(BENCHES, "benches", SUITES, "it measures libraries, and programs from outside"),
    place("accelpool-deploy", "deploy", &[], "it compares the manifests with the programs"),
    place("accelpool-fuzz", "fuzz", SUITES, "it feeds the parsers of every library"),
    place(
        "accelpool-hw",
        "tests/hw",
        &[MODEL, VENDOR_API, VENDOR_NVIDIA, CUDA_ENGINE],
        "it drives an adapter, and programs from outside",
    ),
    place("accelpool-tests", "tests", SUITES, "it drives libraries, and programs from outside"),
];

/// What the crates under `core/` may reach outside the workspace: errors, derived at
/// build time. With a list of what is allowed, no runtime, socket or format gets in.
const CORE_EXTERNALS: [&str; 6] =
    ["proc-macro2", "quote", "syn", "thiserror", "thiserror-impl", "unicode-ident"];

/// An outside world and the crates that may name it, for tests too.
const OWNERS: [(&str, &[&str]); 6] = [
    ("hwlocality", &[TOPOLOGY]),
    // The benches compare the ledger with bare commits.
    ("redb", &[LEDGER, BENCHES]),
    ("nvml-wrapper", &[VENDOR_NVIDIA]),
    ("nvml-wrapper-sys", &[VENDOR_NVIDIA]),
    ("kube", &[CLUSTER]),
    ("k8s-openapi", &[CLUSTER, CLUSTER_DOUBLE, "accelpool-deploy"]),
];

/// Compares the workspace with the tables above.
pub(super) fn check(crates: &[Crate]) -> Vec<Violation> {
    crates.iter().flat_map(check_crate).collect()
}

fn check_crate(it: &Crate) -> Vec<Violation> {
    let manifest = match it.folder.as_str() {
        "" => "Cargo.toml".to_owned(),
        folder => format!("{folder}/Cargo.toml"),
    };
    let violation = |message| Violation::new(&manifest, 1, message);
    let Some(place) = PLACES.iter().find(|place| place.name == it.name) else {
        return vec![violation(format!(
            "crate `{}` is not in the table of arrows (tools/xtask/src/tidy/arrows.rs)",
            it.name
        ))];
    };
    let mut messages = Vec::new();
    if it.folder != place.folder {
        messages.push(format!("crate `{}` belongs in `{}`", it.name, place.folder));
    }
    for import in it.imports.iter().filter(|import| !place.imports.contains(&import.as_str())) {
        messages.push(format!("`{}` must not import `{import}`: {}", it.name, place.reason));
    }
    for external in &it.externals {
        let owner = OWNERS.iter().find(|(name, _)| name == external);
        if let Some((_, owners)) = owner.filter(|(_, owners)| !owners.contains(&place.name)) {
            messages.push(format!("`{external}` is for `{}` alone", owners.join("` and `")));
        }
    }
    if place.folder.starts_with("core/") {
        messages.extend(check_core(it));
    }
    messages.into_iter().map(violation).collect()
}

fn check_core(it: &Crate) -> impl Iterator<Item = String> {
    it.reaches
        .iter()
        .filter(|(external, _)| !CORE_EXTERNALS.contains(&external.as_str()))
        .map(|(external, way)| format!("core must not reach `{external}` ({})", way.join(" -> ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// One crate: name, folder, imports, external crates that it names, expected messages.
    #[track_caller]
    fn check_one(
        (name, folder): (&str, &str),
        imports: &[&str],
        externals: &[&str],
        expected: &[&str],
    ) {
        let reaches = externals.iter().map(|it| ((*it).to_owned(), names(&[name, "between"])));
        let it = Crate {
            name: name.to_owned(),
            folder: folder.to_owned(),
            imports: names(imports),
            externals: names(externals),
            reaches: reaches.collect(),
            ..Crate::default()
        };
        let actual: Vec<String> = check(&[it]).into_iter().map(|it| it.message).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn an_allowed_arrow_passes() {
        check_one((PLANNER, "core/planner"), &[MODEL], &["thiserror"], &[]);
        check_one((DAEMON, "daemon"), &[PLANNER, VENDOR_SIM, PROTO], &["tokio"], &[]);
    }

    #[test]
    fn an_arrow_that_the_design_lacks_is_refused() {
        let upward = "`accelpool-planner` must not import `accelpool-vendor-api`: \
                      decisions know nouns alone";
        check_one((PLANNER, "core/planner"), &[MODEL, VENDOR_API], &[], &[upward]);
        let inward = "`accelpool-cli` must not import `accelpool-model`: it meets the node by \
                      socket";
        check_one(("accelpool-cli", "tools/cli"), &[PROTO, MODEL], &[], &[inward]);
    }

    #[test]
    fn nobody_imports_the_suites() {
        for place in &PLACES {
            for suite in ["accelpool-tests", "accelpool-benches", "xtask", "accelpool-cli"] {
                assert!(!place.imports.contains(&suite), "{} imports {suite}", place.name);
            }
        }
    }

    #[test]
    fn an_unknown_or_misplaced_crate_is_refused() {
        let unknown = "crate `accelpool-extra` is not in the table of arrows \
                       (tools/xtask/src/tidy/arrows.rs)";
        check_one(("accelpool-extra", "extra"), &[], &[], &[unknown]);
        check_one((MODEL, "model"), &[], &[], &["crate `accelpool-model` belongs in `core/model`"]);
    }

    #[test]
    fn core_reaches_nothing_that_can_act() {
        let message = "core must not reach `tokio` (accelpool-model -> between)";
        check_one((MODEL, "core/model"), &[], &["syn", "tokio"], &[message]);
    }

    #[test]
    fn an_outside_world_has_one_door() {
        check_one((LEDGER, "daemon/ledger"), &[MODEL], &["redb"], &[]);
        let redb = "`redb` is for `accelpool-ledger` and `accelpool-benches` alone";
        let hwloc = "`hwlocality` is for `accelpool-topology` alone";
        check_one((DAEMON, "daemon"), &[], &["redb", "hwlocality"], &[redb, hwloc]);
    }
}
