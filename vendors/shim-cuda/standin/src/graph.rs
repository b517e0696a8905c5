//! Graphs: nodes with a duration, launched as one piece of work as long as their sum.

use std::collections::HashMap;

use crate::abi::{Code, Handle, INVALID_HANDLE};

/// A node: what running it takes.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) length: Length,
    /// `CUgraphNodeType`.
    pub(crate) kind: u32,
}

/// How long something runs, and how it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Length {
    /// `u64::MAX` never ends.
    pub(crate) ns: u64,
    pub(crate) traps: bool,
}

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<(Handle, Node)>,
    pub(crate) edges: Vec<(Handle, Handle)>,
}

#[derive(Default)]
pub(crate) struct Graphs {
    pub(crate) all: HashMap<Handle, Graph>,
    /// The nodes as they were at instantiation, so that an update finds them.
    pub(crate) execs: HashMap<Handle, Vec<(Handle, Node)>>,
    /// The mode that each graph is captured in, and the thread's mode is not asked.
    pub(crate) captures: HashMap<Handle, u32>,
}

impl Graphs {
    pub(crate) fn graph(&mut self, handle: Handle) -> Result<&mut Graph, Code> {
        self.all.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    pub(crate) fn instantiate(&mut self, graph: Handle, exec: Handle) -> Result<(), Code> {
        let nodes = self.graph(graph)?.nodes.clone();
        self.execs.insert(exec, nodes);
        Ok(())
    }

    /// What a launch of an executable graph takes.
    pub(crate) fn length(&self, exec: Handle) -> Result<Length, Code> {
        let nodes = self.execs.get(&exec).ok_or(INVALID_HANDLE)?;
        Ok(sum(nodes))
    }
}

/// Nodes run one after the other.
pub(crate) fn sum(nodes: &[(Handle, Node)]) -> Length {
    let ns = nodes.iter().fold(0_u64, |all, (_, node)| all.saturating_add(node.length.ns));
    Length { ns, traps: nodes.iter().any(|(_, node)| node.length.traps) }
}
