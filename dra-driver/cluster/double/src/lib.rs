//! A double of the Kubernetes API server, for tests and demonstrations.
//!
//! An HTTP server on a free port that knows `ResourceSlices`, claims, nodes and events well
//! enough to be as strict as the real one: resource versions and conflicts, watches that
//! expire, field selectors, dry runs, deletion of collections, fields dropped for a feature
//! gate that is off, canonical quantities, the rules for slices, and RBAC by rules given to
//! it. Never a place to store anything: it forgets with the process.

#![forbid(unsafe_code)]

mod admission;
mod http;
mod names;
mod quantity;
mod rbac;
mod request;
mod status;
mod store;
mod validate;

use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

pub use crate::{
    admission::Gates,
    rbac::Rule,
    request::{Call, Verb},
    validate::{Rules, pool_errors, slice_errors},
};
use crate::{request::Resource, store::Store};

/// How the double behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The version it says it is, as in 1.36.
    pub minor: u32,
    /// Which fields it keeps.
    pub gates: Gates,
    /// What callers may do; everything if there are no rules.
    pub rules: Option<Vec<Rule>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { minor: 36, gates: Gates::ALL, rules: None }
    }
}

/// What happens to a call instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this HTTP code.
    Refuse(u16),
    /// It is never answered.
    Hang,
    /// It is carried out, and the connection is cut before the answer.
    CutAfter,
}

/// A running double. It stops when it is dropped.
pub struct ApiServer {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// The newest revision, for those who watch.
    revision: watch::Sender<u64>,
}

pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) calls: Vec<Call>,
    /// Faults still to come: for which verb (or any), and how often.
    faults: Vec<(Option<Verb>, Fault, usize)>,
    /// Grows when open watches shall end.
    pub(crate) watch_epoch: u64,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }

    /// Wakes those who watch.
    pub(crate) fn announce(&self) {
        let revision = self.state().store.revision();
        self.revision.send_replace(revision);
    }

    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl State {
    /// The fault that meets a call of `verb` now.
    pub(crate) fn take_fault(&mut self, verb: Verb) -> Option<Fault> {
        let meets = |(for_verb, _, left): &&mut (Option<Verb>, Fault, usize)| {
            *left > 0 && for_verb.is_none_or(|for_verb| for_verb == verb)
        };
        let (_, fault, left) = self.faults.iter_mut().find(meets)?;
        *left -= 1;
        Some(*fault)
    }
}

impl ApiServer {
    /// Starts a double on a free port.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub async fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = State {
            options,
            store: Store::default(),
            calls: Vec::new(),
            faults: Vec::new(),
            watch_epoch: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), revision: watch::Sender::new(0) });
        let task = tokio::spawn(http::serve(listener, Arc::clone(&shared)));
        Self { url: format!("http://{address}"), shared, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Puts an object there as it is, in place of what there was. It needs `kind`,
    /// `apiVersion` and `metadata.name`; a UID is made if it has none.
    ///
    /// # Panics
    ///
    /// If the double does not know the kind.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn put(&self, object: Value) -> Value {
        let resource = Resource::of_kind(&object).expect("a kind that the double knows");
        let stored = self.shared.state().store.put(resource, object);
        self.shared.announce();
        stored
    }

    /// Takes an object away; true if there was one.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let removed = self.shared.state().store.remove(resource, namespace, name).is_some();
        self.shared.announce();
        removed
    }

    /// One object, if it is there.
    #[must_use]
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.state().store.get(resource, namespace, name).cloned()
    }

    /// All objects of a resource such as `resourceslices`, by name.
    #[must_use]
    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.shared.state().store.list(resource).cloned().collect()
    }

    /// Deletes the slices of a node one by one, as the kubelet does when it starts.
    pub fn wipe_slices(&self, node: &str) {
        let slices = self.list("resourceslices");
        let of_node = slices.iter().filter(|slice| slice["spec"]["nodeName"] == node);
        for slice in of_node {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            self.remove("resourceslices", "", name);
        }
    }

    /// The calls made so far, watches included.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }

    /// The calls made since the last time this was asked.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.shared.state().calls)
    }

    /// Lets the next `times` calls of `verb`, or of any, meet `fault`.
    pub fn fail(&self, verb: Option<Verb>, fault: Fault, times: usize) {
        self.shared.state().faults.push((verb, fault, times));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
    }

    /// Turns feature gates on or off, as a restarted API server would, and ends all watches.
    pub fn set_gates(&self, gates: Gates) {
        self.shared.state().options.gates = gates;
        self.end_watches();
    }

    /// Ends all open watches.
    pub fn end_watches(&self) {
        self.shared.state().watch_epoch += 1;
        self.shared.announce();
    }

    /// Forgets old versions: who asks to watch from one of them is told that it is gone.
    pub fn compact(&self) {
        self.shared.state().store.compact();
        self.end_watches();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
