//! Tells the owners of pods what the device gate refused them: an event on the pod that names
//! the devices, and what to do about it.
//!
//! A tenant decides how often it tries, so a pod is told of at most once a minute, of what is new
//! since, and of the same again only after a while. Whose cgroup it was the daemon says by the
//! pod's UID; what the pod is called, the API server.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use accelpool_cluster::{Cluster, Event, EventRecorder, PodIdentity, Regarding, Severity};
use accelpool_proto::node::Denial;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::node::Node;

/// The wait before the daemon is asked again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A program that tries one device tries the others in the same moment: they go in one event.
const GATHER: Duration = Duration::from_millis(500);

/// How often a pod is told of, at most.
const POD_INTERVAL: Duration = Duration::from_mins(1);

/// When the same is told again.
const REPEAT_AFTER: Duration = Duration::from_mins(10);

/// Pods of which something is remembered: several times what a kubelet runs.
const PODS_MAX: usize = 1024;

/// Devices of which something is remembered for a pod, and which one event names.
const DEVICES_MAX: usize = 64;
const NAMED_MAX: usize = 8;

/// How often all pods of the node are asked for, at most: a pod that is not known may be no pod.
const LIST_INTERVAL: Duration = Duration::from_secs(5);

/// Follows the daemon's denials.
pub(crate) struct Denials {
    pub(crate) node: Node,
    pub(crate) cluster: Cluster,
    pub(crate) events: EventRecorder,
}

impl Denials {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let mut retry = RETRY_FIRST;
        let mut tally = Tally::default();
        let mut pods = Pods { known: HashMap::new(), listed: None };
        loop {
            if let Ok(mut denials) = self.node.denials().await {
                let mut flush = interval(GATHER);
                flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        denial = denials.message() => match denial {
                            Ok(Some(denial)) => {
                                retry = RETRY_FIRST;
                                tally.add(&denial);
                            }
                            Ok(None) | Err(_) => break,
                        },
                        _ = flush.tick() => self.tell(&mut tally, &mut pods).await,
                    }
                }
            }
            sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn tell(&self, tally: &mut Tally, pods: &mut Pods) {
        let now = Instant::now();
        let due = tally.due(now);
        if due.iter().any(|uid| !pods.known.contains_key(uid)) {
            pods.list(&self.cluster, now).await;
        }
        for uid in due {
            // One that is not known yet may be listed the next time.
            let Some(pod) = pods.known.get(&uid) else { continue };
            for (denied, devices) in tally.take(&uid, now) {
                self.events.record(event(pod, denied, &devices));
            }
        }
    }
}

/// The node's pods by the UIDs that name their cgroups.
struct Pods {
    known: HashMap<String, PodIdentity>,
    listed: Option<Instant>,
}

impl Pods {
    async fn list(&mut self, cluster: &Cluster, now: Instant) {
        if self.listed.is_some_and(|last| now.duration_since(last) < LIST_INTERVAL) {
            return;
        }
        self.listed = Some(now);
        match cluster.pods_on_node().await {
            Ok(pods) => {
                self.known = pods.into_iter().map(|pod| (pod.kubelet_uid.clone(), pod)).collect();
            }
            Err(error) => {
                let error = accelpool_model::Chain(&error).to_string();
                tracing::warn!(error, "whose pods were refused a device cannot be told");
            }
        }
    }
}

/// A device, or the number of a node that several share; and whether it was refused, or passed
/// because of the mode alone.
type What = (bool, String);

/// What is to be told, and what was.
#[derive(Debug, Default)]
struct Tally {
    pods: HashMap<String, OfPod>,
}

#[derive(Debug, Default)]
struct OfPod {
    untold: BTreeSet<What>,
    told: BTreeSet<What>,
    /// When something was last told.
    at: Option<Instant>,
    /// When the first of what is untold came.
    since: Option<Instant>,
}

impl Tally {
    fn add(&mut self, denial: &Denial) {
        if denial.workload.is_empty() {
            return;
        }
        let room = self.pods.len() < PODS_MAX || self.pods.contains_key(&denial.workload);
        if !room {
            return;
        }
        let pod = self.pods.entry(denial.workload.clone()).or_default();
        let name = if denial.device.is_empty() { &denial.number } else { &denial.device };
        let what = (denial.denied, name.clone());
        if pod.told.contains(&what) || pod.told.len() + pod.untold.len() >= DEVICES_MAX {
            return;
        }
        pod.untold.insert(what);
        pod.since.get_or_insert_with(Instant::now);
    }

