//! Graphs and their launches.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::{
    abi::{Code, Handle, INVALID_HANDLE, INVALID_VALUE, InstantiateParams, KernelNode, Out},
    calls::launch::{NODE_KERNEL, run},
    exports::{exports, stream_exports},
    graph::{Graph, Length, Node, sum},
    state::state,
};

exports! {
    fn cuGraphCreate(graph: Out<Handle>, _flags: c_uint) {
        let mut state = state()?;
        let handle = state.handle();
        state.graphs.all.insert(handle, Graph::default());
        graph.put(handle)
    }
    fn cuGraphDestroy(graph: Handle) {
        state()?.graphs.all.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphClone(clone: Out<Handle>, graph: Handle) {
        let mut state = state()?;
        let handle = state.handle();
        let Graph { nodes, edges } = state.graphs.graph(graph)?;
        let copy = Graph { nodes: nodes.clone(), edges: edges.clone() };
        state.graphs.all.insert(handle, copy);
        clone.put(handle)
    }
    fn cuGraphAddKernelNode(
        node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize, params: Out<KernelNode>,
    ) { add_kernel(node, graph, after, count, params) }
    fn cuGraphAddKernelNode_v2(
        node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize, params: Out<KernelNode>,
    ) { add_kernel(node, graph, after, count, params) }
    fn cuGraphAddEmptyNode(node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize) {
        add(node, graph, after, count, Node { length: NOTHING, kind: 5 })
    }
    fn cuGraphAddMemcpyNode(
        node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize, _copy: *const c_void, _ctx: Handle,
    ) { add(node, graph, after, count, Node { length: NOTHING, kind: 1 }) }
    fn cuGraphAddMemsetNode(
        node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize, _set: *const c_void, _ctx: Handle,
    ) { add(node, graph, after, count, Node { length: NOTHING, kind: 2 }) }
    fn cuGraphAddChildGraphNode(
        node: Out<Handle>, graph: Handle, after: Out<Handle>, count: usize, child: Handle,
    ) {
        let length = sum(&state()?.graphs.graph(child)?.nodes);
        add(node, graph, after, count, Node { length, kind: 4 })
    }
    fn cuGraphKernelNodeSetParams(node: Handle, params: Out<KernelNode>) { set_params(node, params) }
    fn cuGraphKernelNodeSetParams_v2(node: Handle, params: Out<KernelNode>) { set_params(node, params) }
    fn cuGraphExecKernelNodeSetParams(exec: Handle, node: Handle, params: Out<KernelNode>) {
        set_exec_params(exec, node, params)
    }
    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: Out<KernelNode>) {
        set_exec_params(exec, node, params)
    }
    fn cuGraphAddDependencies(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: usize) {
        add_edges(graph, from, to, count)
    }
    fn cuGraphAddDependencies_v2(
        graph: Handle, from: Out<Handle>, to: Out<Handle>, _edges: *const c_void, count: usize,
    ) { add_edges(graph, from, to, count) }
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let mut state = state()?;
        let found: Vec<Handle> = state.graphs.graph(graph)?.nodes.iter().map(|(node, _)| *node).collect();
        if !nodes.is_null() {
            let room = count.get()?;
            for (index, node) in found.iter().take(room).enumerate() {
                nodes.put_at(index, *node)?;
            }
        }
        count.put(found.len())
    }
    fn cuGraphNodeGetType(node: Handle, kind: Out<c_uint>) {
        let state = state()?;
        let all = state.graphs.all.values().flat_map(|graph| &graph.nodes);
        let found = all.into_iter().find(|(handle, _)| *handle == node);
        kind.put(found.ok_or(INVALID_HANDLE)?.1.kind)
    }
    fn cuGraphInstantiate(
        exec: Out<Handle>, graph: Handle, _error: *mut Handle, _log: *mut c_char, _room: usize,
    ) { instantiate(exec, graph) }
    fn cuGraphInstantiate_v2(
        exec: Out<Handle>, graph: Handle, _error: *mut Handle, _log: *mut c_char, _room: usize,
    ) { instantiate(exec, graph) }
    fn cuGraphInstantiateWithFlags(exec: Out<Handle>, graph: Handle, _flags: u64) { instantiate(exec, graph) }
    fn cuGraphExecDestroy(exec: Handle) {
        state()?.graphs.execs.remove(&exec).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphExecUpdate(exec: Handle, graph: Handle, _error: *mut Handle, result: Out<c_int>) {
        update(exec, graph)?;
        result.put_if(0);
        Ok(())
    }
    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, result: Out<c_int>) {
        update(exec, graph)?;
        result.put_if(0);
        Ok(())
    }
}

