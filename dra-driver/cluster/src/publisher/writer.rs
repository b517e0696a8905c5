//! Carries out a plan, and knows what the API server has from its answers and the watch.
//!
//! An answer is as good as a watch event, so nothing has to settle between two plans. What
//! comes late (an older version of a slice than is known) is passed over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::{core::v1::Node, resource::v1::ResourceSlice};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use super::{
    plan::{Identity, Plan, Slices, Stored, Write, is_same_page, plan},
    probe::lowered,
    watcher::revision,
};
use crate::{
    Cluster, Features, Page,
    cluster::{CallError, within_deadline},
    pace::RateLimit,
};

/// The writer and its picture of the API server's slices.
pub(super) struct Writer {
    cluster: Cluster,
    slices: Slices,
    /// The last version of each slice that is known to be gone.
    gone: BTreeMap<String, u64>,
    /// Pages that the API server keeps otherwise than they were sent, for no known reason.
    accepted: BTreeMap<String, Accepted>,
    /// The highest generation ever seen or written.
    generation: i64,
    node_uid: Option<String>,
    limit: RateLimit,
}

/// A page as it was sent, and as the API server made it.
struct Accepted {
    sent: Page,
    kept: Page,
}

/// A completed write.
pub(super) struct Written {
    pub(super) generation: i64,
    /// The features that are left, if the API server dropped fields.
    pub(super) lowered: Option<Features>,
}

/// Why slices are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("failed to read node `{node}`")]
    Node { node: String, source: CallError },
    #[error("failed to delete slice `{name}`")]
    Delete { name: String, source: CallError },
    #[error("failed to update slice `{name}`")]
    Update { name: String, source: CallError },
    #[error("failed to create slice `{name}`")]
    Create { name: String, source: CallError },
    #[error("slice `{name}` was changed by somebody else meanwhile")]
    Raced { name: String },
    #[error("the name of slice `{name}` is taken by an object of somebody else")]
    Taken { name: String },
}

/// The pace of the Go helper: 100 at once, then 10 each second.
const WRITE_BURST: u32 = 100;
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// Plans are made anew that often when somebody else writes at the same time.
const RACES_MAX: usize = 5;

impl WriteError {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Node { source, .. }
            | Self::Delete { source, .. }
            | Self::Update { source, .. }
            | Self::Create { source, .. } => source.is_transient(),
            Self::Raced { .. } => true,
            Self::Taken { .. } => false,
        }
    }
}