    /// The pods of which something is to be told now. Forgets what was told long ago, and pods
    /// that nobody knew.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let older = |at: Option<Instant>, than: Duration| {
            at.is_some_and(|at| now.saturating_duration_since(at) >= than)
        };
        self.pods.retain(|_, pod| {
            if older(pod.at, REPEAT_AFTER) {
                pod.told.clear();
            }
            !older(pod.since, REPEAT_AFTER) && (!pod.untold.is_empty() || !pod.told.is_empty())
        });
        let due = self.pods.iter().filter(|(_, pod)| {
            !pod.untold.is_empty() && pod.at.is_none_or(|_| older(pod.at, POD_INTERVAL))
        });
        due.map(|(uid, _)| uid.clone()).collect()
    }

    /// What is to be told of a pod: the devices that it was refused, and those that it would be.
    fn take(&mut self, uid: &str, now: Instant) -> BTreeMap<bool, Vec<String>> {
        let Some(pod) = self.pods.get_mut(uid) else { return BTreeMap::new() };
        pod.at = Some(now);
        pod.since = None;
        let mut by_outcome: BTreeMap<bool, Vec<String>> = BTreeMap::new();
        for (denied, name) in std::mem::take(&mut pod.untold) {
            by_outcome.entry(denied).or_default().push(name.clone());
            pod.told.insert((denied, name));
        }
        by_outcome
    }
}

fn event(pod: &PodIdentity, denied: bool, devices: &[String]) -> Event {
    let PodIdentity { namespace, name, uid, .. } = pod.clone();
    let mut named = devices[..devices.len().min(NAMED_MAX)].join(", ");
    if devices.len() > NAMED_MAX {
        named = format!("{named} and {} more", devices.len() - NAMED_MAX);
    }
    let advice = "give the pod a ResourceClaim for it and name the claim in the container, or keep \
                  the pod from opening it, such as by taking a variable like \
                  NVIDIA_VISIBLE_DEVICES out of its image";
    let (severity, reason, note) = if denied {
        let note = format!(
            "the device gate refused this pod to open {named}: no claim of it holds \
                            that; {advice}"
        );
        (Severity::Warning, "DeviceRefused", note)
    } else {
        let note = format!(
            "this pod opened {named}, and no claim of it holds that: the device \
                            gate lets it pass in mode audit, and will refuse it in mode enforce; \
                            {advice}"
        );
        (Severity::Normal, "DeviceNotGranted", note)
    };
    let regarding = Regarding::Pod { namespace, name, uid };
    // No call led to it: a process of the container did.
    Event { regarding, severity, reason, action: "OpenDevice", note, trace_id: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(workload: &str, device: &str, denied: bool) -> Denial {
        Denial {
            workload: workload.to_owned(),
            device: device.to_owned(),
            number: "c 195:255".to_owned(),
            denied,
            ..Denial::default()
        }
    }

    fn told(tally: &mut Tally, now: Instant) -> Vec<String> {
        let mut due = tally.due(now);
        due.sort();
        let words = due.iter().flat_map(|uid| {
            let taken = tally.take(uid, now);
            taken.into_iter().map(move |(denied, names)| format!("{uid} {denied} {names:?}"))
        });
        words.collect()
    }

    #[test]
    fn a_pod_is_told_of_once_a_minute_and_of_what_is_new() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for device in ["gpu-0", "gpu-0", "gpu-1", ""] {
            tally.add(&denial("a", device, true));
        }
        tally.add(&denial("b", "gpu-0", false));
        tally.add(&denial("", "gpu-0", true));
        let first = [r#"a true ["c 195:255", "gpu-0", "gpu-1"]"#, r#"b false ["gpu-0"]"#];
        assert_eq!(told(&mut tally, start), first);
        tally.add(&denial("a", "gpu-0", true));
        tally.add(&denial("a", "gpu-2", true));
        assert_eq!(told(&mut tally, start + GATHER), [""; 0]);
        assert_eq!(told(&mut tally, start + POD_INTERVAL), [r#"a true ["gpu-2"]"#]);
        let again = start + POD_INTERVAL + REPEAT_AFTER;
        assert_eq!(told(&mut tally, again), [""; 0]);
        tally.add(&denial("a", "gpu-0", true));
        assert_eq!(told(&mut tally, again), [r#"a true ["gpu-0"]"#], "it goes on");
    }

    #[test]
    fn what_tenants_make_of_it_has_an_end() {
        let mut tally = Tally::default();
        for number in 0..3 * PODS_MAX {
            tally.add(&denial(&format!("pod-{number}"), "gpu-0", true));
        }
        assert_eq!(tally.pods.len(), PODS_MAX);
        for number in 0..3 * DEVICES_MAX {
            tally.add(&denial("pod-0", &format!("gpu-{number}"), true));
        }
        assert_eq!(tally.pods["pod-0"].untold.len(), DEVICES_MAX);
        // Nobody knows these pods: they are forgotten in the end.
        tally.due(Instant::now() + REPEAT_AFTER);
        assert!(tally.pods.is_empty());
    }

    #[test]
    fn an_event_fits_its_note_whatever_is_refused() {
        let pod = PodIdentity {
            namespace: "team".into(),
            name: "p".into(),
            uid: "u".into(),
            kubelet_uid: "k".into(),
        };
        let devices: Vec<String> = (0..DEVICES_MAX).map(|it| format!("{it:063}")).collect();
        for denied in [true, false] {
            let note = event(&pod, denied, &devices).note;
            assert!(note.len() <= 1024 && note.contains("and 56 more"), "{note}");
        }
    }
}
