//! Wire types and services, generated from the `.proto` files beside this folder.
//!
//! The generated code is committed, so that a build needs no protobuf compiler;
//! `tests/fresh.rs` makes it anew and fails on a difference. These types are for the
//! wire alone: each program converts them to `accelpool-model` where it reads them.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "almost all of it is generated; the .proto files hold the words"
)]

pub mod trace;

/// The node API: what the daemon serves on its socket (`accelpool/node/v1/`).
pub mod node {
    include!("gen/accelpool.node.v1.rs");

    /// The trailer that carries the code of an error with a page in `docs/errors`.
    pub const ERROR_CODE_KEY: &str = "accelpool-error-code";

    /// Where the daemon listens unless its configuration says otherwise.
    pub const DEFAULT_SOCKET: &str = "/run/accelpool/node.sock";
}

/// What the daemon asks of its workers (`accelpool/worker/v1/worker.proto`).
pub mod worker {
    include!("gen/accelpool.worker.v1.rs");
}

/// What the kubelet and its plugins say to each other (`kubelet/`). Hand-written from the
/// wire facts of Kubernetes 1.36: only names, numbers and types are the kubelet's.
pub mod kubelet {
    /// How a plugin makes itself known.
    pub mod registration {
        include!("gen/pluginregistration.rs");
    }

    /// Dynamic resource allocation.
    pub mod dra {
        /// The version to speak: it has share ids.
        pub mod v1 {
            include!("gen/k8s.io.kubelet.pkg.apis.dra.v1.rs");
        }

        /// The version that kubelets before 1.34 know.
        pub mod v1beta1 {
            include!("gen/k8s.io.kubelet.pkg.apis.dra.v1beta1.rs");
        }
    }

    /// The health of a driver's devices, for kubelets before 1.37.
    pub mod v1alpha1 {
        include!("gen/v1alpha1.rs");
    }

    /// Extended resources: the device plugin API.
    pub mod v1beta1 {
        include!("gen/v1beta1.rs");
    }

    /// The devices of the node's pods (PodResources), and the health of a driver's devices:
    /// two APIs that share one bare package name.
    pub mod v1 {
        include!("gen/v1.rs");
    }
}

/// What a container runtime and its plugins say to each other (`nri/`). Hand-written from the
/// public API: only names, numbers and types are NRI's.
pub mod nri {
    include!("gen/nri.pkg.api.v1alpha1.rs");

    /// Where runtimes listen for plugins unless their configuration says otherwise.
    pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";
}

/// The envelope of NRI's calls (`ttrpc/`).
pub mod ttrpc {
    include!("gen/ttrpc.rs");
}

/// What collectors of traces and figures take (`otlp/`). Hand-written from the public protocol.
/// The modules lie as the protocol's packages do.
pub mod otlp {
    /// What every signal says about itself.
    pub mod common {
        /// The only version.
        pub mod v1 {
            include!("gen/opentelemetry.proto.common.v1.rs");
        }
    }

    /// What is sent to a collector.
    pub mod collector {
        /// Spans.
        pub mod trace {
            /// The only version.
            pub mod v1 {
                include!("gen/opentelemetry.proto.collector.trace.v1.rs");
            }
        }

        /// Figures.
        pub mod metrics {
            /// The only version.
            pub mod v1 {
                include!("gen/opentelemetry.proto.collector.metrics.v1.rs");
            }
        }
    }
}