impl Writer {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            slices: Slices::new(),
            gone: BTreeMap::new(),
            accepted: BTreeMap::new(),
            generation: 0,
            node_uid: None,
            limit: RateLimit::new(WRITE_INTERVAL, WRITE_BURST),
        }
    }

    /// Takes the result of a list.
    pub(super) fn replace_all(&mut self, slices: Slices) {
        self.gone.clear();
        let highest = slices.values().map(|slice| slice.pool.generation).max();
        self.generation = self.generation.max(highest.unwrap_or(0));
        self.slices = slices;
    }

    /// Takes a slice from the watch; true if it is not as this writer left it.
    pub(super) fn note_written(&mut self, name: String, slice: Stored) -> bool {
        let version = revision(slice.metadata.resource_version.as_deref());
        let known = self.slices.get(&name).map(|known| &known.metadata);
        let known = known.and_then(|known| revision(known.resource_version.as_deref()));
        let latest = known.max(self.gone.get(&name).copied());
        if latest.is_some() && version.is_some() && version <= latest {
            return false;
        }
        self.gone.remove(&name);
        self.generation = self.generation.max(slice.pool.generation);
        self.slices.insert(name, slice);
        true
    }

    /// Takes a deletion from the watch; true if it is news.
    pub(super) fn note_deleted(&mut self, name: &str, last: Option<u64>) -> bool {
        let Some(known) = self.slices.get(name) else { return false };
        let version = revision(known.metadata.resource_version.as_deref());
        if last.is_some() && version.is_some() && last < version {
            return false; // the slice was made anew since
        }
        self.slices.remove(name);
        // A node that went and came back has another UID, and slices owned by the old one
        // are collected as garbage: ask again before creating.
        self.node_uid = None;
        true
    }

    /// Makes the API server's slices into `wanted`.
    pub(super) async fn write(
        &mut self,
        wanted: &[Page],
        features: Features,
    ) -> Result<Written, WriteError> {
        let mut raced = None;
        for _ in 0..RACES_MAX {
            let identity = self.identity().await?;
            let Plan { generation, writes } =
                plan(&self.slices, &self.with_accepted(wanted), &identity, self.generation);
            let mut lowered = None;
            raced = None;
            for write in writes {
                match self.carry_out(write, features).await {
                    Ok(left) => lowered = lowered.or(left),
                    Err(WriteError::Raced { name }) => {
                        self.cluster.counters.write_conflicts.add(1);
                        raced = Some(name);
                        break;
                    }
                    Err(error) => return Err(error),
                }
                if lowered.is_some() {
                    break; // the rest would be written in vain
                }
            }
            if raced.is_none() {
                self.generation = self.generation.max(generation);
                return Ok(Written { generation, lowered });
            }
        }
        Err(WriteError::Raced { name: raced.unwrap_or_default() })
    }

    /// `wanted`, with the API server's version of pages that it will not have otherwise.
    fn with_accepted<'a>(&'a self, wanted: &'a [Page]) -> Vec<&'a Page> {
        let kept = |page: &'a Page| {
            let accepted = self.accepted.values().find(|accepted| accepted.sent == *page);
            accepted.map_or(page, |accepted| &accepted.kept)
        };
        wanted.iter().map(kept).collect()
    }

    async fn identity(&mut self) -> Result<Identity, WriteError> {
        let Cluster { driver, node, .. } = self.cluster.clone();
        let node_uid = if let Some(uid) = &self.node_uid {
            uid.clone()
        } else {
            let api: Api<Node> = Api::all(self.cluster.client.clone());
            let found = within_deadline(api.get_metadata(&node)).await;
            let found = found.map_err(|source| WriteError::Node { node: node.clone(), source })?;
            found.metadata.uid.unwrap_or_default()
        };
        self.node_uid = Some(node_uid.clone());
        Ok(Identity { driver, node, pool: self.cluster.pool_name(), node_uid })
    }

    async fn carry_out(
        &mut self,
        write: Write,
        features: Features,
    ) -> Result<Option<Features>, WriteError> {
        let wait = self.limit.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let api = self.slices_api();
        let create_or_replace = PostParams::default();
        let (sent, answer) = match write {
            Write::Delete { name } => return self.delete(name).await.map(|()| None),
            Write::Update { name, slice } => {
                let answer = within_deadline(api.replace(&name, &create_or_replace, &slice)).await;
                let failed = |source| WriteError::Update { name: name.clone(), source };
                let answer = self.unless_raced(&name, answer, failed).await?;
                self.cluster.counters.slices_updated.add(1);
                (slice, answer)
            }
            Write::Create { name, slice } => {
                let answer = within_deadline(api.create(&create_or_replace, &slice)).await;
                let failed = |source| WriteError::Create { name: name.clone(), source };
                let answer = self.unless_raced(&name, answer, failed).await?;
                self.cluster.counters.slices_created.add(1);
                (slice, answer)
            }
        };
        Ok(self.note_answer(&sent, answer, features))
    }

    fn slices_api(&self) -> Api<ResourceSlice> {
        Api::all(self.cluster.client.clone())
    }

    /// The answer to a write of the slice `name`. If it was refused because the slice is not
    /// as it was known, that is looked at, and the write has lost a race.
    async fn unless_raced<T>(
        &mut self,
        name: &str,
        answer: Result<T, CallError>,
        failed: impl FnOnce(CallError) -> WriteError,
    ) -> Result<T, WriteError> {
        match answer {
            Err(CallError::Refused { code: 404 | 409, .. }) => {
                self.look(name).await?;
                Err(WriteError::Raced { name: name.to_owned() })
            }
            answer => answer.map_err(failed),
        }
    }

    async fn delete(&mut self, name: String) -> Result<(), WriteError> {
        let known = self.slices.get(&name).map(|known| known.metadata.clone()).unwrap_or_default();
        let preconditions =
            Preconditions { uid: known.uid, resource_version: known.resource_version };
        let params = DeleteParams::default().preconditions(preconditions);
        let deleted = match within_deadline(self.slices_api().delete(&name, &params)).await {
            // Gone already: that is what was wanted.
            Err(CallError::Refused { code: 404, .. }) => Ok(()),
            deleted => deleted.map(|_| ()),
        };
        let failed = |source| WriteError::Delete { name: name.clone(), source };
        self.unless_raced(&name, deleted, failed).await?;
        self.cluster.counters.slices_deleted.add(1);
        self.forget(&name);
        Ok(())
    }

    /// Reads one slice that is not as expected.
    async fn look(&mut self, name: &str) -> Result<(), WriteError> {
        let found = within_deadline(self.slices_api().get_opt(name)).await;
        let found = found.map_err(|source| WriteError::Update { name: name.to_owned(), source })?;
        let Some(found) = found else {
            self.forget(name);
            return Ok(());
        };
        let Cluster { driver, node, .. } = &self.cluster;
        if found.spec.driver != *driver || found.spec.node_name.as_ref() != Some(node) {
            return Err(WriteError::Taken { name: name.to_owned() });
        }
        self.slices.extend(Stored::of(found));
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        if let Some(known) = self.slices.remove(name)
            && let Some(version) = revision(known.metadata.resource_version.as_deref())
        {
            self.gone.insert(name.to_owned(), version);
        }
    }

    /// Takes the API server's answer to a write, and says what it dropped.
    fn note_answer(
        &mut self,
        sent: &ResourceSlice,
        answer: ResourceSlice,
        features: Features,
    ) -> Option<Features> {
        let left = lowered(features, &sent.spec, &answer.spec);
        let (_, sent) = Stored::of(sent.clone())?;
        let (name, kept) = Stored::of(answer)?;
        self.gone.remove(&name);
        if is_same_page(&sent.page, &kept.page) {
            self.accepted.remove(&name);
        } else {
            self.cluster.counters.dropped_fields.add(1);
            tracing::warn!(slice = name, known = left.is_some(), "the API server dropped fields");
            if left.is_none() {
                let accepted = Accepted { sent: sent.page, kept: kept.page.clone() };
                self.accepted.insert(name.clone(), accepted);
            }
        }
        self.slices.insert(name, kept);
        left
    }
}