stream_exports! { variant;
    fn cuGraphInstantiateWithParams/cuGraphInstantiateWithParams_ptsz(
        exec: Out<Handle>, graph: Handle, params: Out<InstantiateParams>,
    ) {
        let _ = variant;
        let asked = params.get()?;
        instantiate(exec, graph)?;
        params.put(InstantiateParams { error_node: 0, result: 0, ..asked })
    }
    fn cuGraphLaunch/cuGraphLaunch_ptsz(exec: Handle, stream: Handle) {
        let length = state()?.graphs.length(exec)?;
        run(length, stream, variant, NODE_CHILD)
    }
    fn cuGraphUpload/cuGraphUpload_ptsz(exec: Handle, stream: Handle) {
        let mut state = state()?;
        state.resolve(stream, variant)?;
        state.graphs.length(exec).map(|_| ())
    }
}

const NOTHING: Length = Length { ns: 1, traps: false };
/// `CU_GRAPH_NODE_TYPE_GRAPH`.
const NODE_CHILD: u32 = 4;

fn add(
    out: Out<Handle>,
    graph: Handle,
    after: Out<Handle>,
    count: usize,
    node: Node,
) -> Result<(), Code> {
    let mut state = state()?;
    let handle = state.handle();
    let graph = state.graphs.graph(graph)?;
    for index in 0..count {
        let before = after.get_at(index)?;
        if !graph.nodes.iter().any(|(known, _)| *known == before) {
            return Err(INVALID_VALUE);
        }
        graph.edges.push((before, handle));
    }
    graph.nodes.push((handle, node));
    out.put(handle)
}

fn length_of(params: Out<KernelNode>) -> Result<Length, Code> {
    let params = params.get()?;
    state()?.length(params.function, params.grid, params.params)
}

fn add_kernel(
    out: Out<Handle>,
    graph: Handle,
    after: Out<Handle>,
    count: usize,
    params: Out<KernelNode>,
) -> Result<(), Code> {
    let length = length_of(params)?;
    add(out, graph, after, count, Node { length, kind: NODE_KERNEL })
}

fn set_params(node: Handle, params: Out<KernelNode>) -> Result<(), Code> {
    let length = length_of(params)?;
    let mut state = state()?;
    let mut nodes = state.graphs.all.values_mut().flat_map(|graph| &mut graph.nodes);
    let found = nodes.find(|(handle, _)| *handle == node).ok_or(INVALID_HANDLE)?;
    found.1.length = length;
    Ok(())
}

fn set_exec_params(exec: Handle, node: Handle, params: Out<KernelNode>) -> Result<(), Code> {
    let length = length_of(params)?;
    let mut state = state()?;
    let nodes = state.graphs.execs.get_mut(&exec).ok_or(INVALID_HANDLE)?;
    let found = nodes.iter_mut().find(|(handle, _)| *handle == node).ok_or(INVALID_VALUE)?;
    found.1.length = length;
    Ok(())
}

fn add_edges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: usize) -> Result<(), Code> {
    let mut state = state()?;
    let graph = state.graphs.graph(graph)?;
    for index in 0..count {
        graph.edges.push((from.get_at(index)?, to.get_at(index)?));
    }
    Ok(())
}

fn instantiate(out: Out<Handle>, graph: Handle) -> Result<(), Code> {
    let mut state = state()?;
    let exec = state.handle();
    state.graphs.instantiate(graph, exec)?;
    out.put(exec)
}

fn update(exec: Handle, graph: Handle) -> Result<(), Code> {
    let mut state = state()?;
    if !state.graphs.execs.contains_key(&exec) {
        return Err(INVALID_HANDLE);
    }
    state.graphs.instantiate(graph, exec)
}
