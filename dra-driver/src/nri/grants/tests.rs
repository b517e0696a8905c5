//! Which grants containers have, row by row.

use accelpool_proto::{
    kubelet::v1::{ClaimResource, ContainerDevices, DynamicResource, PodResources},
    nri::CdiDevice,
};

use super::*;

fn container(cdi_ids: &[&str], env: &[&str]) -> Container {
    let device = |&name: &&str| CdiDevice { name: name.to_owned() };
    Container {
        env: env.iter().map(|&entry| entry.to_owned()).collect(),
        cdi_devices: cdi_ids.iter().map(device).collect(),
        ..Container::default()
    }
}

/// Leases: of pod `u1` a claim `c1` with two devices, and an extended resource's `dp-1`.
fn leases() -> Vec<Lease> {
    let allocation = |claim: &str, device: &str| Allocation {
        device: device.to_owned(),
        cdi_id: format!("accelpool.dev/claim={claim}-r-{device}"),
        ..Allocation::default()
    };
    let labels = |labels: &[(&str, &str)]| {
        labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    vec![
        Lease {
            claim: "c1".to_owned(),
            allocations: vec![allocation("c1", "gpu-1"), allocation("c1", "gpu-2.x")],
            labels: labels(&[
                (SURFACE_LABEL, "dra"),
                (labels::NAMESPACE, "team"),
                (labels::NAME, "claim"),
                (labels::POD_UID, "u1"),
            ]),
            ..Lease::default()
        },
        Lease {
            claim: "dp-1".to_owned(),
            allocations: vec![allocation("dp-1", "gpu-3")],
            labels: labels(&[
                (SURFACE_LABEL, labels::SURFACE_DEVICE_PLUGIN),
                (labels::RESOURCE, "accelpool.dev/gpu"),
                (labels::DEVICE_ID, "id-3"),
            ]),
            ..Lease::default()
        },
    ]
}

fn words(held: &BTreeSet<Held>) -> String {
    let words: Vec<String> = held.iter().map(|h| format!("{}:{}", h.claim, h.device)).collect();
    words.join(" ")
}

/// What a container of the pod `uid` holds, what is doubtful, and whether it is early.
#[track_caller]
fn check(uid: &str, container: &Container, held: &str, doubtful: &str, is_early: bool) {
    let grants = grants(&Marks::of(container), uid, &leases());
    let actual = (words(&grants.held), words(&grants.doubtful), grants.is_early);
    assert_eq!(actual, (held.to_owned(), doubtful.to_owned(), is_early));
}

#[test]
fn cdi_devices_are_believed_of_any_pod() {
    let one = container(&["accelpool.dev/claim=c1-r-gpu-1", "nvidia.com/gpu=all"], &[]);
    check("u1", &one, "c1:gpu-1", "", false);
    check("u2", &one, "c1:gpu-1", "", false);
    let both = container(&["accelpool.dev/claim=c1-r-gpu-1", "accelpool.dev/claim=new-r-x"], &[]);
    check("u1", &both, "c1:gpu-1", "", true);
    check("u1", &container(&["nvidia.com/gpu=all"], &[]), "", "", false);
}

#[test]
fn where_cdi_devices_are_shown_variables_say_nothing() {
    let env = ["ACCELPOOL_GRANT_DP_1_R_GPU_3=x"];
    let container = container(&["accelpool.dev/claim=c1-r-gpu-1"], &env);
    check("u1", &container, "c1:gpu-1", "", false);
}

#[test]
fn a_variable_counts_for_a_lease_of_the_same_pod() {
    let container = container(
        &[],
        &["ACCELPOOL_GRANT_C1_R_GPU_2_X=x", "ACCELPOOL_GRANT_DP_1_R_GPU_3=x", "PATH=/bin", "odd"],
    );
    check("u1", &container, "c1:gpu-2.x", "dp-1:gpu-3", false);
    check("u2", &container, "", "c1:gpu-2.x dp-1:gpu-3", false);
    let odd = self::container(&[], &["ACCELPOOL_GRANT_NEW=x"]);
    check("u1", &odd, "", "", false);
    assert!(grants(&Marks::of(&odd), "u1", &leases()).is_odd);
    assert!(!grants(&Marks::of(&container), "u1", &leases()).is_odd);
}

/// What the kubelet confirms to a pod, of all that there is.
#[track_caller]
fn check_confirmed(resources: ContainerResources, expected: Option<&str>) {
    let pods = ListPodResourcesResponse {
        pod_resources: vec![PodResources {
            namespace: "team".to_owned(),
            name: "pod".to_owned(),
            containers: vec![ContainerResources::default(), resources],
        }],
    };
    let all = ["ACCELPOOL_GRANT_C1_R_GPU_1=", "ACCELPOOL_GRANT_DP_1_R_GPU_3="];
    let grants = grants(&Marks::of(&container(&[], &all)), "other", &leases());
    let confirmed = |of| confirmed(&grants.doubtful, &leases(), &pods, of);
    let actual = confirmed(("team", "pod"));
    assert_eq!(actual.as_ref().map(words).as_deref(), expected);
    for unknown in [("team", "other"), ("x", "pod")] {
        assert_eq!(confirmed(unknown), None);
    }
}

#[test]
fn the_kubelet_confirms_what_it_gave() {
    check_confirmed(ContainerResources::default(), Some(""));
    let claim = |driver: &str, namespace: &str| ContainerResources {
        dynamic_resources: vec![DynamicResource {
            claim_name: "claim".to_owned(),
            claim_namespace: namespace.to_owned(),
            claim_resources: vec![ClaimResource {
                driver_name: driver.to_owned(),
                ..ClaimResource::default()
            }],
        }],
        ..ContainerResources::default()
    };
    check_confirmed(claim(DRIVER_NAME, "team"), Some("c1:gpu-1"));
    check_confirmed(claim(DRIVER_NAME, "other"), Some(""));
    check_confirmed(claim("gpu.nvidia.com", "team"), Some(""));
    let device = |id: &str| ContainerResources {
        devices: vec![ContainerDevices {
            resource_name: "accelpool.dev/gpu".to_owned(),
            device_ids: vec![id.to_owned()],
            topology: None,
        }],
        ..ContainerResources::default()
    };
    check_confirmed(device("id-3"), Some("dp-1:gpu-3"));
    check_confirmed(device("id-4"), Some(""));
}
