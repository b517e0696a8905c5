//! `accelpool topology`

use std::{fs, path::Path};

use crate::{
    client::Client,
    failure::Failure,
    output::{Console, note, print_text},
    topology::{arrange, draw, write_matrix, write_tree},
};

pub(super) async fn run(
    client: &Client,
    console: &Console,
    picture: Option<&Path>,
) -> Result<(), Failure> {
    let topology = client.topology().await?;
    let groups = arrange(&topology);
    match picture {
        Some(path) if path.as_os_str() == "-" => print_text(&draw(&groups, &topology)),
        Some(path) => {
            fs::write(path, draw(&groups, &topology))
                .map_err(|source| Failure::WriteFile { path: path.to_owned(), source })?;
            note(&format!("drew {} devices into {}", topology.devices.len(), path.display()));
            Ok(())
        }
        None if groups.is_empty() => {
            note("no NUMA nodes and no devices");
            console.print(&topology, |_| {})
        }
        None => console.print(&topology, |page| {
            write_tree(&groups, page);
            write_matrix(&groups, &topology.links, page);
        }),
    }
}
