//! The workspace as cargo sees it: crates, what they import, what they reach.
//!
//! A plain copy of the few facts that the checks need, so that a test can write one by
//! hand. Dependencies for tests alone are kept apart: they cross no boundary at run time.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    path::Path,
};

use anyhow::{Context, Result};
use cargo_metadata::{
    CargoOpt, DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind,
};

/// A crate of the workspace.
#[derive(Default)]
pub(crate) struct Crate {
    pub(crate) name: String,
    /// Relative to the root of the workspace.
    pub(crate) folder: String,
    /// Crates of the workspace that it imports to build or to run.
    pub(crate) imports: Vec<String>,
    /// Crates of a registry that it names, for tests too.
    pub(crate) externals: Vec<String>,
    /// Every registry crate that it needs to build or to run, with the crates on the way.
    pub(crate) reaches: BTreeMap<String, Vec<String>>,
    /// The first file of each library, program and build script, relative to the root.
    pub(crate) root_files: Vec<String>,
}

/// Asks cargo for the crates of the workspace at `root`.
pub(crate) fn read(root: &Path) -> Result<Vec<Crate>> {
    // The platform at hand: crates of other platforms may never have been fetched here.
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .other_options(["--locked".into(), "--filter-platform".into(), platform])
        .exec()
        .context("failed to ask `cargo metadata`")?;
    let edges = run_time_edges(&metadata)?;
    metadata.workspace_packages().into_iter().map(|it| describe(&metadata, &edges, it)).collect()
}

/// For each package, the packages that it needs to build or to run.
type Edges<'a> = HashMap<&'a PackageId, Vec<&'a PackageId>>;

fn run_time_edges(metadata: &Metadata) -> Result<Edges<'_>> {
    let resolve = metadata.resolve.as_ref().context("`cargo metadata` resolved nothing")?;
    let edges = resolve.nodes.iter().map(|node| {
        let needed = node.deps.iter().filter(|dependency| {
            dependency.dep_kinds.iter().any(|it| it.kind != DependencyKind::Development)
        });
        (&node.id, needed.map(|dependency| &dependency.pkg).collect())
    });
    Ok(edges.collect())
}

fn describe(metadata: &Metadata, edges: &Edges<'_>, package: &Package) -> Result<Crate> {
    let relative = |path: &cargo_metadata::camino::Utf8Path| {
        path.strip_prefix(&metadata.workspace_root).map(ToString::to_string)
    };
    let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
    let (internal, external): (Vec<_>, Vec<_>) =
        package.dependencies.iter().partition(|dependency| dependency.path.is_some());
    let imports = internal.iter().filter(|it| it.kind != DependencyKind::Development);
    let is_root = |kind: &TargetKind| {
        !matches!(kind, TargetKind::Test | TargetKind::Bench | TargetKind::Example)
    };
    let roots = package.targets.iter().filter(|target| target.kind.iter().any(is_root));
    Ok(Crate {
        name: package.name.to_string(),
        folder: relative(folder)?,
        imports: imports.map(|it| it.name.clone()).collect(),
        externals: external.iter().map(|it| it.name.clone()).collect(),
        reaches: reach(metadata, edges, &package.id),
        root_files: roots.map(|it| relative(&it.src_path)).collect::<Result<_, _>>()?,
    })
}

/// Walks outward from `start`; the value is the way to the crate, itself left out.
fn reach(
    metadata: &Metadata,
    edges: &Edges<'_>,
    start: &PackageId,
) -> BTreeMap<String, Vec<String>> {
    let mut reached = BTreeMap::new();
    let mut seen = vec![start];
    let mut open = vec![(start, Vec::new())];
    while let Some((id, way)) = open.pop() {
        let package = &metadata[id];
        if package.source.is_some() {
            reached.insert(package.name.to_string(), way.clone());
        }
        let way: Vec<String> = way.into_iter().chain([package.name.to_string()]).collect();
        for next in edges.get(id).into_iter().flatten() {
            if !seen.contains(next) {
                seen.push(next);
                open.push((next, way.clone()));
            }
        }
    }
    reached
}
