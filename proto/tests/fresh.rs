//! Proves that the committed code was made from the `.proto` files beside it.
//!
//! `ACCELPOOL_UPDATE=1 cargo test -p accelpool-proto` writes it anew.

use std::{fs, path::Path};

/// Every `.proto` file that code is made from, relative to the crate.
const FILES: [&str; 20] = [
    "accelpool/node/v1/gate.proto",
    "accelpool/node/v1/node.proto",
    "accelpool/node/v1/topology.proto",
    "accelpool/node/v1/trace.proto",
    "accelpool/node/v1/traits.proto",
    "accelpool/node/v1/turns.proto",
    "accelpool/node/v1/usage.proto",
    "accelpool/worker/v1/worker.proto",
    "kubelet/deviceplugin/v1beta1/deviceplugin.proto",
    "kubelet/dra/v1/dra.proto",
    "kubelet/dra/v1beta1/dra.proto",
    "kubelet/drahealth/v1/health.proto",
    "kubelet/drahealth/v1alpha1/health.proto",
    "kubelet/pluginregistration/v1/registration.proto",
    "kubelet/podresources/v1/podresources.proto",
    "nri/v1alpha1/nri.proto",
    "otlp/common.proto",
    "otlp/metrics.proto",
    "otlp/trace.proto",
    "ttrpc/ttrpc.proto",
];

#[test]
fn committed_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(FILES, [root]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary folder can be made");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code can be made from the descriptors");

    for entry in fs::read_dir(out.path()).expect("the output folder can be read") {
        let made = entry.expect("the output folder can be read").path();
        let committed = root.join("src/gen").join(made.file_name().expect("a file has a name"));
        let fresh = fs::read_to_string(&made).expect("made code is text");
        if std::env::var_os("ACCELPOOL_UPDATE").is_some() {
            fs::create_dir_all(root.join("src/gen")).expect("the folder can be made");
            fs::write(&committed, &fresh).expect("the committed code can be written");
        }
        assert!(
            fs::read_to_string(&committed).is_ok_and(|text| text == fresh),
            "`{}` is stale: run `ACCELPOOL_UPDATE=1 cargo test -p accelpool-proto`",
            committed.display()
        );
    }
}
